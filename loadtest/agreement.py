"""Two clients, one server: our load test against SGLang's own bench_serving, in turns, on the same loads.

python -m loadtest.agreement --out docs/results/agreement.json
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtest.analysis import ratio_interval
from loadtest.bench_serving import read
from loadtest.folder import PointFile, ServerSide
from loadtest.generators import Generators
from loadtest.load import Load
from loadtest.metrics import BY_TAG, Measurement
from loadtest.options import numbers
from loadtest.results import provenance, spread, write_json
from loadtest.spec import PointSpec
from loadtest.target import Target, find_target
from sglang_moe_opt.cli.own_server import own_server
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.shape_checkpoint import ensure_shape

TAGS = ("output_tok_s", "ttft_p50_ms", "tpot_p50_ms")


def main(
    out: Annotated[Path, typer.Option(help="JSON file of the results.")],
    model: Annotated[
        str, typer.Option(help="Layer shapes to serve, with random weights.")
    ] = "shape:deepseek-v2-lite@3",
    concurrency: Annotated[str, typer.Option(help="Requests at a time, comma-separated.")] = "2,16,128",
    pairs: Annotated[int, typer.Option(min=1, help="Rounds in which both clients run once.")] = 5,
    per_user: Annotated[int, typer.Option(min=1, help="Requests of each user in a round, at least.")] = 2,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a round, at least.")] = 48,
    input_len: Annotated[int, typer.Option(min=1, help="Prompt tokens.")] = 32,
    output_len: Annotated[int, typer.Option(min=2, help="Generated tokens.")] = 32,
) -> None:
    """Measure with both clients and print the ratios of what they report."""
    levels = numbers("--concurrency", concurrency, 4096)
    extra = ["--log-level", "warning", "--max-running-requests", str(max(levels))]
    console = Console(stderr=True)
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        own_server(str(_with_tokenizer(model, Path(folder))), None, extra, console) as url,
        Generators(1) as generators,
        Progress(console=console) as progress,
    ):
        target = find_target(url, "generate", needs_text=False)
        bar = progress.add_task("", total=(pairs + 1) * len(levels) * 2)
        for turn in range(pairs + 1):
            for c in levels:
                clients = [("ours", _ours), ("bench_serving", _theirs)]
                for name, measure in clients if turn % 2 else clients[::-1]:
                    _flush(target)
                    values = measure(generators, target, c, max(per_user * c, requests), input_len, output_len, turn)
                    if turn:  # the first round is the warm-up
                        found.setdefault((c, name), []).append(values)
                    progress.update(bar, advance=1, description=f"round {turn}/{pairs}, c={c}, {name}")
            if turn:
                points = [_point(c, found[c, "ours"], found[c, "bench_serving"]) for c in levels]
                about = {"model": model, "api": target.api, "rounds": turn}
                write_json(out, {**provenance("loadtest.agreement"), **about, "points": points})
    _show(points)


def _with_tokenizer(model: str, folder: Path) -> Path:
    """The model with a tokenizer that has a word for every id: bench_serving does not see tokens without text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    size = MoEShape.from_path(ensure_shape(model)).vocab_size
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(size)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    return ensure_shape(model, tokenizer=folder)


def _flush(target: Target) -> None:
    with httpx.Client(timeout=60, trust_env=False) as client:
        target.flush(client)


def _ours(
    generators: Generators, target: Target, c: int, requests: int, input_len: int, output_len: int, seed: int
) -> dict[str, float]:
    assert target.served is not None
    spec = PointSpec(
        url=target.url,
        api=target.api,
        model=target.model,
        load=Load("closed", c).label,
        seconds=0,
        max_seconds=600,
        requests=requests,
        hints={"": (None, 1.0)},
        prompts=f"random:{input_len}",
        vocab_size=target.served.shape.vocab_size,
        output_len=output_len,
        seed=seed,
    )
    records, result, client = generators.run(spec)
    point = PointFile(
        arm="",
        load=spec.load,
        round=seed,
        started_at="",
        begin=0.0,
        end=max(record.start + record.end for record in records),  # the whole run, as bench_serving counts
        cut_off=result.cut_off,
        server=ServerSide(),
        client=client,
    )
    measurement = Measurement(point, records)
    if measurement.failed:
        raise RuntimeError(f"{len(measurement.failed)} requests failed: {measurement.failed[0].error}")
    return {tag: value for tag in TAGS if (value := BY_TAG[tag].derive(measurement)) is not None}


def _theirs(
    generators: Generators, target: Target, c: int, requests: int, input_len: int, output_len: int, seed: int
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.jsonl"
        command = [
            sys.executable,
            "-m",
            "sglang.bench_serving",
            "--backend",
            "sglang",
            "--base-url",
            target.url,
        ]
        command += ["--dataset-name", "random-ids", "--tokenize-prompt", "--random-range-ratio", "1"]
        command += ["--random-input-len", str(input_len), "--random-output-len", str(output_len)]
        command += ["--num-prompts", str(requests), "--max-concurrency", str(c), "--seed", str(seed)]
        command += ["--tokenizer", target.served.tokenizer if target.served else "", "--model", target.model]
        command += ["--warmup-requests", "0", "--disable-tqdm", "--output-file", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not file.exists():
            raise RuntimeError(f"bench_serving: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        values = read(file)[0].values
    return {tag: values[tag] for tag in TAGS}


def _point(c: int, ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, Any]:
    point: dict[str, Any] = {"concurrency": c}
    for tag in TAGS:
        mine, other = [values[tag] for values in ours], [values[tag] for values in theirs]
        ratio = ratio_interval([a / b for a, b in zip(mine, other, strict=True)])
        point[tag] = {
            "ours": spread(mine),
            "bench_serving": spread(other),
            "ratio": {"median": ratio.median, "interval_95": [ratio.low, ratio.high], "all": list(ratio.all)},
        }
    return point


def _show(points: list[dict[str, Any]]) -> None:
    table = Table("c", *(f"{BY_TAG[tag].header}: ours / bench_serving" for tag in TAGS))
    for point in points:
        cells = [
            f"{r['median']:.3f} ({r['interval_95'][0]:.3f}-{r['interval_95'][1]:.3f})"
            for r in (point[tag]["ratio"] for tag in TAGS)
        ]
        table.add_row(str(point["concurrency"]), *cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
