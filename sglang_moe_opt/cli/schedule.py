"""`moe-opt schedule show`: what a schedule does on a model, layer by layer, and the weight bytes it saves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.hints import ResolvedHint, resolve
from sglang_moe_opt.layer_table import MASS, LayerTable
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy
from sglang_moe_opt.shapes import ShapeSpec, is_shape

schedule_app = typer.Typer(help="Expert-skipping schedules.", no_args_is_help=True)
app = schedule_app


@schedule_app.callback()
def _group() -> None:
    """Expert-skipping schedules."""


@schedule_app.command("show")
def show(
    model: Annotated[str, typer.Option(help="Checkpoint folder, config.json, or shape:NAME@LAYERS.")],
    na: Annotated[int | None, typer.Option(help="Experts per token in every MoE layer.")] = None,
    schedule: Annotated[str | None, typer.Option(help="b,h,e,p")] = None,
    layer_base: Annotated[str | None, typer.Option(help="What p counts: moe (default) or all layers.")] = None,
    layers: Annotated[str | None, typer.Option(help="Experts of each MoE layer: 6,5,...")] = None,
    min_ratio: Annotated[float | None, typer.Option(help="Keep weights >= this x the token's largest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the smallest set of this weight share.")] = None,
    min_na: Annotated[int | None, typer.Option(help="Experts that --min-ratio and --top-p always keep.")] = None,
    rescale: Annotated[str | None, typer.Option(help="router, mass, or a factor.")] = None,
    hint: Annotated[str | None, typer.Option(help="A request's moe_skip, as JSON or a profile's name.")] = None,
    profile: Annotated[str | None, typer.Option(help="A profile of the policy.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Policy file (default: SGLANG_MOE_OPT_CONFIG or built in).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a schedule on a model: experts per layer, weight bytes per token, digest."""
    options = {"na": na, "min_ratio": min_ratio, "top_p": top_p, "min_na": min_na, "layer_base": layer_base}
    texts = (("schedule", schedule), ("layers", layers))
    try:
        rule: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        rule |= {name: _integers(name, text) for name, text in texts if text is not None}
        if rescale is not None:
            rule["rescale"] = _number_or_word(rescale)
        shape = load_shape(model)
        policy = load_policy(config)
        policy.check(shape)
        resolved = resolve(_one_hint(rule, hint, profile), policy, shape, field="schedule")
        report = describe(resolved, shape)
    except ValueError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(report)


def load_shape(model: str) -> MoEShape:
    """The shape of a checkpoint folder, a config.json, or `shape:NAME@LAYERS`. Raises ValueError."""
    return MoEShape.from_config(ShapeSpec.parse(model).config()) if is_shape(model) else MoEShape.from_path(model)


def load_policy(config: Path | None) -> Policy:
    """The policy of `--config`, else of SGLANG_MOE_OPT_CONFIG, else the built-in one. Raises PolicyError."""
    path = config or os.environ.get("SGLANG_MOE_OPT_CONFIG")
    return Policy.load(path) if path else Policy.builtin()


def describe(resolved: ResolvedHint, shape: MoEShape) -> dict[str, Any]:
    """The report as a JSON-ready object: profile, and for each phase its layers, mean, digest and weight bytes."""
    full = shape.weight_bytes_per_token([shape.top_k] * shape.num_moe_layers)
    phases = {}
    for phase, table in (("prefill", resolved.prefill), ("decode", resolved.decode)):
        weight_bytes = shape.weight_bytes_per_token(table.na.tolist())
        phases[phase] = {
            "digest": table.digest,
            "mean_na": round(table.mean_na, 4),
            "is_upper_bound": not table.is_static,
            "weight_bytes": weight_bytes,
            "share_of_full": round(weight_bytes["total"] / full["total"], 4),
            "layers": _rows(table, shape),
        }
    return {"profile": resolved.profile, "full_weight_bytes": full["total"], "phases": phases}


def _one_hint(rule: dict[str, Any], hint: str | None, profile: str | None) -> object:
    given = [bool(rule), hint is not None, profile is not None]
    if sum(given) > 1:
        raise FieldError("schedule", "several", "one of --hint, --profile, or a rule such as --na")
    if hint is not None:
        return _parse_hint(hint)
    return rule or profile


def _parse_hint(text: str) -> object:
    if not text.lstrip().startswith(("{", "[", '"')):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise FieldError("hint", text, "JSON, or a profile's name") from None


def _integers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise FieldError(name, text, "integers separated by commas") from None


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _rows(table: LayerTable, shape: MoEShape) -> list[dict[str, Any]]:
    return [
        {"layer": layer, "na": int(table.na[index]), "rule": _rule(table, index)}
        for index, layer in enumerate(shape.moe_layer_ids)
    ]


def _rule(table: LayerTable, index: int) -> str:
    """One layer's behaviour in words."""
    if not table.min_na[index]:
        text = "full" if table.na[index] >= table.top_k else f"first {table.na[index]}"
    else:
        parts = [f"weight >= {table.min_ratio[index]:g} x largest"] if table.min_ratio[index] > 0 else []
        parts += [f"share {table.top_p[index]:g}"] if table.top_p[index] < 1 else []
        text = " and ".join(parts) + f", at least {table.min_na[index]}"
    factor = float(table.rescale[index])
    if factor == MASS:
        return f"{text}, mass kept"
    return text if factor == 1.0 else f"{text}, x {factor:g}"


def _print(report: dict[str, Any]) -> None:
    console = Console()
    phases = report["phases"]
    same = phases["prefill"] == phases["decode"]
    for phase, entry in phases.items():
        if same and phase == "decode":
            continue
        table = Table(title=f"{report['profile']} ({'prefill and decode' if same else phase})")
        table.add_column("layer", justify="right")
        table.add_column("na", justify="right")
        table.add_column("rule")
        for row in entry["layers"]:
            table.add_row(str(row["layer"]), str(row["na"]), row["rule"])
        console.print(table)
        bound = "at most " if entry["is_upper_bound"] else ""
        size, full = entry["weight_bytes"]["total"] / 1e6, report["full_weight_bytes"] / 1e6
        console.print(f"mean na {bound}{entry['mean_na']:g}   digest {entry['digest']}", highlight=False)
        console.print(
            f"weights per token alone: {bound}{size:.1f} MB of {full:.1f} MB ({entry['share_of_full']:.1%})",
            highlight=False,
        )


def register(app: typer.Typer) -> None:
    """Add the group to `moe-opt`."""
    app.add_typer(schedule_app, name="schedule")
