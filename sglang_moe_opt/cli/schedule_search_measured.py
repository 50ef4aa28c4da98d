"""`moe-opt schedule search --from-measurements`: what a CSV of measured schedules says about all the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.schedule import ModelShape, SkipSchedule
from sglang_moe_opt.schedule_limits import LayerBase

if TYPE_CHECKING:
    from sglang_moe_opt.search.measured_search import MeasuredSearch, Scored


def run_measured(
    csv: Path,
    *,
    column: str | None,
    shape: ModelShape,
    mean_na: float | None,
    top: int,
    predict: Sequence[str],
    out: Path | None,
    as_json: bool,
    layer_base: LayerBase = "moe",
    lower_is_better: bool | None = None,
) -> None:
    """Fit a CSV's measurements, print predictions and proposals, and write search.json and search.png into `out`.

    Raises:
        ValueError: one line: a broken file, a schedule that the model does not allow, matplotlib missing with `out`.
    """
    from sglang_moe_opt.search.measured_search import search_measurements
    from sglang_moe_opt.search.measurements import Measurements

    rules = [parse_schedule(text, layer_base) for text in predict]
    data = Measurements.load(csv, shape, column, layer_base=layer_base, lower_is_better=lower_is_better)
    found = search_measurements(data, mean_na=mean_na, top=top, predict=rules, layer_base=layer_base)
    report = {"measurements": csv.name, **found.to_object()}
    if out is not None:
        from sglang_moe_opt.cli.schedule_search_png import draw
        from sglang_moe_opt.files import write_atomically

        draw(found, out / "search.png")
        write_atomically(out / "search.json", json.dumps(report, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(report))
        return
    _print(found, Console())
    if out is not None:
        typer.echo(f"{out}: search.json, search.png")


def measured_shape(model: str | None, layers: int | None, top_k: int | None) -> ModelShape:
    """The model of the measurements: its config, or only its number of MoE layers and its top-k. Raises ValueError."""
    from sglang_moe_opt.cli.schedule import load_shape
    from sglang_moe_opt.search.measurements import PlainShape

    if model is None:
        if layers is None or top_k is None:
            raise FieldError("--model", None, "a model, or --layers and --top-k together")
        return PlainShape(layers, top_k)
    if layers is not None or top_k is not None:
        raise FieldError("--model", model, "alone: --layers and --top-k are in its config")
    return load_shape(model)


def parse_schedule(text: str, layer_base: LayerBase = "moe") -> SkipSchedule:
    """`6,4,2,26` is (b, h, e, p), `6-5-5-4` the experts of each MoE layer, `4` the same in all. Raises FieldError."""
    allowed = "b,h,e,p such as 6,4,2,26, one number for each MoE layer such as 6-5-5-4, or one number for all"
    try:
        if "-" in text:
            return SkipSchedule(layers=tuple(int(part) for part in text.split("-")))
        numbers = tuple(int(part) for part in text.split(","))
    except FieldError:
        raise
    except ValueError:
        raise FieldError("predict", text, allowed) from None
    if len(numbers) == 1:
        return SkipSchedule(na=numbers[0])
    if len(numbers) != 4:
        raise FieldError("predict", text, allowed)
    return SkipSchedule(schedule=(numbers[0], numbers[1], numbers[2], numbers[3]), layer_base=layer_base)


def _print(found: MeasuredSearch, console: Console) -> None:
    data, validation = found.measurements, found.cross_validation
    console.print(
        f"{len(data)} measurements of {data.column}, {int(data.groups.max()) + 1} distinct schedules, mean na "
        f"{data.mean_na.min():.2f} to {data.mean_na.max():.2f}",
        highlight=False,
    )
    if data.repeat_deviation is not None:
        console.print(f"repeats of one schedule: standard deviation {data.repeat_deviation:.2f}", highlight=False)
    console.print(
        f"{found.surrogate}: left-out schedules are predicted with a mean absolute error of "
        f"{validation.mean_absolute_error:.3f} (largest {validation.largest_error:.2f}); {validation.coverage:.0%} of "
        f"them lie in their 95 % intervals",
        highlight=False,
    )
    groups = [
        ("by score", found.best_measured),
        ("by prediction", found.best_measured_predicted),
        ("any b,h,e,p", found.best_schedules),
        ("any table", (found.best_layers,)),
    ]
    console.print(_table(f"mean na <= {found.budget:g}; {found.searched} b,h,e,p searched", groups))
    if found.asked:
        console.print(_table("asked for", [("", found.asked)]))


def _table(title: str, groups: Sequence[tuple[str, Sequence[Scored]]]) -> Table:
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    table.add_column("schedule", overflow="fold")
    for name in ("mean na", "predicted", "95 % interval", "measured"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, scored in groups:
        for index, one in enumerate(scored):
            table.add_row(
                name if index == 0 else "",
                one.label,
                f"{one.mean_na:.2f}",
                f"{one.predicted:.2f}",
                f"{one.low:.2f} to {one.high:.2f}",
                "" if one.measured is None else f"{one.measured:.2f}",
            )
        table.add_section()
    return table
