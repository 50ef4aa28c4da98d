"""From files to rows, differences, verdicts and the Pareto front, on runs with known effects."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.compare import Comparison, compare, pareto, shape_of
from eval.results import ResultsError
from tests.eval.synthetic_run import FEW_SCHEDULES, PLAN_SCHEDULES, PLANS, TASKS, plan_entry, write_run


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare([write_run(tmp_path_factory.mktemp("run"), flips=0.005).root])


def row(comparison: Comparison, label: str):
    return next(row for row in comparison.rows if row.label == label)


def test_full_comes_first_then_falling_mean_na(comparison: Comparison) -> None:
    assert comparison.baseline.label == "full"
    assert comparison.baseline.is_baseline
    means = [row.mean_na for row in comparison.rows[1:]]
    assert means == sorted(means, reverse=True)
    assert {row.label for row in comparison.rows} == set(FEW_SCHEDULES)


def test_shapes_are_told_from_the_layers(comparison: Comparison) -> None:
    shapes = {row.label: row.shape for row in comparison.rows}
    assert shapes["na=2"] == shapes["full"] == "uniform"
    assert (shapes["6,4,2,7"], shapes["2,4,6,7"], shapes["adaptive"]) == ("descending", "ascending", "dynamic")
    assert shape_of([2, 4, 4, 2]) == "mixed"
    assert shape_of([3]) == "uniform"


def test_fewer_experts_lose_and_the_verdict_says_how_much(comparison: Comparison) -> None:
    average = row(comparison, "na=1").average
    assert average.change.verdict.startswith("loss of 15")
    assert average.change.p_adjusted < 1e-6
    assert average.change.difference.value == pytest.approx(
        average.estimate.value - comparison.baseline.average.estimate.value
    )
    bits = row(comparison, "na=1").bits_per_byte
    assert bits.change.verdict.startswith("loss of 3.1")
    assert row(comparison, "6,4,2,7").average.estimate.value > row(comparison, "2,4,6,7").average.estimate.value


def test_the_average_is_the_mean_of_the_papers_tasks_only(comparison: Comparison) -> None:
    names = [name for name, (_, _, in_average, _) in TASKS.items() if in_average]
    assert [task.name for task in comparison.averaged] == names
    found = comparison.baseline
    assert found.average.estimate.value == pytest.approx(
        sum(found.tasks[name].estimate.value for name in names) / len(names)
    )


def test_corrections_count_schedules_and_tasks(comparison: Comparison) -> None:
    others = len(FEW_SCHEDULES) - 1
    assert (comparison.headline_comparisons, comparison.task_comparisons) == (others, others * len(TASKS))
    for found in comparison.rows[1:]:
        assert found.average.change.p_adjusted >= found.average.change.difference.p


def test_margin_over_chance_is_one_for_full_and_falls(comparison: Comparison) -> None:
    assert comparison.baseline.average.left == pytest.approx(1)
    assert 0 < row(comparison, "na=1").average.left < row(comparison, "na=4").average.left < 1
    assert row(comparison, "na=1").bits_per_byte.left is None
    assert all(comparison.beats_chance.values())


def test_the_front_leaves_out_what_is_beaten(comparison: Comparison) -> None:
    on_front = {row.label for row in comparison.rows if row.average.on_front}
    assert {"na=1", "na=2", "na=4", "6,4,2,7"} <= on_front
    assert "2,4,6,7" not in on_front
    assert pareto([(1,), (2,), (2,), (3,)], [5, 7, 6, 7]) == [True, True, False, False]
    assert pareto([(1,), (1,)], [5, 5]) == [True, True]
    assert pareto([(6, 1), (6, 0.5), (3, 1), (3, 0.5)], [9, 9, 8, 7]) == [False, True, True, True]


def test_the_fewest_experts_within_a_margin(comparison: Comparison) -> None:
    assert comparison.fewest_within("bits_per_byte", 1.0).label in ("na=4", "2,4,6,7")
    assert comparison.fewest_within("bits_per_byte", 0.6).label == "na=4"
    assert comparison.fewest_within("bits_per_byte", 0.01) is None
    assert comparison.fewest_within("average", 20).label == "na=1"


def test_repeats_give_a_noise_band_and_more_certainty(tmp_path: Path, comparison: Comparison) -> None:
    runs = [write_run(tmp_path / str(seed), flips=0.03, seed=seed).root for seed in range(3)]
    once, thrice = compare(runs[:1]), compare(runs)
    assert once.noise is None
    assert thrice.noise.band > 0
    assert len(thrice.baseline.average.runs) == 3
    assert thrice.baseline.runs == 3
    errors = [row(c, "adaptive").average.change.difference.error for c in (once, thrice)]
    assert errors[1] < errors[0]
    task = row(thrice, "adaptive").tasks["rte"]
    assert len(task.runs) == 3


def test_identical_runs_show_no_difference(tmp_path: Path) -> None:
    found = compare([write_run(tmp_path / "a", {"full": "full", "again": {"na": 6}}).root])
    again = row(found, "again")
    assert again.average.change.difference.value == 0
    assert again.average.change.verdict.startswith("no loss detectable above 0.3")
    assert again.bits_per_byte.change.verdict == "identical on all 200 texts"


def test_runs_that_share_full_may_add_schedules(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", {"full": "full", "na=4": {"na": 4}})
    second = write_run(tmp_path / "b", {"na=2": {"na": 2}})
    assert {row.label for row in compare([first.root, second.root]).rows} == {"full", "na=4", "na=2"}
    with pytest.raises(ResultsError, match="no complete results of 'full'"):
        compare([second.root])


def test_only_texts_or_only_choices_are_enough(tmp_path: Path) -> None:
    texts = compare([write_run(tmp_path / "a", tasks=("bits_per_byte",)).root])
    assert texts.baseline.average is None
    assert texts.fewest_within("average", 1.0) is None
    choices = compare([write_run(tmp_path / "b", tasks=("rte", "cloze")).root])
    assert choices.baseline.bits_per_byte is None
    assert choices.baseline.average.estimate.value == pytest.approx(choices.baseline.tasks["rte"].estimate.value)


# --- plans ---

ORDER = ["full", "na=4", "reap-48", "reap-48/na=4", "merged <16>", "merged <16>/na=4", "reap-16", "reap-16/na=4"]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare([write_run(tmp_path_factory.mktemp("run"), PLAN_SCHEDULES, plans=PLANS).root])


def test_plans_follow_the_whole_model_by_falling_memory(pruned: Comparison) -> None:
    assert [row.label for row in pruned.rows] == ORDER
    assert [row.label for row in pruned.unpruned] == ["full", "na=4"]
    assert [row.share for row in pruned.rows] == [1, 1, 0.75, 0.75, 0.25, 0.25, 0.25, 0.25]
    assert pruned.headline_comparisons == len(ORDER) - 1
    assert row(pruned, "reap-16").average.change.verdict.startswith("loss of")


def test_what_is_cheaper_in_one_way_stays_on_the_front(pruned: Comparison) -> None:
    assert {row.label for row in pruned.rows if row.bits_per_byte.on_front} == set(ORDER)


def test_a_smaller_model_that_is_as_good_takes_full_off_the_front(tmp_path: Path) -> None:
    found = compare([write_run(tmp_path, {"full": "full"}, plans=[plan_entry("most", 63)]).root])
    full, most = found.rows
    assert full.average.estimate.value == most.average.estimate.value
    assert (full.average.on_front, most.average.on_front) == (False, True)
    assert full.bits_per_byte.on_front  # there it is better by a trifle
    assert found.smallest_within("bits_per_byte", 1.0) is most
    assert found.fewest_within("bits_per_byte", 1.0) is None


def test_fewest_experts_and_least_memory_are_two_questions(pruned: Comparison) -> None:
    assert pruned.fewest_within("bits_per_byte", 1.0).label == "na=4"
    assert pruned.fewest_within("average", 20).label == "na=4"
    assert pruned.smallest_within("bits_per_byte", 1.0).label == "reap-48"
    assert pruned.smallest_within("bits_per_byte", 100).label in ("reap-16", "merged <16>")
    assert pruned.smallest_within("bits_per_byte", 0.01) is None


def test_runs_under_different_plans_are_combined(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole", PLAN_SCHEDULES).root
    one, other = (write_run(tmp_path / plan.name, PLAN_SCHEDULES, plans=[plan], whole=False).root for plan in PLANS[:2])
    found = compare([one, other, whole])
    assert [row.label for row in found.rows] == [label for label in ORDER if "merged" not in label]
    assert found.rows[0].plan is None
    with pytest.raises(ResultsError, match="no complete results of 'full'"):
        compare([one, other])
    alone = compare([one])
    assert (alone.baseline.label, alone.unpruned) == ("reap-48", alone.rows)
    assert alone.fewest_within("average", 20).label == "reap-48/na=4"
    assert alone.smallest_within("average", 20) is None


def test_one_name_for_two_plans_is_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(kept), plans=[plan_entry("half", kept)]).root for kept in (32, 30)]
    with pytest.raises(ResultsError, match="schedule 'half' is not what it is in the other runs"):
        compare(runs)
    again = write_run(tmp_path / "again", plans=[plan_entry("half", 32)], seed=1).root
    assert row(compare([runs[0], again]), "half").runs == 2
