"""What is plotted against the load, and the points of each curve, for the page's SVG and the PNG files alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

from loadtest.analysis import SPEEDUP_OF, Analysis, Cell, Imported, Spread
from loadtest.outputs import looks

MUCH = 20
"""From this ratio of the largest to the smallest value on, a latency's axis is logarithmic."""


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        tag: of the metric; of speed-ups, that of the throughput.
        reference: a value with a line: equal speed, the machine's ceiling.
        from_zero: the axis begins at zero.
        may_be_log: the axis is logarithmic where values differ much.
        about: a sentence for those who see it; may name the `{baseline}`.
        predicted: of `ExplainedPoint`, what the cost model says of the same number; shown hollow beside it.
    """

    title: str
    tag: str
    label: str
    is_speedup: bool = False
    reference: float | None = None
    from_zero: bool = True
    may_be_log: bool = False
    about: str = ""
    predicted: str = ""

    def spread(self, cell: Cell) -> Spread | None:
        return (cell.speedup if self.is_speedup else cell.values).get(self.tag)


@dataclass(frozen=True)
class Point:
    """A value at a load; `cell` is where it comes from, or `imported`."""

    x: float
    spread: Spread
    cell: Cell | None = None
    imported: Imported | None = None


@dataclass(frozen=True)
class Curve:
    """The points of one arm or one imported source, from small loads to large; `number` decides how it looks.

    is_imported: not measured here but by another tool, or predicted: hollow and without a line.
    """

    number: int
    name: str
    points: tuple[Point, ...]
    is_imported: bool = False


@dataclass(frozen=True)
class Group:
    """Plots under one heading, with a sentence about all of them."""

    title: str
    about: str
    panels: tuple[Panel, ...]


def _latency(title: str, tag: str) -> Panel:
    return Panel(title, tag, "milliseconds", may_be_log=True)


THROUGHPUT = Panel("Total throughput", "total_tok_s", "prompt and output tokens/s")
SPEEDUP = Panel(
    "Speed-up",
    SPEEDUP_OF[0],
    "times the total throughput",
    True,
    reference=1.0,
    from_zero=False,
    about="Speed-ups are over {baseline}, paired by round, with their 95 % interval as bars; with fewer than 3 rounds, "
    "their range.",
)
TTFT = (_latency("TTFT, median", "ttft_p50_ms"), _latency("TTFT, 99th percentile", "ttft_p99_ms"))
TPOT = (_latency("TPOT, median", "tpot_p50_ms"), _latency("TPOT, 99th percentile", "tpot_p99_ms"))
ITL = (_latency("ITL, median", "itl_p50_ms"), _latency("ITL, 99th percentile", "itl_p99_ms"))
DISTINCT = Panel(
    "Distinct experts",
    "distinct_experts",
    "experts per layer and decode step",
    about="Distinct experts are counted by the server.",
)
MEGABYTES = Panel("Read per token", "mb_per_token", "MB of weights and cache", may_be_log=True)
GIGABYTES = Panel("Read per second", "gb_s", "GB/s")
BANDWIDTH = Panel(
    "Share of the read bandwidth",
    "bandwidth_share",
    "GB/s over the measured ceiling",
    reference=1.0,
    about="The shares say what a step is bound by: near 1 there is nothing left to gain from that side of the machine.",
)
COMPUTE = Panel("Share of the peak", "compute_share", "GFLOP/s over the measured ceiling", reference=1.0)
GOODPUT = Panel("Goodput", "goodput_s", "good requests per second")
GOOD = Panel("Good requests", "good_share", "share of the requests sent")

PREDICTED = (
    replace(THROUGHPUT, title="Throughput beside its prediction", predicted="predicted_tok_s"),
    replace(SPEEDUP, title="Speed-up beside its prediction", predicted="predicted_speedup", about=""),
)

GROUPS = (
    Group("Throughput", "Medians of the rounds with their quartiles as bars.", (THROUGHPUT, SPEEDUP)),
    Group(
        "Latency",
        "TTFT: from sending a request to its first token. TPOT: time per output token after it, one value for each "
        "request. ITL: the times between chunks, all requests together.",
        (*TTFT, *TPOT, *ITL),
    ),
    Group("Goodput", "Requests that met every bound.", (GOODPUT, GOOD)),
    Group(
        "What a decode step costs",
        "Bytes and operations follow from the model's sizes, the batch and its distinct experts.",
        (DISTINCT, MEGABYTES, BANDWIDTH, COMPUTE),
    ),
    Group(
        "Prediction beside measurement",
        "Hollow: what the cost model predicts for just these loads, at the machine's ceilings. Filled: measured.",
        PREDICTED,
    ),
)


def kinds(analysis: Analysis) -> list[str]:
    """Kinds of load that have points, each with plots of its own."""
    return list(dict.fromkeys(load.kind for load in analysis.loads if any(c.load == load for c in analysis.cells)))


def curves(analysis: Analysis, panel: Panel, kind: str) -> list[Curve]:
    """Every curve that has points in this plot, in the order of the arms; imported ones last.

    A plot of predictions has the predicted curves in their place, and is empty where nothing was predicted.
    """
    if panel.predicted:
        return _with_predictions(analysis, panel, kind)
    found = []
    for number, name in enumerate(looks.names(analysis)):
        is_arm = number < len(analysis.arms)
        points = _of_arm(analysis, panel, kind, name) if is_arm else _of_source(analysis, panel, kind, name)
        if points:
            found.append(Curve(number, name, tuple(sorted(points, key=lambda p: p.x)), not is_arm))
    return found


def _with_predictions(analysis: Analysis, panel: Panel, kind: str) -> list[Curve]:
    measured, predicted = [], []
    for number, name in enumerate(analysis.arms):
        points = sorted(_of_arm(analysis, panel, kind, name), key=lambda point: point.x)
        known = [(point, _predicted(analysis, panel, point)) for point in points]
        hollow = tuple(replace(point, spread=spread) for point, spread in known if spread)
        if hollow:
            measured.append(Curve(number, name, tuple(points)))
            predicted.append(Curve(number, f"{name}, predicted", hollow, is_imported=True))
    return measured + predicted


def _predicted(analysis: Analysis, panel: Panel, point: Point) -> Spread | None:
    explained = point.cell and analysis.explanation.point(point.cell.arm, point.cell.load)
    value = explained and getattr(explained, panel.predicted)
    return Spread(value, value, value, (value,)) if value else None


def is_log(panel: Panel, found: list[Curve]) -> bool:
    values = [point.spread.median for curve in found for point in curve.points]
    return panel.may_be_log and min(values) > 0 and max(values) > MUCH * min(values)


def labels(analysis: Analysis, kind: str, found: list[Curve]) -> list[float]:
    """Values of the load axis: the measured levels, and where the imported points are."""
    ours = {load.value for load in analysis.loads if load.kind == kind}
    return sorted(ours | {point.x for curve in found for point in curve.points})


def _of_arm(analysis: Analysis, panel: Panel, kind: str, arm: str) -> list[Point]:
    cells = [cell for cell in analysis.cells if cell.arm == arm and cell.load.kind == kind]
    return [Point(cell.load.value, spread, cell) for cell in cells if (spread := panel.spread(cell))]


def _of_source(analysis: Analysis, panel: Panel, kind: str, source: str) -> list[Point]:
    if kind != "closed" or panel.is_speedup:
        return []
    return [
        Point(point.concurrency, Spread(value, value, value, (value,)), imported=point)
        for point in analysis.imported
        if point.source == source and (value := point.values.get(panel.tag)) is not None
    ]
