"""`moe-opt schedule`: `show` says what a schedule does on a model, layer by layer, and the weight bytes it saves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sglang_moe_opt.auto import AutoProfile
from sglang_moe_opt.cli.schedule_calibrate import calibrate
from sglang_moe_opt.cli.schedule_search import search
from sglang_moe_opt.cli.schedule_weights import weights
from sglang_moe_opt.cli.serve import REFERENCE_MODELS, hub_config, reference_model
from sglang_moe_opt.cli.values import number_or_word, numbers, parse_hint
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.hints import ResolvedHint, resolve
from sglang_moe_opt.layer_table import MASS, LayerTable
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy
from sglang_moe_opt.shapes import ShapeSpec, is_shape

schedule_app = typer.Typer(help="Expert-skipping schedules.", no_args_is_help=True)
schedule_app.command("weights")(weights)
schedule_app.command("calibrate")(calibrate)
schedule_app.command("search")(search)
app = schedule_app


@schedule_app.callback()
def _group() -> None:
    """Expert-skipping schedules."""


@schedule_app.command("show")
def show(
    model: Annotated[str, typer.Option(help="Folder, config.json, hub id, mini-v2, mini-v3, or shape:NAME@LAYERS.")],
    na: Annotated[int | None, typer.Option(help="Experts per token in every MoE layer.")] = None,
    schedule: Annotated[str | None, typer.Option(help="b,h,e,p")] = None,
    layer_base: Annotated[str | None, typer.Option(help="What p counts: moe (default) or all layers.")] = None,
    layers: Annotated[str | None, typer.Option(help="Experts of each MoE layer: 6,5,...")] = None,
    min_ratio: Annotated[
        str | None,
        typer.Option(help="Keep weights >= this x the token's largest; or one for each MoE layer."),
    ] = None,
    min_weight: Annotated[str | None, typer.Option(help="Keep weights >= this; or one for each MoE layer.")] = None,
    top_p: Annotated[
        str | None, typer.Option(help="Keep the smallest set of this weight share; or one for each MoE layer.")
    ] = None,
    min_na: Annotated[
        int | None, typer.Option(help="Experts that --min-ratio, --min-weight, --top-p always keep.")
    ] = None,
    rescale: Annotated[str | None, typer.Option(help="router, mass, or a factor; or one for each MoE layer.")] = None,
    hint: Annotated[str | None, typer.Option(help="A request's moe_skip, as JSON or a profile's name.")] = None,
    profile: Annotated[str | None, typer.Option(help="A profile of the policy.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Policy file (default: SGLANG_MOE_OPT_CONFIG or built in).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a schedule on a model: experts per layer, weight bytes per token, digest."""
    options = {"na": na, "min_na": min_na, "layer_base": layer_base}
    texts = (("schedule", schedule), ("layers", layers))
    magnitudes = (("min_ratio", min_ratio), ("min_weight", min_weight), ("top_p", top_p), ("rescale", rescale))
    try:
        rule: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        rule |= {name: numbers(name, text, int) for name, text in texts if text is not None}
        rule |= {name: _numbers_or_words(text) for name, text in magnitudes if text is not None}
        shape = load_shape(model)
        policy = load_policy(config)
        policy.check(shape)
        resolved = resolve(_one_hint(rule, hint, profile), policy, shape, field="schedule")
        report = describe(resolved, shape)
        if resolved.levels:
            report["auto"] = describe_auto(policy.autos[resolved.profile], shape, policy.limits(shape).min_na)
    except ValueError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(report)


def load_shape(model: str) -> MoEShape:
    """The shape of a checkpoint folder, a config.json, a reference model, a hub id, or `shape:NAME@LAYERS`.

    Raises:
        ValueError: the config cannot be read, or is no mixture of experts that we know.
    """
    if is_shape(model):
        return MoEShape.from_config(ShapeSpec.parse(model).config())
    if model in REFERENCE_MODELS:
        return MoEShape.from_path(reference_model(model))
    if Path(model).exists() or model.count("/") != 1:
        return MoEShape.from_path(model)
    return MoEShape.from_path(hub_config(model))


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
            "is_upper_bound": not table.is_static or (phase == "decode" and bool(resolved.levels)),
            "weight_bytes": weight_bytes,
            "share_of_full": round(weight_bytes["total"] / full["total"], 4),
            "layers": _rows(table, shape),
        }
    return {"profile": resolved.profile, "full_weight_bytes": full["total"], "phases": phases}


SHOWN_AT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Batch sizes at which an auto profile's choice is shown."""


def describe_auto(profile: AutoProfile, shape: MoEShape, min_na: int) -> dict[str, Any]:
    """Levels of an auto profile with their mean na, and what it chooses by tokens of a step that all opted in."""
    model, rule = profile.speed_model(shape, min_na), profile.rule
    choices = [
        {
            "tokens": tokens,
            "speedup": dict(zip(rule.levels, (round(s, 4) for s in model.speeds(tokens, tokens)), strict=True)),
            "level": rule.levels[model.best(tokens, tokens, rule.min_gain)],
        }
        for tokens in SHOWN_AT
    ]
    return {
        "levels": dict(zip(rule.levels, model.na, strict=True)),
        "speedup_from": "prediction" if rule.speedup is None else "measurement",
        "min_gain": rule.min_gain,
        "hold_steps": rule.hold_steps,
        "choices": choices,
    }


def _one_hint(rule: dict[str, Any], hint: str | None, profile: str | None) -> object:
    given = [bool(rule), hint is not None, profile is not None]
    if sum(given) > 1:
        raise FieldError("schedule", "several", "one of --hint, --profile, or a rule such as --na")
    if hint is not None:
        return parse_hint(hint)
    return rule or profile


def _numbers_or_words(text: str) -> float | str | list[float | str]:
    """One value, or where there are commas the values of the layers."""
    parts = [number_or_word(part.strip()) for part in text.split(",")]
    return parts if len(parts) > 1 else parts[0]


def _rows(table: LayerTable, shape: MoEShape) -> list[dict[str, Any]]:
    return [
        {"layer": layer, "na": int(table.na[index]), "rule": _rule(table, index)}
        for index, layer in enumerate(shape.moe_layer_ids)
    ]


def _rule(table: LayerTable, index: int) -> str:
    """One layer's behaviour in words."""
    if k0 := int(table.own_first[index]):
        text = f"own first {k0}, others of the step's up to {table.na[index]}"
    elif not table.min_na[index]:
        text = "full" if table.na[index] >= table.top_k else f"first {table.na[index]}"
    else:
        ratio = float(table.min_ratio[index])
        parts = [f"weight >= {ratio:g} x largest" if ratio > 0 else f"weight >= {-ratio:g}"] if ratio else []
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
    if "auto" in report:
        _print_auto(console, report["auto"])


def _print_auto(console: Console, auto: dict[str, Any]) -> None:
    title = f"chosen at a batch size (min_gain {auto['min_gain']:g}, hold_steps {auto['hold_steps']})"
    table = Table("tokens", *(f"{name} (na {na:g})" for name, na in auto["levels"].items()), "level", title=title)
    for choice in auto["choices"]:
        speeds = (f"{factor:.2f}" for factor in choice["speedup"].values())
        table.add_row(str(choice["tokens"]), *speeds, choice["level"])
    console.print(table)
    first = next(iter(auto["levels"]))
    console.print(f"speed-ups of a decode step over {first}, from a {auto['speedup_from']}", highlight=False)


def register(app: typer.Typer) -> None:
    """Add the group to `moe-opt`."""
    app.add_typer(schedule_app, name="schedule")
