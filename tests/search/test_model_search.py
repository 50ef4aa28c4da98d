"""A search finds the best schedule of a model whose losses are known, and says truthfully what it loses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.search.allocation import Problem
from sglang_moe_opt.search.budget import of_bytes, of_everything, of_mean_na
from sglang_moe_opt.search.candidate import Candidate
from sglang_moe_opt.search.model_results import page, summary, write
from sglang_moe_opt.search.model_search import Search
from sglang_moe_opt.search.outcome import Settings
from sglang_moe_opt.search.sensitivity import Space, Text
from tests.search.synthetic_model import SyntheticModel, falling_costs, pieces

SHAPE = MoEShape(6, (1, 2, 3, 4, 5), 8, 64, 1, True, "sigmoid", hidden_size=16, moe_intermediate_size=8)
SPACE = Space(5, 1, 8)


class Quiet:
    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, title: str, tokens: int) -> Callable[[int], object]:
        self.stages.append(title)
        return lambda count: None


def search(model: SyntheticModel, **options: Any) -> Search:
    budget = options.pop("budget", of_mean_na(4, SHAPE, 1))
    return Search(
        SPACE,
        budget,
        Text("fit", pieces(40, 0), model),
        Text("check", pieces(80, 1), model),
        options.pop("settings", Settings()),
        Quiet(),
        **options,
    )


def true_best(model: SyntheticModel, total: int) -> float:
    costs = model.costs
    one = Problem(costs.levels, costs.terms, costs.pairs, np.tile(np.arange(1.0, 9), (5, 1))).best(total)[0]
    return costs.predict(one.layers)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mean", [4, 5.34])
def test_it_finds_the_best_schedule(seed: int, mean: float) -> None:
    model = SyntheticModel(falling_costs(seed))
    one = search(model, budget=of_mean_na(mean, SHAPE, 1))
    found = one.run()
    assert found.winner.mean_na <= mean
    assert found.rescale == "router"
    assert model.loss(found.winner) == pytest.approx(true_best(model, int(mean * 5)), rel=0.01)
    for ones in found.plain.values():
        for plain in ones:
            assert plain.total == int(mean * 5)
            assert one.check_text.difference(found.winner, plain).value <= 0


def test_the_text_that_decides_is_not_fitted_on() -> None:
    model = SyntheticModel(falling_costs(0))
    one = search(model)
    one.run()
    assert not {p.tobytes() for p in one.fit_text.pieces} & {p.tobytes() for p in one.check_text.pieces}
    assert len(one.check_text.nats) < len(one.fit_text.nats) / 3


@pytest.mark.parametrize("best", [1.15, 0.85])
def test_rescale_is_chosen_by_loss(best: float) -> None:
    model = SyntheticModel(falling_costs(1), best_rescale=best)
    found = search(model).run()
    assert found.rescale == best
    assert found.winner.rescale == best
    assert {c.rescale for ones in found.scaled.values() for c in ones} == {best}
    assert {c.rescale for ones in found.plain.values() for c in ones} == {"router"}
    kept = search(model, settings=Settings(rescale="mass")).run()
    assert kept.winner.rescale == "mass"


@pytest.mark.parametrize("bound", [0.4, 1.0, 4.0])
def test_the_cheapest_within_a_loss(bound: float) -> None:
    model = SyntheticModel(falling_costs(2), spread=0.05)
    one = search(model, budget=of_everything(SHAPE, 1), max_loss=bound)
    found = one.run()
    full = SPACE.full
    assert one.check_text.percent(found.winner, full).interval[1] <= bound
    per_token = one.check_text.nats[full].sum() / one.check_text.tokens
    cheaper = 100 * true_best(model, found.winner.total - 2) / per_token
    assert cheaper > 0.9 * bound


def test_a_loss_that_nothing_keeps_to() -> None:
    model = SyntheticModel(falling_costs(0))
    with pytest.raises(FieldError, match="--max-loss: got 1e-06, allowed: more"):
        search(model, budget=of_everything(SHAPE, 1), max_loss=1e-6).run()


def test_bytes_buy_the_same_as_experts() -> None:
    model = SyntheticModel(falling_costs(3))
    by_bytes = search(model, budget=of_bytes(20.5 * SHAPE.expert_bytes, SHAPE, 1)).run()
    assert by_bytes.winner == search(model).run().winner


def test_no_time_left_still_decides() -> None:
    one = search(SyntheticModel(falling_costs(0)), settings=Settings(seconds=0.0))
    found = one.run()
    assert not any(title.startswith(("best predicted", "swaps")) for title in one.watch.stages)
    assert found.winner in one.check_text.nats


def test_results_say_what_was_found(tmp_path: Path) -> None:
    one = search(SyntheticModel(falling_costs(0), best_rescale=1.2))
    found = one.run()
    report = {"model": "synthetic", **summary(one, found, SHAPE.expert_bytes)}
    assert report["winner"]["hint"] == found.winner.hint
    assert report["winner"]["expert_bytes_per_token"] == 20 * SHAPE.expert_bytes
    low, high = report["winner"]["loss_percent"]["interval_95"]
    assert low < report["winner"]["loss_percent"]["value"] < high
    uniform = next(row for row in report["compared"] if row["kind"] == "uniform" and row["rescale"] == "router")
    assert uniform["layers"] == uniform["hint"]["layers"] == [4] * 5
    assert uniform["winner_minus_it_percent"]["interval_95"][1] < 0
    losses = [row["predicted_percent"] for row in report["front"]]
    assert losses == sorted(losses, reverse=True)
    files = write(tmp_path, one, report)
    assert {file.name for file in files} == {"summary.json", "summary.md", "sensitivities.json", "search.png"}
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(report))
    assert "| found |" in page(report)
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")


def test_paired_differences_are_those_of_a_ratio() -> None:
    model = SyntheticModel(falling_costs(0))
    text = Text("t", pieces(30, 3), model)
    one, full = Candidate((4, 4, 4, 4, 4)), SPACE.full
    text.measure([one, full])
    lengths = np.array([len(p) - 1 for p in text.pieces])
    each = (text.nats[one] - text.nats[full]) / lengths
    found = text.difference(one, full)
    assert found.value == pytest.approx(np.average(each, weights=lengths))
    draws = np.random.default_rng(0).integers(0, 30, (4000, 30))
    bootstrap = [np.average(each[d], weights=lengths[d]) for d in draws]
    assert found.error == pytest.approx(np.std(bootstrap), rel=0.1)
    before = len(model.asked)
    text.measure([one])
    assert len(model.asked) == before
