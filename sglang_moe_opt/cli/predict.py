"""`moe-opt predict`: what skipping or pruning would pay on a machine, from a cost model; and fitting that model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sglang_moe_opt.cli import predict_fit, predict_tables
from sglang_moe_opt.cli.devices import find_devices
from sglang_moe_opt.cli.serve import REFERENCE_MODELS, reference_model
from sglang_moe_opt.cli.values import T, numbers, parse_hint
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.files import write_atomically
from sglang_moe_opt.hints import resolve
from sglang_moe_opt.layer_table import LayerTable
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.perfmodel.curve import Consolidated, Curve, make_curve
from sglang_moe_opt.perfmodel.model import find_model
from sglang_moe_opt.perfmodel.parameters import Fitted
from sglang_moe_opt.perfmodel.predict import Count, Predictor, fewer_experts, fewer_experts_per_token
from sglang_moe_opt.perfmodel.step import Setup
from sglang_moe_opt.plan import PrunePlan
from sglang_moe_opt.policy import Policy
from sglang_moe_opt.pruning.statistics import ExpertStatistics
from sglang_moe_opt.shapes import is_shape

LEVELS = "2,4,8,16,32,48,64,96,128,192,256,384,512,768"
JSON_FILE, PNG_FILE = "prediction.json", "prediction.png"


def predict(
    model: Annotated[
        str | None, typer.Option(help="deepseek-v2-lite, deepseek-v2, deepseek-v3, a folder, config.json, shape:...")
    ] = None,
    hardware: Annotated[str | None, typer.Option(help="a800-pcie, h100, h200, b200, this, or a .json file.")] = None,
    tp: Annotated[int, typer.Option(help="Devices that share every layer.")] = 1,
    ep: Annotated[int, typer.Option(help="Groups of these devices that hold whole experts.")] = 1,
    na: Annotated[str | None, typer.Option(help="Routed experts per token; the first is the baseline: 8,6,4.")] = None,
    experts: Annotated[str | None, typer.Option(help="Experts kept in each layer; the first is the baseline.")] = None,
    schedule: Annotated[list[str] | None, typer.Option(help="b,h,e,p; repeatable.")] = None,
    hint: Annotated[list[str] | None, typer.Option(help="A request's moe_skip as JSON; repeatable.")] = None,
    prune_plan: Annotated[list[Path] | None, typer.Option("--prune-plan", help="A plan's file; repeatable.")] = None,
    consolidate: Annotated[
        int | None, typer.Option(metavar="K0", help="A curve with each token's own K0 experts, the rest shared.")
    ] = None,
    max_experts: Annotated[
        int | None, typer.Option(help="Of --consolidate: distinct experts that a step touches at least, if it can.")
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="Folder of moe-opt calibrate: how experts are chosen.")
    ] = None,
    skew: Annotated[
        float | None, typer.Option(help="Of the experts' popularity where not measured; 0 is even.")
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Requests at a time, comma-separated.")] = LEVELS,
    input_tokens: Annotated[int | None, typer.Option("--input", help="Tokens of a prompt (default 1024).")] = None,
    output_tokens: Annotated[int | None, typer.Option("--output", help="Tokens of an answer (default 1024).")] = None,
    count: Annotated[str, typer.Option(help="tok/s of `total` (prompt and answer) or `output` tokens.")] = "total",
    want: Annotated[float | None, typer.Option(help="Ask: what gives this speed-up, at --at?")] = None,
    at: Annotated[int | None, typer.Option(help="Concurrency of --want.")] = None,
    pays: Annotated[
        float | None, typer.Option(help="Ask: at which concurrencies is each curve so much faster?")
    ] = None,
    parameters: Annotated[Path | None, typer.Option(help="File that --fit wrote.")] = None,
    graph_max_batch: Annotated[
        int | None,
        typer.Option(help="Largest batch captured as a CUDA graph (default: the parameters'; with --fit none)."),
    ] = None,
    chunk: Annotated[int, typer.Option(help="Most tokens of a prefill step.")] = 8192,
    memory_fraction: Annotated[
        float | None, typer.Option(help="Share of the memory for weights and cache (default 0.88, at tp 8 0.81).")
    ] = None,
    weight_bits: Annotated[int | None, typer.Option(help="Width of the weights, if not the config's.")] = None,
    fit: Annotated[Path | None, typer.Option(help="Fit the parameters to a CSV table or a summary.json.")] = None,
    fit_all: Annotated[bool, typer.Option("--fit-all", help="Fit to all curves, not to the first alone.")] = False,
    hold: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of a parameter not to fit; repeatable.")] = None,
    save: Annotated[Path, typer.Option(help="Where --fit writes the parameters.")] = Path("parameters.json"),
    calibrate: Annotated[
        bool, typer.Option("--calibrate-this-machine", help="Measure this machine for --hardware this.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help=f"Folder for {JSON_FILE} and {PNG_FILE}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Predict throughput and speed-up by concurrency, or fit the model that predicts them."""
    try:
        if calibrate:
            measured = predict_fit.calibrate()
            if model is None:
                typer.echo(json.dumps(measured) if as_json else predict_tables.machine_line(measured))
                return
        setup = _setup(model, hardware, tp, ep, weight_bits, chunk, memory_fraction)
        if fit is not None:
            fit_report = predict_fit.fit_file(
                setup, fit, save, input_tokens, output_tokens, fit_all, hold or [], graph_max_batch, out
            )
            typer.echo(json.dumps(fit_report)) if as_json else predict_tables.print_fit(fit_report)
            return
        fitted = _parameters(setup, parameters, graph_max_batch, skew, str(model))
        read = ExpertStatistics.load(statistics) if statistics else None
        consolidated = _consolidated(setup.model.shape, consolidate, max_experts)
        curves = _curves(
            setup.model.shape, na, experts, schedule or [], hint or [], prune_plan or [], consolidated, read
        )
        if count not in ("total", "output"):
            raise FieldError("--count", count, "total, output")
        counted: Count = "output" if count == "output" else "total"
        predictor = Predictor(setup, fitted, _or_1024(input_tokens), _or_1024(output_tokens), counted)
        levels = _distinct("--concurrency", concurrency, int)
        report = _report(predictor, curves, levels, str(model))
        report |= _answers(predictor, curves, levels, want, at, pays)
        predictions = report.pop("predictions")
        if out is not None:
            from sglang_moe_opt.perfmodel.plots import write_predictions

            write_atomically(out / JSON_FILE, json.dumps(report, indent=1) + "\n")
            write_predictions(predictions, predict_tables.title(report), out / PNG_FILE)
    except ValueError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
    typer.echo(json.dumps(report)) if as_json else predict_tables.print_report(report)


def _setup(
    model: str | None, hardware: str | None, tp: int, ep: int, bits: int | None, chunk: int, fraction: float | None
) -> Setup:
    if model is None:
        raise FieldError("--model", None, "a model: deepseek-v2-lite, deepseek-v3, a folder, a config.json, ...")
    if hardware is None:
        raise FieldError("--hardware", None, "a machine: a800-pcie, h100, h200, b200, this, or a .json file")
    if chunk < 1:
        raise FieldError("--chunk", chunk, "an integer from 1")
    if fraction is not None and not 0 < fraction <= 1:
        raise FieldError("--memory-fraction", fraction, "a number above 0, up to 1")
    served = find_model(str(reference_model(model)) if model in REFERENCE_MODELS else model)
    if bits is not None:
        served = served.with_weight_bits(bits)
    return Setup(served, *find_devices(hardware, tp, ep), chunk, fraction)


def _parameters(setup: Setup, file: Path | None, graph_max_batch: int | None, skew: float | None, model: str) -> Fitted:
    kind = setup.hardware.kind
    fitted = Fitted.load(file) if file else Fitted.default(kind)
    if fitted.kind != kind:
        raise FieldError("--parameters", str(file), f"parameters of a {kind}, as {setup.hardware.name} is")
    if skew is None and is_shape(model):
        skew = 0.0  # random weights route evenly
    changed: dict[str, Any] = {}
    if skew is not None:
        changed["routing_skew"] = skew
    if graph_max_batch is not None:
        changed["graph_max_batch"] = graph_max_batch
    return replace(fitted, values=replace(fitted.values, **changed)).without(*changed)


def _curves(
    shape: MoEShape,
    na: str | None,
    experts: str | None,
    schedules: Sequence[str],
    hints: Sequence[str],
    plans: Sequence[Path],
    consolidated: Consolidated | None,
    statistics: ExpertStatistics | None,
) -> list[Curve]:
    """The product of --na and --experts first, its first curve being the baseline, then the others in turn."""
    counts: list[float | None] = list(_distinct("--na", na, float)) if na is not None else [None]
    kepts: list[int | None] = list(_distinct("--experts", experts, int)) if experts is not None else [None]
    found = []
    for kept in kepts:
        for each in counts:
            parts = [f"na {shape.top_k if each is None else each:g}"] if na or not experts else []
            parts += [f"{kept} experts"] if kept is not None else []
            found.append(make_curve(shape, ", ".join(parts), na=each, experts=kept, statistics=statistics))
    base = {"na": counts[0], "experts": kepts[0], "statistics": statistics}
    rules: list[tuple[str, object]] = [(text, {"schedule": numbers("--schedule", text, int)}) for text in schedules]
    rules += [(text, parse_hint(text, "--hint")) for text in hints]
    for label, rule in rules:
        curve = make_curve(shape, label, tables=_tables(rule, shape), experts=kepts[0], statistics=statistics)
        found.append(curve)
    for path in plans:
        plan = PrunePlan.load(path, verify=False)
        found.append(make_curve(shape, path.stem, na=counts[0], plan=plan, statistics=statistics))
    if consolidated is not None:
        label = f"k0 {consolidated.k0}"
        if consolidated.max_experts is not None:
            label += f", up to {consolidated.max_experts}"
        found.append(make_curve(shape, label, consolidated=consolidated, **base))  # type: ignore[arg-type]
    if len({curve.label for curve in found}) < len(found):
        labels = [curve.label for curve in found]
        raise FieldError("curves", next(one for one in labels if labels.count(one) > 1), "each curve once")
    return found


def _consolidated(shape: MoEShape, k0: int | None, max_experts: int | None) -> Consolidated | None:
    if max_experts is not None and k0 is None:
        raise FieldError("--max-experts", max_experts, "only together with --consolidate")
    if max_experts is not None and not 1 <= max_experts <= shape.num_experts:
        raise FieldError("--max-experts", max_experts, f"an integer from 1 to {shape.num_experts}")
    return None if k0 is None else Consolidated(k0, max_experts)


def _tables(rule: object, shape: MoEShape) -> tuple[LayerTable, LayerTable]:
    resolved = resolve(rule, Policy.builtin(), shape, field="schedule")
    return resolved.prefill, resolved.decode


def _report(predictor: Predictor, curves: Sequence[Curve], levels: Sequence[int], model: str) -> dict[str, Any]:
    predictions = predictor.table(curves, levels)
    setup = predictor.setup
    notes = []
    if not all(one.point.fits for one in predictions):
        names = dict.fromkeys(one.curve.label for one in predictions if not one.point.fits)
        notes.append(f"the weights do not fit beside one request ({', '.join(names)}): the cache is not counted")
    if queued := [one for one in predictions if one.point.running < 0.999 * one.load.concurrency]:
        least = min(one.load.concurrency for one in queued)
        notes.append(f"from {least} requests on some wait: the cache has no room for all")
    return {
        "model": model,
        "hardware": setup.hardware.name,
        "tp": setup.split.tp,
        "ep": setup.split.ep,
        "input": predictor.input_tokens,
        "output": predictor.output_tokens,
        "count": predictor.count,
        "baseline": curves[0].label,
        "points": [one.to_object() for one in predictions],
        "parameters": predictor.fitted.to_object()["parameters"],
        "notes": notes,
        "predictions": predictions,
    }


def _answers(
    predictor: Predictor,
    curves: Sequence[Curve],
    levels: Sequence[int],
    want: float | None,
    at: int | None,
    pays: float | None,
) -> dict[str, Any]:
    """Keys `want` and `pays`, where they were asked."""
    found: dict[str, Any] = {}
    for option, value in (("--want", want), ("--pays", pays)):
        if value is not None and not 1 <= value <= 1000:
            raise FieldError(option, value, "a speed-up from 1")
    if (want is None) != (at is None):
        raise FieldError("--want", want, "a speed-up, together with --at, a concurrency")
    if want is not None and at is not None:
        kinds: dict[str, Callable[[Setup, Curve], list[Curve]]] = {
            "na": fewer_experts_per_token,
            "experts": fewer_experts,
        }
        found["want"] = {"speedup": want, "concurrency": at}
        for name, variants in kinds.items():
            curve, most = predictor.least_reduction(curves[0], at, want, variants(predictor.setup, curves[0]))
            value = None if curve is None else round(curve.mean_na if name == "na" else curve.mean_kept)
            found["want"] |= {name: value, f"most_by_{name}": round(most, 4)}
    if pays is not None:
        if len(curves) == 1:
            raise FieldError("--pays", pays, f"it together with curves beside {curves[0].label}, such as --na 8,4")
        last = max(levels)
        ranges = {
            curve.label: [list(run) for run in predictor.pays(curve, curves[0], pays, last)] for curve in curves[1:]
        }
        found["pays"] = {"speedup": pays, "up_to": last, "concurrency": ranges}
    return found


def _distinct(option: str, text: str, kind: Callable[[str], T]) -> list[T]:
    return list(dict.fromkeys(numbers(option, text, kind)))


def _or_1024(value: int | None) -> int:
    return 1024 if value is None else value


def register(app: typer.Typer) -> None:
    """Add the command to `moe-opt`."""
    app.command("predict")(predict)
