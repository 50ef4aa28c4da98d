"""A run's cells from its summary.json: for runs that keep no points, such as results committed with the documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.results import ResultsError, read_json
from loadtest.analysis import Cell, Imported, Spread
from loadtest.folder import KIND
from loadtest.load import Load
from loadtest.metrics import BY_TAG

FILE = "summary.json"


@dataclass(frozen=True)
class Summary:
    """What a summary.json holds of one run: its cells, the points that did not run, and those of other tools."""

    cells: tuple[Cell, ...]
    missing: tuple[str, ...]
    imported: tuple[Imported, ...]


def read_summary(folder: Path, names: Mapping[str, str]) -> Summary | None:
    """None where there is none.

    Args:
        names: the labels of the run's arms with the names that they get.

    Raises:
        ResultsError: a file that is none, or that compares several runs.
    """
    file = folder / FILE
    if not file.exists():
        return None
    content: Any = read_json(file)
    try:
        if content["kind"] != KIND:
            raise ResultsError(f"{file}: of kind {content['kind']!r}, not of a load test")
        if len(content["runs"]) != 1:
            raise ResultsError(f"{file}: compares {len(content['runs'])} runs; report the folders of the runs")
        return Summary(
            cells=tuple(_cell(point, names) for point in content["points"]),
            missing=tuple(content["runs"][0]["missing"]),
            imported=tuple(
                Imported(point["source"], int(point["concurrency"]), _known(point["metrics"]))
                for point in content.get("imported", [])
            ),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{file}: not the summary of a load test ({type(error).__name__}: {error})") from None


def _cell(point: Mapping[str, Any], names: Mapping[str, str]) -> Cell:
    return Cell(
        arm=names[point["arm"]],
        load=Load.parse(point["load"]),
        values={tag: _spread(values) for tag, values in _known(point["metrics"]).items()},
        speedup={tag: _spread(values) for tag, values in point["speedup"].items()},
        errors={name: int(count) for name, count in point["errors"].items()},
        caveats=tuple(point["caveats"]),
    )


def _known(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of today: a summary may be older."""
    return {tag: value for tag, value in metrics.items() if tag in BY_TAG}


def _spread(values: Mapping[str, Any]) -> Spread:
    return Spread(
        float(values["median"]), float(values["low"]), float(values["high"]), tuple(map(float, values["all"]))
    )
