"""`moe-opt calibrate`: record what every expert does with a corpus, through the engine."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sglang_moe_opt.cli.corpus import CORPUS_HELP, read_corpus
from sglang_moe_opt.cli.eval import DATA_ENV
from sglang_moe_opt.cli.serve import has_accelerator, resolve_model

if TYPE_CHECKING:
    from rich.console import Console

    from sglang_moe_opt.pruning.calibration import Calibration

ARCHITECTURES: Final = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")


def register(app: typer.Typer) -> None:
    """Add the command to `moe-opt`."""
    app.command("calibrate")(calibrate)


def calibrate(
    model: Annotated[str, typer.Option(help="Folder, Hugging Face id, shape:NAME@LAYERS, mini-v2 or mini-v3.")],
    corpus: Annotated[str, typer.Option(help=CORPUS_HELP)],
    out: Annotated[Path, typer.Option(help="Folder of the results; an unfinished one is gone on with.")],
    tokens: Annotated[int, typer.Option(min=1, help="Prompt tokens in all, at most.")] = 200_000,
    sample: Annotated[int, typer.Option(min=0, help="Tokens whose MoE inputs are kept, in every layer.")] = 20_000,
    piece: Annotated[int, typer.Option(min=2, help="Tokens of a prompt, at most: longer text is cut.")] = 512,
    save_every: Annotated[int, typer.Option(min=1, help="Tokens between saves, about.")] = 16384,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the pieces and of the sample.")] = 0,
    dtype: Annotated[str, typer.Option(help="Number format of the server: auto is the checkpoint's.")] = "auto",
    data_dir: Annotated[
        Path | None, typer.Option(envvar=DATA_ENV, help="Raw data, for --corpus reference and heldout.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run a corpus through a server of its own and record every routed expert's part in it.

    Ctrl-C keeps what is recorded; the same command goes on from there.
    """
    from rich.console import Console

    from loadtest.servers import end_on_sigterm

    start = time.monotonic()
    console = Console(stderr=True)
    end_on_sigterm()
    calibration = _prepare(model, corpus, out, tokens, sample, piece, save_every, seed, dtype, data_dir, console)
    calibration.open()
    if not calibration.is_finished:
        try:
            _record(calibration, resolve_model(model), dtype, console)
        except KeyboardInterrupt:
            typer.echo(f"moe-opt: interrupted; what is recorded is in {out}: the same command goes on", err=True)
            raise typer.Exit(130) from None
        calibration.finish(["moe-opt", *sys.argv[1:]])
    result = {
        "out": str(out),
        "tokens": calibration.corpus.tokens,
        "pieces": len(calibration.corpus.pieces),
        "sampled_inputs": len(calibration.sample),
        "seconds": round(time.monotonic() - start, 1),
    }
    typer.echo(json.dumps(result) if as_json else f"{out}: {result['tokens']} tokens in {result['pieces']} pieces")


def _prepare(
    model: str,
    corpus: str,
    out: Path,
    tokens: int,
    sample: int,
    piece: int,
    save_every: int,
    seed: int,
    dtype: str,
    data_dir: Path | None,
    console: Console,
) -> Calibration:
    """What is to be recorded. Raises ValueError before anything is written or started."""
    from eval.served import read_model_config
    from sglang_moe_opt.checkpoint_id import fingerprint
    from sglang_moe_opt.model_shape import MoEShape
    from sglang_moe_opt.pruning.calibration import Calibration

    path = resolve_model(model)
    config = read_model_config(path)
    check_model(model, config, piece)
    shape = MoEShape.from_config(config)
    with console.status("reading the corpus"):
        read = read_corpus(corpus, path, data_dir, vocab_size=shape.vocab_size, piece=piece, tokens=tokens, seed=seed)
    job = {
        "model_name": model,
        "corpus": corpus,
        "model": fingerprint(config, Path(path) if Path(path).is_dir() else None),
        "dtype": dtype,
        "piece": piece,
        "seed": seed,
        "sample": sample,
        "save_every": save_every,
        "tokens": read.tokens,
        "corpus_sha256": read.sha256,
    }
    return Calibration(out, read, read.sample(sample, seed), job, save_every)


def check_model(model: str, config: dict[str, Any], piece: int) -> None:
    """Raises ValueError where the model's statistics would not be exact or its context is too short."""
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"--model: {model} is a {architecture}, allowed: {', '.join(ARCHITECTURES)}")
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "unknown")
        raise ValueError(f"--model: {model} is quantised ({method}), allowed: unquantised weights")
    context = config.get("max_position_embeddings", piece + 1)
    if piece >= context:
        raise ValueError(f"--piece: got {piece}, allowed: below the model's context of {context} tokens")


def _record(calibration: Calibration, model: str, dtype: str, console: Console) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from loadtest.servers import free_port, server
    from sglang_moe_opt.engine.calibration.client import NO_GRAPHS, record, server_env

    missing = calibration.missing()
    if not missing:
        return
    # Threads that spin while they wait would take the cores from what else runs here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    on_cpu = not has_accelerator()
    extra = ["--dtype", dtype, "--disable-radix-cache", *(() if on_cpu else NO_GRAPHS)]
    own = server(model, on_cpu=on_cpu, policy=None, port=free_port(), extra=extra, env=server_env(calibration))
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>5.1f} %"))
    with ExitStack() as stack:
        with console.status("starting a server"):
            running = stack.enter_context(own)
        bar = stack.enter_context(Progress(*columns, TimeRemainingColumn(), console=console))
        done = calibration.corpus.tokens - sum(calibration.tokens_of(calibration.groups[index]) for index in missing)
        line = bar.add_task("calibrating", total=calibration.corpus.tokens, completed=done)
        record(calibration, running.url, lambda count: bar.advance(line, count))
