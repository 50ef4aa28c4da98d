"""`moe-opt prune distill`: train a plan's kept experts to give the full model's answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sglang_moe_opt.cli.corpus import CORPUS_HELP, read_corpus
from sglang_moe_opt.cli.eval import DATA_ENV
from sglang_moe_opt.cli.prune_export import checked_plan, local_checkpoint
from sglang_moe_opt.progress import step_progress

if TYPE_CHECKING:
    from sglang_moe_opt.pruning.distillation import Recipe, Report


def distill(
    model: Annotated[str, typer.Option(help="The full model: folder, Hugging Face id, mini-v2, mini-v3.")],
    plan: Annotated[Path, typer.Option(help="Plan file for this model, refined or not.")],
    corpus: Annotated[str, typer.Option(help=CORPUS_HELP)],
    out: Annotated[Path, typer.Option(help="The plan file to write; its weights go beside it.")],
    tokens: Annotated[int, typer.Option(min=1, help="To train on, in all.")] = 1_000_000,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate. Default: falls with the hidden size.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a step.")] = 4096,
    micro_rows: Annotated[int, typer.Option(min=1, help="Rows in memory at a time.")] = 4,
    piece: Annotated[int, typer.Option(min=2, help="Tokens of a row.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the text.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two savings.")] = 25,
    data_dir: Annotated[
        Path | None, typer.Option(envvar=DATA_ENV, help="Raw data, for --corpus reference and heldout.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train the kept experts, the routers and the shared experts to give the full model's next-token odds.

    Ctrl-C keeps what is trained; the same command goes on from there.
    """
    import torch

    from sglang_moe_opt.pruning.distillation import Recipe
    from sglang_moe_opt.pruning.distillation import distill as run
    from sglang_moe_opt.pruning.refinement import save_refined

    start = time.monotonic()
    recipe = Recipe(tokens, batch_tokens, piece, micro_rows, lr, seed)
    folder = local_checkpoint(model)
    chosen, shape = checked_plan(folder, plan)
    text = read_corpus(
        corpus, str(folder), data_dir, vocab_size=shape.vocab_size, piece=piece, tokens=tokens, seed=seed
    )
    state = out.with_name(f".{out.stem}.training")
    reports: list[Report] = []
    try:
        with _shown(recipe, reports, hidden=as_json) as report:
            tensors = run(
                folder,
                chosen.layers,
                text.pieces,
                recipe,
                replaced=chosen.weights_path(plan),
                state=state,
                identity={"plan": chosen.digest, "corpus": text.sha256},
                save_every=save_every,
                device="cuda" if torch.cuda.is_available() else "cpu",
                report=report,
            )
        method = {"distill": {"tokens": recipe.steps * batch_tokens, "lr": lr or "default", "corpus": corpus}}
        trained = save_refined(chosen, tensors, method, out)
    except KeyboardInterrupt:
        typer.echo(f"moe-opt: interrupted; what is trained is in {state}: the same command goes on", err=True)
        raise typer.Exit(130) from None
    state.unlink(missing_ok=True)
    measured = [report for report in reports if report.heldout is not None]
    result = {
        "plan": str(out),
        "weights": str(trained.weights_path(out)),
        "digest": trained.digest,
        "method": trained.method,
        "heldout_divergence": {report.step: report.heldout for report in measured},
        "seconds": round(time.monotonic() - start, 1),
    }
    typer.echo(json.dumps(result) if as_json else f"written to {out}, with {len(tensors)} tensors beside it")


@contextmanager
def _shown(recipe: Recipe, reports: list[Report], *, hidden: bool) -> Iterator[Callable[[Report], None]]:
    """A bar over the steps, and a line for each measurement; reports are collected too."""
    with step_progress("steps", recipe.steps, shown=not hidden) as bar:

        def report(one: Report) -> None:
            reports.append(one)
            if one.heldout is not None:
                bar.say(
                    f"step {one.step}: KL divergence from the full model {one.divergence:.4f} nats, "
                    f"on text not trained on {one.heldout:.4f}"
                )
            bar.reach(one.step)

        yield report
