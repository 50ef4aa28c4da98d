"""From the folders of load tests to curves: every metric at every point, speed-ups paired by round, and caveats.

A pure function of the files: any old run can be reported again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from eval.results import ResultsError
from loadtest.explain import explain
from loadtest.explanation import Basis, Explanation
from loadtest.folder import LoadtestFolder, Manifest
from loadtest.load import Load
from loadtest.metrics import ALL, Measurement
from sglang_moe_opt.model_shape import MoEShape

SPEEDUP_OF = ("total_tok_s", "output_tok_s")
SHORT_OF_LOAD = 0.95
"""Below this share of the asked concurrency in the server's batch a point did not run at its load."""
BUSY_CLIENT = 0.9
"""CPU seconds per second and process from which the client may have been the bottleneck."""
LATE_CLIENT = 0.1
"""Lag of the client's event loop, as a share of the median time between tokens, from which latencies suffer."""
CEILINGS = {"bandwidth_share": "read bandwidth", "compute_share": "peak"}
ABOVE_CEILING = 1.05
"""From here on a share of what the machine can do says that the ceiling was not measured well."""


@dataclass(frozen=True)
class Spread:
    """Rounds of one number: their median and an interval around it, quartiles or 95 % as the holder says."""

    median: float
    low: float
    high: float
    all: tuple[float, ...]


@dataclass(frozen=True)
class Cell:
    """One arm under one load.

    Attributes:
        arm, load: which.
        values: by metric tag, median and quartiles over the rounds; metrics that cannot be known are absent.
        speedup: of the throughputs in SPEEDUP_OF over the first arm, paired by round, with a 95 % interval (Student's
            t on logarithms; the range of the rounds where there are fewer than 3); empty for the first arm.
        errors: failures by what went wrong.
        caveats: what a reader must know before quoting the point.
    """

    arm: str
    load: Load
    values: dict[str, Spread]
    speedup: dict[str, Spread] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One folder and its manifest; `name` tells it from the others, `missing` are the points that did not run.

    is_summary: its points are gone, and everything comes from its summary.json.
    """

    name: str
    folder: Path
    manifest: Manifest
    missing: tuple[str, ...]
    is_summary: bool = False


@dataclass(frozen=True)
class Imported:
    """A point that another tool measured, by our metric tags."""

    source: str
    concurrency: int
    values: dict[str, float]


@dataclass(frozen=True)
class Analysis:
    """Everything that a report shows. Arms of several runs are told apart as `RUN: ARM`.

    basis: what `explanation` knows of the machine besides.
    """

    runs: tuple[Run, ...]
    arms: tuple[str, ...]
    loads: tuple[Load, ...]
    cells: tuple[Cell, ...]
    imported: tuple[Imported, ...] = ()
    basis: Basis = field(default_factory=Basis)

    @cached_property
    def explanation(self) -> Explanation:
        """What each decode step was bound by, and the cost model's predictions. Raises FieldError."""
        return explain(self, self.basis)

    @property
    def model(self) -> str:
        return ", ".join(dict.fromkeys(run.manifest.model for run in self.runs))

    def cell(self, arm: str, load: Load) -> Cell | None:
        return next((c for c in self.cells if c.arm == arm and c.load == load), None)

    def baseline_of(self, arm: str) -> str:
        """The arm that `arm` is compared with: the first of its run."""
        firsts: dict[str, str] = {}
        for run in self.runs:
            names = list(self.names_of(run).values())
            firsts |= dict.fromkeys(names, names[0])
        return firsts[arm]

    def names_of(self, run: Run) -> dict[str, str]:
        """The labels of a run's arms with the names that reports give them."""
        names = arm_names(run.name if len(self.runs) > 1 else None, run.manifest)
        return dict(zip((arm.label for arm in run.manifest.arms), names, strict=True))

    @property
    def failures(self) -> int:
        return sum(sum(cell.errors.values()) for cell in self.cells)


def analyse(folders: Sequence[Path], imported: Sequence[Imported] = (), basis: Basis | None = None) -> Analysis:
    """Read and compare load tests; of folders without points, their summary.json.

    Raises:
        ResultsError: a folder that cannot be read, or in which no point has run.
    """
    from loadtest.summary import read_summary  # it needs the types of this module

    runs, arms, cells, loads = [], [], [], []
    beside = list(imported)
    for root, name in zip(folders, _run_names(folders), strict=True):
        folder = LoadtestFolder(root)
        manifest = folder.read_manifest()
        names = arm_names(name if len(folders) > 1 else None, manifest)
        by_label = dict(zip((arm.label for arm in manifest.arms), names, strict=True))
        found, missing = _measurements(folder, manifest)
        if found:
            cells += _cells(found, manifest, by_label)
        elif summary := read_summary(root, by_label):
            cells += summary.cells
            missing = list(summary.missing)
            beside += [point for point in summary.imported if point not in beside]
        else:
            raise ResultsError(f"{root}: no point of the load test has run")
        runs.append(Run(name, root, manifest, tuple(missing), is_summary=not found))
        arms += names
        loads += manifest.all_loads
    ordered = sorted(dict.fromkeys(loads), key=lambda load: (load.kind, load.value))
    every = tuple(dict.fromkeys(arms))
    return Analysis(tuple(runs), every, tuple(ordered), tuple(cells), tuple(beside), basis or Basis())


def _run_names(folders: Sequence[Path]) -> list[str]:
    """Each folder's name, with as many of its parents' as tell it from the others."""
    paths = [folder.resolve() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ResultsError(f"{', '.join(map(str, folders))}: the same folder twice")


def arm_names(run: str | None, manifest: Manifest) -> list[str]:
    """The run's arms as reports call them; `run` where there are several."""
    return [arm.label if run is None else f"{run}: {arm.label}" for arm in manifest.arms]


Rounds = dict[int, Measurement]


def _measurements(folder: LoadtestFolder, manifest: Manifest) -> tuple[dict[tuple[str, Load], Rounds], list[str]]:
    shape = _shape(manifest)
    found: dict[tuple[str, Load], Rounds] = {}
    missing = []
    for load in manifest.all_loads:
        for arm in manifest.arms:
            for turn in range(1, manifest.rounds + 1):
                if not folder.has_point(turn, load, arm.label):
                    missing.append(f"round {turn}, {load.label}, {arm.label}")
                    continue
                point, records = folder.read_point(turn, load, arm.label)
                kept = arm.plan.kept if arm.plan else None
                found.setdefault((arm.label, load), {})[turn] = Measurement(
                    point, records, manifest.ramp_s, manifest.goodput_ms, shape, arm.mean_na, kept
                )
    return found, missing


def _shape(manifest: Manifest) -> MoEShape | None:
    """None where the config is not known, or not that of a mixture of experts."""
    try:
        return None if manifest.model_config_json is None else MoEShape.from_config(manifest.model_config_json)
    except ValueError:
        return None


def _cells(found: dict[tuple[str, Load], Rounds], manifest: Manifest, names: dict[str, str]) -> list[Cell]:
    first = manifest.arms[0].label
    derived = {key: {turn: _values(m) for turn, m in rounds.items()} for key, rounds in found.items()}
    cells = []
    for (arm, load), rounds in found.items():
        values = derived[arm, load]
        base = derived.get((first, load), {}) if arm != first else {}
        cells.append(
            Cell(
                names[arm],
                load,
                {
                    metric.tag: quartiles(numbers)
                    for metric in ALL
                    if (numbers := [v[metric.tag] for v in values.values() if metric.tag in v])
                },
                {tag: ratio for tag in SPEEDUP_OF if (ratio := _speedup(values, base, tag))},
                dict(Counter(r.error for m in rounds.values() for r in m.failed if r.error)),
                tuple(_caveats(rounds, values, load, manifest.rounds)),
            )
        )
    return cells


def _values(measurement: Measurement) -> dict[str, float]:
    derived = ((metric.tag, metric.derive(measurement)) for metric in ALL)
    return {tag: value for tag, value in derived if value is not None and math.isfinite(value)}


def quartiles(numbers: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, median, high = np.percentile(numbers, [25, 50, 75])
    return Spread(float(median), float(low), float(high), tuple(numbers))


def _speedup(values: dict[int, dict[str, float]], base: dict[int, dict[str, float]], tag: str) -> Spread | None:
    pairs = [
        values[turn][tag] / base[turn][tag]
        for turn in values
        if turn in base and base[turn].get(tag, 0) > 0 and values[turn].get(tag, 0) > 0
    ]
    return ratio_interval(pairs) if pairs else None


def ratio_interval(pairs: Sequence[float]) -> Spread:
    """Median of ratios with a 95 % interval for their geometric mean; with fewer than 3 their range."""
    median = float(np.median(pairs))
    if len(pairs) < 3:
        return Spread(median, min(pairs), max(pairs), tuple(pairs))
    logs = np.log(pairs)
    half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return Spread(median, math.exp(logs.mean() - half), math.exp(logs.mean() + half), tuple(pairs))


def _caveats(rounds: Rounds, values: dict[int, dict[str, float]], load: Load, asked: int) -> list[str]:
    found = []
    failures = sum(len(m.failed) for m in rounds.values())
    if failures:
        found.append(f"{failures} of {sum(len(m.records) for m in rounds.values())} requests failed")
    if cut := sum(m.point.cut_off for m in rounds.values()):
        found.append(f"{cut} requests cut off at the point's time limit")
    if len(rounds) < asked:
        found.append(f"{len(rounds)} of {asked} rounds")
    medians: dict[str, Any] = {
        tag: float(np.median([v[tag] for v in values.values() if tag in v] or [np.nan]))
        for tag in ("running", "waiting", "client_lag_ms", "itl_p50_ms", "client_cores", *CEILINGS)
    }
    wanted = load.concurrency
    if wanted and medians["running"] < SHORT_OF_LOAD * wanted:
        queued = f", {medians['waiting']:.0f} were queued" if medians["waiting"] >= 1 else ""
        found.append(f"the server ran at most {medians['running']:.0f} of {wanted} at a time{queued}")
    processes = max(m.point.client.processes for m in rounds.values())
    if medians["client_cores"] > BUSY_CLIENT * processes:
        found.append(f"the client was busy: {medians['client_cores']:.2f} of {processes} cores")
    if medians["client_lag_ms"] > max(5.0, LATE_CLIENT * medians["itl_p50_ms"]):
        found.append(f"the client was late: {medians['client_lag_ms']:.0f} ms")
    for tag, what in CEILINGS.items():
        if medians[tag] > ABOVE_CEILING:
            found.append(f"{medians[tag]:.2f} of the {what}: something else slowed its measurement")
    return found
