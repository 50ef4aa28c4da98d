"""`moe-opt prune plan`: choose the experts that a model keeps."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sglang_moe_opt import __version__
from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.cli.prune_distill import distill
from sglang_moe_opt.cli.prune_export import export
from sglang_moe_opt.cli.prune_refine import refine
from sglang_moe_opt.cli.prune_sensitivity import sensitivity as measure_sensitivity
from sglang_moe_opt.cli.serve import resolve_model
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.files import sha256_of
from sglang_moe_opt.model_shape import MoEShape, read_config
from sglang_moe_opt.plan import PrunePlan
from sglang_moe_opt.pruning.budget import Budget
from sglang_moe_opt.pruning.criteria import CRITERIA, Criterion, Evidence, find_criterion
from sglang_moe_opt.pruning.planner import make_plan
from sglang_moe_opt.pruning.sensitivity import Sensitivity
from sglang_moe_opt.pruning.statistics import STATISTICS_FILE, ExpertStatistics

prune_app = typer.Typer(help="Models with fewer experts.", no_args_is_help=True)
prune_app.command("export")(export)
prune_app.command("refine")(refine)
prune_app.command("distill")(distill)
prune_app.command("sensitivity")(measure_sensitivity)


@prune_app.callback()
def _group() -> None:
    """Models with fewer experts."""


@prune_app.command("plan")
def plan(
    model: Annotated[str, typer.Option(help="Checkpoint folder, hub id, mini-v2, mini-v3, or shape:NAME@LAYERS.")],
    criterion: Annotated[str, typer.Option(help=", ".join(CRITERIA))],
    keep: Annotated[int, typer.Option(help="Experts kept per layer; on average with --global-budget.")],
    out: Annotated[Path, typer.Option(help="The plan file to write.")],
    statistics: Annotated[Path | None, typer.Option(help="Folder that moe-opt calibrate wrote.")] = None,
    global_budget: Annotated[bool, typer.Option("--global-budget", help="Spread the budget over layers.")] = False,
    sensitivity: Annotated[Path | None, typer.Option(help="Measured losses by layer, for --global-budget.")] = None,
    unequal_groups: Annotated[
        bool, typer.Option("--unequal-groups", help="The router's groups may keep different numbers.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of criteria that draw.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Choose the experts that a model keeps, by a criterion, and write them as a plan."""
    try:
        chosen = find_criterion(criterion)
        if sensitivity is not None and not global_budget:
            raise FieldError("--sensitivity", str(sensitivity), "only together with --global-budget")
        folder, config = read_model(model)
        evidence = replace(
            gather(chosen, MoEShape.from_config(config), folder, statistics, seed), equal_groups=not unequal_groups
        )
        made = make_plan(
            evidence,
            chosen,
            Budget(keep, spread=global_budget, equal_groups=not unequal_groups),
            model=fingerprint(config, folder),
            name=Path(model).name if folder else model,
            sensitivity=Sensitivity.load(sensitivity, evidence.shape) if sensitivity else None,
            provenance=provenance(evidence),
        )
        made.save(out)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None
    report = {"plan": str(out), **describe(made, evidence.shape)}
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(report)


def read_model(model: str) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint's folder, None where only its config is at hand, and its config. Raises ValueError."""
    path = Path(resolve_model(model))
    if path.is_dir():
        return path, read_config(path)
    from eval.served import read_model_config

    return None, read_model_config(model)


def gather(
    criterion: Criterion, shape: MoEShape, checkpoint: Path | None, statistics: Path | None, seed: int = 0
) -> Evidence:
    """What the criterion may look at. Raises ValueError where it needs statistics and there are none."""
    if statistics is None and criterion.needs_statistics:
        raise FieldError("--statistics", None, f"a folder that moe-opt calibrate wrote: {criterion.name} needs it")
    if checkpoint is None and criterion.needs_weights:
        raise FieldError("--model", None, f"a checkpoint folder: {criterion.name} needs the weights")
    loaded = ExpertStatistics.load(statistics) if statistics is not None else None
    return Evidence(shape, seed, loaded, statistics, checkpoint)


def provenance(evidence: Evidence) -> dict[str, Any]:
    """What a plan records of its making: statistics, version, command and time."""
    record: dict[str, Any] = {}
    if evidence.statistics is not None and evidence.statistics_folder is not None:
        record["statistics"] = {
            "sha256": sha256_of(evidence.statistics_folder / STATISTICS_FILE),
            "tokens": evidence.statistics.tokens,
            **evidence.statistics.provenance,
        }
    return record | {
        "versions": {"sglang-moe-opt": __version__},
        "command": ["moe-opt", *sys.argv[1:]],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe(plan: PrunePlan, shape: MoEShape) -> dict[str, Any]:
    """The plan in numbers, JSON-ready: kept experts and bytes of expert weights by layer and in all."""
    kept = {layer: len(ids) for layer, ids in plan.layers.items()}
    full = shape.num_moe_layers * shape.num_experts * shape.expert_bytes
    saved = full - sum(kept.values()) * shape.expert_bytes
    return {
        "digest": plan.digest,
        "method": plan.method,
        "num_experts": shape.num_experts,
        "kept": kept,
        "mean_kept": round(sum(kept.values()) / len(kept), 4),
        "gate_mode": plan.gate_mode(shape),
        "expert_bytes": {"full": full, "kept": full - saved, "saved": saved, "share_saved": round(saved / full, 4)},
        "layer_bytes_saved": {layer: (shape.num_experts - count) * shape.expert_bytes for layer, count in kept.items()},
    }


def _print(report: dict[str, Any]) -> None:
    console = Console()
    method, size = report["method"], report["expert_bytes"]
    table = Table(title=f"{method['criterion']}, {method['budget']} budget")
    for column in ("layer", "kept", "saved MB"):
        table.add_column(column, justify="right")
    for layer, kept in report["kept"].items():
        table.add_row(str(layer), f"{kept} of {report['num_experts']}", _megabytes(report["layer_bytes_saved"][layer]))
    console.print(table)
    console.print(
        f"expert weights: {_megabytes(size['kept'])} MB of {_megabytes(size['full'])} MB ({size['share_saved']:.1%} "
        f"saved)   gate: {report['gate_mode']}   digest {report['digest'][:12]}",
        highlight=False,
    )
    console.print(f"written to {report['plan']}", highlight=False, soft_wrap=True)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}"


def register(app: typer.Typer) -> None:
    """Add the group to `moe-opt`."""
    app.add_typer(prune_app, name="prune")
