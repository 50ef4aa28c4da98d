"""`moe-opt prune sensitivity`: what each layer loses by having fewer experts, for budgets spread over layers."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sglang_moe_opt.cli.corpus import CORPUS_HELP, read_corpus
from sglang_moe_opt.cli.eval import DATA_ENV
from sglang_moe_opt.cli.prune_export import local_checkpoint
from sglang_moe_opt.fields import FieldError


def sensitivity(
    model: Annotated[str, typer.Option(help="The full model: folder, Hugging Face id, mini-v2, mini-v3.")],
    statistics: Annotated[Path, typer.Option(help="Folder that moe-opt calibrate wrote.")],
    criterion: Annotated[str, typer.Option(help="Which experts a layer keeps; as in prune plan.")],
    corpus: Annotated[str, typer.Option(help=CORPUS_HELP)],
    out: Annotated[Path, typer.Option(help="The JSON file to write, for prune plan --sensitivity.")],
    keep: Annotated[str, typer.Option(help="Experts kept in the measured layer, comma-separated.")] = "48,32,16",
    tokens: Annotated[int, typer.Option(min=1024, help="Of text to measure on.")] = 32768,
    unequal_groups: Annotated[
        bool, typer.Option("--unequal-groups", help="The router's groups may keep different numbers.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of text, and of criteria that draw.")] = 0,
    data_dir: Annotated[
        Path | None, typer.Option(envvar=DATA_ENV, help="Raw data, for --corpus reference and heldout.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prune one layer at a time and measure how far the model's next-token odds move.

    Ctrl-C keeps what is measured; the same command goes on from there.
    """
    import torch

    from sglang_moe_opt.checkpoint_id import fingerprint
    from sglang_moe_opt.cli.prune import gather
    from sglang_moe_opt.files import write_atomically
    from sglang_moe_opt.model_shape import MoEShape, read_config
    from sglang_moe_opt.progress import step_progress
    from sglang_moe_opt.pruning.criteria import find_criterion
    from sglang_moe_opt.pruning.layer_sensitivity import ROW_TOKENS, UNIT, measure
    from sglang_moe_opt.pruning.planner import check_statistics
    from sglang_moe_opt.pruning.ranking import rank
    from sglang_moe_opt.pruning.sensitivity import Sensitivity

    start = time.monotonic()
    folder = local_checkpoint(model)
    config = read_config(folder)
    shape = MoEShape.from_config(config)
    chosen = find_criterion(criterion)
    evidence = replace(gather(chosen, shape, folder, statistics, seed), equal_groups=not unequal_groups)
    check_statistics(evidence, fingerprint(config, folder))
    ranking = rank(chosen.score(evidence), shape, equal_groups=not unequal_groups)
    counts = _counts(keep, ranking.counts[:-1])
    choices: dict[int, dict[int, tuple[int, ...]]] = {layer: {} for layer in shape.moe_layer_ids}
    for count in counts:
        kept = ranking.kept(np.full(shape.num_moe_layers, count))
        for layer, ids in zip(shape.moe_layer_ids, kept, strict=True):
            choices[layer][count] = ids
    text = read_corpus(
        corpus, str(folder), data_dir, vocab_size=shape.vocab_size, piece=ROW_TOKENS, tokens=tokens, seed=seed
    )
    state = out.with_name(f".{out.name}.state")
    identity: dict[str, Any] = {"model": fingerprint(config, folder), "corpus": text.sha256, "choices": choices}
    try:
        with step_progress("layers", shape.num_moe_layers * len(counts), shown=not as_json) as bar:
            losses = measure(
                folder,
                choices,
                text.pieces,
                state=state,
                identity=identity,
                device="cuda" if torch.cuda.is_available() else "cpu",
                report=lambda layer, count, loss: bar.advance(f"layer {layer}, {count} kept: {loss:.4f} nats"),
            )
    except KeyboardInterrupt:
        typer.echo(f"moe-opt: interrupted; what is measured is in {state}: the same command goes on", err=True)
        raise typer.Exit(130) from None
    found = Sensitivity(losses, UNIT).to_object()
    found["provenance"] = {"model": identity["model"], "corpus": text.sha256, "tokens": tokens, "criterion": criterion}
    write_atomically(out, json.dumps(found, indent=1) + "\n")
    state.unlink(missing_ok=True)
    result = {"sensitivity": str(out), **found, "seconds": round(time.monotonic() - start, 1)}
    typer.echo(json.dumps(result) if as_json else f"written to {out}")


def _counts(text: str, allowed: tuple[int, ...]) -> list[int]:
    try:
        counts = sorted({int(part) for part in text.split(",")}, reverse=True)
    except ValueError:
        raise FieldError("--keep", text, "numbers of experts such as 48,32,16") from None
    for count in counts:
        if count not in allowed:
            step = f" in steps of {allowed[1] - allowed[0]}" if len(allowed) > 1 and allowed[1] - allowed[0] > 1 else ""
            raise FieldError("--keep", count, f"{allowed[0]} to {allowed[-1]}{step}")
    return counts
