"""From folders to curves: pairing, intervals, caveats, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from eval.results import ResultsError
from loadtest.analysis import Analysis, analyse, quartiles, ratio_interval
from loadtest.folder import ClientSide, LoadtestFolder, ServerSide
from loadtest.load import Load
from tests.loadtest.synthetic_load import ARMS, LOADS, write_load

C1, C4 = Load.parse("c1"), Load.parse("c4")


def changed(folder: LoadtestFolder, turn: int, load: Load, arm: str, **changes: Any) -> None:
    """Write a point again with other values."""
    point, records = folder.read_point(turn, load, arm)
    folder.write_point(point.model_copy(update=changes), records)


def caveats(folder: LoadtestFolder, arm: str = "full", load: Load = C4) -> tuple[str, ...]:
    cell = analyse([folder.root]).cell(arm, load)
    assert cell is not None
    return cell.caveats


@pytest.fixture
def small(tmp_path: Path) -> LoadtestFolder:
    return write_load(tmp_path / "run", loads=("c1", "c4"))


def test_every_arm_meets_every_load(small: LoadtestFolder) -> None:
    analysis = analyse([small.root])
    assert analysis.arms == tuple(ARMS)
    assert analysis.loads == (C1, C4)
    assert [(cell.arm, cell.load) for cell in analysis.cells] == [(a, c) for c in (C1, C4) for a in ARMS]
    assert all(len(cell.values["total_tok_s"].all) == 3 and not cell.caveats for cell in analysis.cells)
    assert analysis.runs[0].missing == ()
    assert analysis.failures == 0


def test_rounds_become_median_and_quartiles() -> None:
    spread = quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (spread.low, spread.median, spread.high) == (2, 3, 4)
    assert spread.all == (4, 1, 2, 3, 5)


def test_a_speed_up_has_students_interval_of_its_logarithms() -> None:
    ratio = ratio_interval([1.1, 1.2, 1.3])
    # logarithms: mean 0.18000, deviation 0.083550; t(2) at 97.5 % is 4.30265, over the root of 3
    assert ratio.median == 1.2
    assert ratio.low == pytest.approx(math.exp(0.18000 - 4.30265 * 0.083550 / math.sqrt(3)), rel=1e-4)
    assert ratio.high == pytest.approx(math.exp(0.18000 + 4.30265 * 0.083550 / math.sqrt(3)), rel=1e-4)


def test_with_fewer_than_three_rounds_it_has_their_range() -> None:
    assert (ratio_interval([1.2, 1.1]).low, ratio_interval([1.2, 1.1]).high) == (1.1, 1.2)
    assert ratio_interval([1.2]).low == ratio_interval([1.2]).high == 1.2


def test_speed_ups_are_paired_by_round(tmp_path: Path) -> None:
    folder = write_load(tmp_path / "run", loads=("c4",), rounds=4, noise=0.0)
    for turn in range(1, 5):  # the machine drifts: every round half as fast as the one before
        for arm in ARMS:
            point, _ = folder.read_point(turn, C4, arm)
            changed(folder, turn, C4, arm, end=point.end * 2**turn)
    cell = analyse([folder.root]).cell("na=2", C4)
    assert cell is not None
    assert cell.values["total_tok_s"].high > 1.5 * cell.values["total_tok_s"].low
    ratio = cell.speedup["total_tok_s"]
    assert ratio.low == pytest.approx(ratio.high)
    assert ratio.median > 1


def test_the_first_arm_has_no_speed_up(small: LoadtestFolder) -> None:
    analysis = analyse([small.root])
    assert {cell.arm for cell in analysis.cells if not cell.speedup} == {"full"}
    assert {analysis.baseline_of(arm) for arm in analysis.arms} == {"full"}


def test_rounds_without_a_partner_are_left_out(small: LoadtestFolder) -> None:
    (small.root / "points" / "r2-c4-full.json").unlink()
    analysis = analyse([small.root])
    assert analysis.runs[0].missing == ("round 2, c4, full",)
    full, fast = analysis.cell("full", C4), analysis.cell("na=2", C4)
    assert full is not None and fast is not None
    assert full.caveats == ("2 of 3 rounds",)
    assert len(fast.values["total_tok_s"].all) == 3
    assert len(fast.speedup["total_tok_s"].all) == 2


def test_a_point_that_did_not_run_at_its_load_says_so(small: LoadtestFolder) -> None:
    for turn in (1, 2, 3):
        changed(small, turn, C4, "full", server=ServerSide(running=[1, 3, 3], waiting=[1, 1, 2]), cut_off=1)
    assert caveats(small) == (
        "3 requests cut off at the point's time limit",
        "the server ran at most 3 of 4 at a time, 1 were queued",
    )
    assert caveats(small, "na=2") == ()


def test_a_point_whose_client_was_the_bottleneck_says_so(small: LoadtestFolder) -> None:
    busy = ClientSide(processes=2, cpu_s=19.0, wall_s=10.0, lag_ms=40.0)
    for turn in (1, 2, 3):
        changed(small, turn, C4, "full", client=busy)
    assert caveats(small) == ("the client was busy: 1.90 of 2 cores", "the client was late: 40 ms")


def test_a_point_above_its_ceiling_says_so(small: LoadtestFolder) -> None:
    for turn in (1, 2, 3):
        changed(small, turn, C4, "full", read_bandwidth=100e9)
    (found,) = caveats(small)
    assert found.endswith(" of the read bandwidth: something else slowed its measurement")
    assert float(found.split()[0]) > 1.05


def test_failures_are_counted_by_kind(tmp_path: Path) -> None:
    analysis = analyse([write_load(tmp_path / "run", loads=("c1", "c4"), failures=2).root])
    cell = analysis.cell("full", C4)
    assert cell is not None
    assert cell.errors == {"503": 6}
    assert cell.caveats == ("6 of 30 requests failed",)
    assert analysis.failures == 6


def test_a_server_that_tells_nothing_has_fewer_metrics(tmp_path: Path) -> None:
    cells = analyse([write_load(tmp_path / "run", loads=("c4",), tells=False).root]).cells
    assert all("distinct_experts" not in cell.values and "gb_s" in cell.values for cell in cells)
    assert all("bandwidth_share" not in cell.values and not cell.caveats for cell in cells)


def test_a_dense_model_has_no_experts_to_count(small: LoadtestFolder) -> None:
    small.write_manifest(small.read_manifest().model_copy(update={"model_config_json": {"model_type": "llama"}}))
    assert all("gb_s" not in cell.values for cell in analyse([small.root]).cells)


def test_arms_of_several_runs_keep_apart(tmp_path: Path) -> None:
    roots = [write_load(tmp_path / name, {"full": 6.0, "b: c": 2.0}, ("c4",)).root for name in ("one", "two")]
    analysis = analyse(roots)
    assert analysis.arms == ("one: full", "one: b: c", "two: full", "two: b: c")
    assert analysis.baseline_of("two: b: c") == "two: full"
    assert analysis.baseline_of("one: full") == "one: full"
    assert len(analysis.cells) == 4


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path: Path) -> None:
    analysis = analyse([write_load(tmp_path / name / "run", loads=("c4",)).root for name in ("a", "b")])
    assert [run.name for run in analysis.runs] == ["a/run", "b/run"]
    assert len(analysis.arms) == 2 * len(ARMS)


def test_closed_and_open_loops_stand_beside_each_other(tmp_path: Path) -> None:
    roots = [write_load(tmp_path / str(i), loads=(load,)).root for i, load in enumerate(("rate4", "c4"))]
    assert [load.label for load in analyse(roots).loads] == ["c4", "rate4"]


def test_what_cannot_be_read_is_refused(tmp_path: Path, small: LoadtestFolder) -> None:
    with pytest.raises(ResultsError, match="no manifest"):
        analyse([tmp_path / "none"])
    with pytest.raises(ResultsError, match="the same folder twice"):
        analyse([small.root, small.root])
    for file in (small.root / "points").iterdir():
        file.unlink()
    with pytest.raises(ResultsError, match="no point of the load test has run"):
        analyse([small.root])


def test_order_of_loads_is_by_size_not_by_name(tmp_path: Path) -> None:
    analysis: Analysis = analyse([write_load(tmp_path / "run", loads=LOADS[::-1], rounds=1).root])
    assert [load.label for load in analysis.loads] == list(LOADS)
