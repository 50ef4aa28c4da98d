"""Tables by router weight keep to their budget in the engine, and win only where they are better for certain."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_moe_opt.magnitude.weights import RouterWeights
from sglang_moe_opt.schedule import SkipSchedule
from sglang_moe_opt.search.by_weight import CHECK_HEADROOM, HEADROOM, ByWeight, Judged, Stage
from sglang_moe_opt.search.by_weight import Sample as RouterSample
from sglang_moe_opt.search.candidate import Candidate
from sglang_moe_opt.search.model_results import page, summary, write
from sglang_moe_opt.search.outcome import Settings
from tests.search.synthetic_model import SyntheticModel, falling_costs
from tests.search.test_model_search import SHAPE, search

FACTORS = (0.95, 0.96, 0.97, 0.98, 0.99)


def router_weights(seed: int, steepness: float) -> RouterWeights:
    generator = np.random.default_rng(seed)
    logits = -np.sort(-steepness * generator.normal(size=(5, 3000, 8)), axis=2)
    weights = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return RouterWeights(SHAPE.moe_layer_ids, weights.astype(np.float32))


SAMPLE = router_weights(0, 1.0)
SERVED = router_weights(1, 1.4)
"""What the engine's routers say once earlier layers have dropped experts: steeper than in the sample."""


class Engine:
    """Keeps what `SERVED` weights pass, times `check` on the text that decides."""

    def __init__(self, check_pieces: int = 80, check: float = 1.0, fixed: float | None = None) -> None:
        self.check_pieces, self.check, self.fixed = check_pieces, check, fixed
        self.asked: list[tuple[str, int]] = []

    def __call__(self, hint: Mapping[str, Any], pieces: Sequence[Any]) -> float:
        self.asked.append((json.dumps(hint), len(pieces)))
        schedule = SkipSchedule.from_object(dict(hint), "hint")
        kept = float(SERVED.mean_na(schedule.expand(SHAPE)).mean()) if self.fixed is None else self.fixed
        return kept * (self.check if len(pieces) == self.check_pieces else 1.0)


def stage(model: SyntheticModel, engine: Engine, **options: Any) -> Stage:
    one = search(model, **options)
    sample = RouterSample(SAMPLE, lambda schedule: schedule.expand(SHAPE), lambda table: FACTORS)
    return Stage(one, one.run(), sample, engine)


def test_it_wins_where_weights_lose_less_and_keeps_to_the_budget() -> None:
    engine = Engine()
    one = stage(SyntheticModel(falling_costs(0), by_weight=0.7), engine)
    judged = one.run()
    assert judged.wins and judged.best is not None and judged.gain is not None
    assert judged.gain.interval[1] < 0
    for each in judged.tried:
        assert each.one is not None
        wanted = sum(each.layers) / 5
        assert each.rounds[0].realised is not None and abs(each.rounds[0].realised / wanted - 1) > HEADROOM
        assert each.mean_na == pytest.approx(wanted, rel=HEADROOM)
    assert judged.fit_na <= 4 * (1 + HEADROOM) and judged.check_na <= 4 * (1 + CHECK_HEADROOM)
    assert {each.way for each in judged.tried} == {"router", "fit"}
    assert all("rescale" not in each.one.hint for each in judged.tried if each.one and each.way == "router")
    uniform = [each.layers for each in judged.tried if len(set(each.layers)) == 1]
    assert uniform and one.found.winner.layers in {each.layers for each in judged.tried}
    fitted = next(each.one for each in judged.tried if each.way == "fit")
    assert fitted is not None and fitted.hint["rescale"] == list(FACTORS) and fitted.hint["min_na"] == 1
    # every answer of the engine is for one of the two texts, the one that decides last
    assert [count for _, count in engine.asked][-1] == 80 and {count for _, count in engine.asked[:-1]} == {40}


def test_the_factor_that_rank_chose_is_tried_too() -> None:
    one = stage(SyntheticModel(falling_costs(0), best_rescale=0.85), Engine())
    judged = one.run()
    assert one.found.rescale == 0.85
    assert {each.way for each in judged.tried} == {"router", "fit", 0.85}
    assert all(each.one and each.one.hint["rescale"] == 0.85 for each in judged.tried if each.way == 0.85)


def test_the_winner_by_rank_stays_where_weights_are_not_better() -> None:
    for share in (1.0, 1.3):
        judged = stage(SyntheticModel(falling_costs(0), by_weight=share), Engine()).run()
        assert judged.best is not None and not judged.wins


def test_a_mean_above_the_budget_on_the_text_that_decides_does_not_win() -> None:
    model = SyntheticModel(falling_costs(0), by_weight=0.7)
    assert not stage(model, Engine(check=1.03)).run().wins
    assert stage(model, Engine(check=1.003)).run().wins


def test_thresholds_that_never_keep_to_the_table_are_left_out() -> None:
    one = stage(SyntheticModel(falling_costs(0), by_weight=0.5), Engine(fixed=4.5))
    judged = one.run()
    assert all(each.one is None and each.mean_na == 4.5 for each in judged.tried)
    assert judged.best is None and not judged.wins
    assert not any(isinstance(known, ByWeight) for known in one.search.check_text.nats)


def test_plain_schedules_count_among_those_by_rank() -> None:
    """A by-weight schedule must beat the best by rank, which the winner of the search need not be."""
    one = stage(SyntheticModel(falling_costs(0), by_weight=0.9), Engine())
    better = next(iter(one.found.plain["uniform"]))
    losses = one.search.check_text.nats
    losses[better] = losses[one.search.space.full].copy()
    judged = one.run()
    assert judged.rank == better and not judged.wins


def test_the_same_again_asks_for_the_same() -> None:
    asked = []
    for _ in range(2):
        engine = Engine()
        stage(SyntheticModel(falling_costs(0), by_weight=0.7), engine).run()
        asked.append(engine.asked)
    assert asked[0] == asked[1]


def test_without_time_two_tables_are_tried_and_none_that_keeps_nothing() -> None:
    one = stage(SyntheticModel(falling_costs(0)), Engine(), settings=Settings(seconds=0.0))
    assert len({each.layers for each in one.run().tried}) == 2
    one.found = replace(one.found, winner=Candidate((0, 5, 5, 5, 5)), finalists=[])
    assert {each.layers for each in one.run().tried} == {(4,) * 5}


def test_routers_that_renormalise_are_stopped_from_it() -> None:
    one = stage(SyntheticModel(falling_costs(0)), Engine())
    one.search.space = replace(one.search.space, renormalize=True)
    tried = one.run().tried
    assert {each.way for each in tried} == {1.0, "fit"}
    assert all(each.one.hint["rescale"] == 1.0 for each in tried if each.one and each.way == 1.0)


def test_results_say_which_rule_won(tmp_path: Path) -> None:
    for share, engine in ((0.7, Engine()), (1.3, Engine()), (0.7, Engine(check=1.03)), (0.7, Engine(fixed=4.5))):
        one = stage(SyntheticModel(falling_costs(0), by_weight=share), engine)
        judged = one.run()
        report = {"model": "synthetic", **summary(one.search, one.found, SHAPE.expert_bytes, judged, SAMPLE.tokens)}
        part, winner = report["by_weight"], report["winner"]
        assert part["won"] == judged.wins == (winner["rule"] == "min_weight")
        assert part["rank_winner"]["hint"] == one.found.winner.hint
        assert SkipSchedule.from_object(winner["hint"], "hint").expand(SHAPE).mean_na <= 8
        assert set(report["finalists"][0]) >= {"layers", "rescale", "percent"}
        text = page(report)
        assert part["verdict"] in text
        if judged.wins:
            assert winner["mean_na"] == pytest.approx(4, rel=HEADROOM)
            assert winner["share_of_full"] == pytest.approx(0.5, rel=HEADROOM)
            assert winner["minus_rank_percent"]["interval_95"][1] < 0
            assert "| found by weight |" in text and "| best by rank |" in text
        elif judged.best is not None:
            assert "| best by weight |" in text and "| found |" in text
        if engine.check > 1:  # a plot takes a second
            _check_written(tmp_path, one, report)
    assert "no thresholds" in part["verdict"]


def _check_written(folder: Path, one: Stage, report: dict[str, Any]) -> None:
    write(folder, one.search, report)
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(report))
    rows = json.loads((folder / "sensitivities.json").read_text())
    assert all(isinstance(na, int) for row in rows["fit"] for na in row["layers"])
    assert len(rows["check"]) < len(one.search.check_text.nats) or report["by_weight"]["best"] is None


def test_verdicts() -> None:
    from sglang_moe_opt.search.by_weight_results import verdict

    best = ByWeight((4, 4), schedule=SkipSchedule(min_weight=0.1), way="fit", top_k=8)
    rank = Candidate((4, 4))
    assert verdict(Judged([], rank, best, 4.0, 4.1)).startswith("by rank: the best by weight is 2.5 % above")
    assert verdict(Judged([], rank, best, 4.0, 4.0)).startswith("by rank: the best by weight is not better")
    assert verdict(Judged([], rank, best, 4.0, 4.0, None, True)).startswith("by weight: it keeps 4.000 experts")
