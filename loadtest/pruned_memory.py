"""What a plan saves: memory and load time of servers that keep all experts or some, started in turns.

    python -m loadtest.pruned_memory --kept 64,32,16 --out docs/results/pruned_memory.json

Memory is that of the scheduler process, which holds the model: resident now, and at its peak since the start (VmHWM),
in which pages of the checkpoint's files count while they are mapped.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtest.options import numbers
from loadtest.results import provenance, ratios, spread, write_json
from loadtest.servers import Running, free_port, server
from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.cli.serve import has_accelerator, resolve_model
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PrunePlan

MB = 2**20


@dataclass(frozen=True)
class Start:
    """One server start.

    Attributes:
        resident_mb: anonymous memory, in which weights lie.
        peak_mb: most memory at any time, mapped files included.
        weights_s: seconds for building the model and reading its weights.
        ready_s: seconds from the start to the first answer on /health.
    """

    resident_mb: float
    peak_mb: float
    weights_s: float
    ready_s: float

    @classmethod
    def of(cls, served: Running) -> Start:
        status = served.scheduler_status()
        elapsed = re.search(r"Load weight end.*?elapsed=([\d.]+)", served.log.read_text(errors="replace"))
        if elapsed is None:
            raise RuntimeError("the server's log does not say how long its weights took")
        return cls(status["RssAnon"] / MB, status["VmHWM"] / MB, float(elapsed[1]), served.load_s)


def main(
    out: Annotated[Path, typer.Option(help="JSON file of the results.")],
    model: Annotated[str, typer.Option(help="Folder, or shape:NAME@LAYERS.")] = "shape:deepseek-v2-lite@3",
    kept: Annotated[
        str, typer.Option(help="Experts kept in each layer, comma-separated; the first is the baseline.")
    ] = ("64,32,16"),
    rounds: Annotated[int, typer.Option(min=1, help="How often every server is started.")] = 3,
) -> None:
    """Start every server in turns, and compare each with the first of its round."""
    folder = Path(resolve_model(model))
    shape = MoEShape.from_path(folder)
    arms = numbers("--kept", kept, shape.num_experts)
    starts: dict[int, list[Start]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as plans, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=rounds * len(arms))
        for turn in range(rounds):
            for arm in arms if turn % 2 else reversed(arms):
                progress.update(task, description=f"round {turn + 1}/{rounds}, {arm} experts")
                starts[arm].append(_start(folder, _flags(folder, shape, arm, Path(plans))))
                progress.advance(task)
    result = _result(model, folder, shape, starts)
    write_json(out, result)
    _print(result)


def _flags(folder: Path, shape: MoEShape, kept: int, plans: Path) -> list[str]:
    """The flag of an evenly spaced plan; none for the whole model."""
    if kept == shape.num_experts:
        return []
    experts = tuple(i * shape.num_experts // kept for i in range(kept))
    file = plans / f"{kept}.json"
    if not file.exists():
        identity = fingerprint(json.loads((folder / "config.json").read_text()), folder)
        layers = dict.fromkeys(shape.moe_layer_ids, experts)
        PrunePlan(model=identity, num_experts=shape.num_experts, layers=layers).save(file)
    return ["--moe-prune-plan", str(file)]


def _start(folder: Path, flags: list[str]) -> Start:
    extra = ["--dtype", "bfloat16", *flags]
    with server(str(folder), on_cpu=not has_accelerator(), policy=None, port=free_port(), extra=extra) as served:
        return Start.of(served)


def _result(model: str, folder: Path, shape: MoEShape, starts: dict[int, list[Start]]) -> dict[str, Any]:
    whole = next(iter(starts.values()))
    baseline = next(iter(starts))
    points = []
    for kept, mine in starts.items():
        removed_mb = (baseline - kept) * shape.num_moe_layers * shape.expert_bytes / MB
        freed = [w.resident_mb - m.resident_mb for w, m in zip(whole, mine, strict=True)]
        points.append(
            {
                "kept": kept,
                "experts_mb": kept * shape.num_moe_layers * shape.expert_bytes / MB,
                **{
                    name: spread([getattr(s, name) for s in mine])
                    for name in ("resident_mb", "peak_mb", "weights_s", "ready_s")
                },
                "peak_over_resident_mb": spread([s.peak_mb - s.resident_mb for s in mine]),
                "freed_mb": spread(freed),
                "freed_of_removed": spread([mb / removed_mb for mb in freed]) if removed_mb else None,
                "weights_s_ratio": spread(ratios([s.weights_s for s in mine], [s.weights_s for s in whole])),
                "ready_s_ratio": spread(ratios([s.ready_s for s in mine], [s.ready_s for s in whole])),
            }
        )
    files = sorted(folder.glob("*.safetensors"))
    return {
        **provenance("loadtest.pruned_memory"),
        "model": model,
        "moe_layers": shape.num_moe_layers,
        "expert_mb": shape.expert_bytes / MB,
        "largest_file_mb": max(file.stat().st_size for file in files) / MB,
        "points": points,
    }


def _print(result: dict[str, Any]) -> None:
    table = Table("experts", "resident MB", "peak MB", "freed MB", "of those removed", "weights s", "ready s")
    for p in result["points"]:
        share = p["freed_of_removed"]
        table.add_row(
            str(p["kept"]),
            *(f"{p[name]['median']:.0f}" for name in ("resident_mb", "peak_mb", "freed_mb")),
            "" if share is None else f"{share['median']:.1%}",
            *(f"{p[name]['median']:.1f}" for name in ("weights_s", "ready_s")),
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
