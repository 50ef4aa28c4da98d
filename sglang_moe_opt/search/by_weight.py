"""The last stage of a search: a table's experts chosen by router weight instead of by rank. Pure.

For the best tables by rank, thresholds of `min_weight` are made from a sample under which each layer keeps as many
experts on average as the table says, and corrected by what the engine keeps on the text to fit on. The text that
decides then compares them with the best schedules by rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sglang_moe_opt.layer_table import LayerTable
from sglang_moe_opt.magnitude import budget
from sglang_moe_opt.magnitude.budget import FIT, Round
from sglang_moe_opt.magnitude.weights import RouterWeights
from sglang_moe_opt.schedule import SkipSchedule
from sglang_moe_opt.schedule_limits import Rescale
from sglang_moe_opt.search.candidate import UNIFORM, Candidate
from sglang_moe_opt.search.model_search import Search
from sglang_moe_opt.search.outcome import Found
from sglang_moe_opt.search.sensitivity import Difference, Ids

HEADROOM: Final = 0.005
"""Share by which the mean number of experts may be above the table's on the text that thresholds were corrected on."""
CHECK_HEADROOM: Final = 0.01
"""The same on the text that decides, which has no part in the thresholds."""
CORRECTIONS: Final = 4
MOST_TABLES: Final = 4
NEEDED_TABLES: Final = 2
"""The winner's table and the best uniform one are tried in any case."""

Way = Rescale | Literal["fit"]
"""What becomes of kept weights."""
Count = Callable[[Mapping[str, Any], Sequence[Ids]], float]
"""Experts that the engine keeps of some text under a hint, on average over tokens and layers."""


@dataclass(frozen=True)
class ByWeight(Candidate):
    """A schedule of `min_weight`; `layers` is how many experts each layer is to keep on average.

    Attributes:
        schedule: with the thresholds; its rescale is in place of the table's.
        way: how that rescale was chosen.
        top_k: of the model.
    """

    schedule: SkipSchedule = field(kw_only=True)
    way: Way = field(kw_only=True)
    top_k: int = field(kw_only=True)

    @property
    def hint(self) -> dict[str, Any]:
        """`moe_skip` of a request, and the rule of a profile."""
        return self.schedule.to_object()

    @property
    def applied(self) -> dict[str, Any]:
        """Weights decide; the server gives the most that a layer may keep."""
        return {"mean_na": float(self.top_k), "dynamic": True}

    @property
    def label(self) -> str:
        """Short and unique, such as `6-4-4-2 by weight, fit`."""
        return f"{'-'.join(map(str, self.layers))} by weight, {self.way}"


@dataclass(frozen=True)
class Sample:
    """What thresholds and factors are made of.

    Attributes:
        weights: router weights of a calibration's tokens.
        expand: a schedule on the model.
        fit: each layer's factor on kept weights by least squares, for a table.
    """

    weights: RouterWeights
    expand: Callable[[SkipSchedule], LayerTable]
    fit: Callable[[LayerTable], tuple[float, ...]]


@dataclass(frozen=True)
class Tried:
    """One table by weight: all rounds of its thresholds, and the schedule of the best one that keeps to the table.

    Attributes:
        layers: the table.
        way: of rescaling.
        rounds: with what the engine kept in each.
        one: the schedule; None where no round kept to the table.
        mean_na: experts that the engine kept under it, on the text to fit on; of the least round without `one`.
    """

    layers: tuple[int, ...]
    way: Way
    rounds: list[Round]
    one: ByWeight | None
    mean_na: float


@dataclass(frozen=True)
class Judged:
    """What the text that decides says.

    Attributes:
        tried: every table by weight.
        rank: the schedule by rank that lost least there, plain ones included; most often the search's winner.
        best: by weight, that lost least there; None where none kept to its table.
        fit_na, check_na: experts that the engine kept under it on both texts.
        gain: best minus `rank`, in nats per token.
        wins: it is better for certain, and keeps to the budget on the text that decides too.
    """

    tried: list[Tried]
    rank: Candidate
    best: ByWeight | None = None
    fit_na: float = 0.0
    check_na: float = 0.0
    gain: Difference | None = None
    wins: bool = False


@dataclass
class Stage:
    """The stage for one search.

    Attributes:
        search: that has run.
        found: what it ended with.
        sample: thresholds are made from.
        count: asks the engine.
    """

    search: Search
    found: Found
    sample: Sample
    count: Count

    def run(self) -> Judged:
        """Try and judge. Raises RuntimeError of the engine."""
        tried: list[Tried] = []
        began = self.search.seconds_left
        for number, layers in enumerate(self._tables()):
            spent = began - self.search.seconds_left
            if number >= NEEDED_TABLES and self.search.seconds_left < 2 * spent / number:
                break  # the half of a table's time is an allowance for deciding
            tried += [self._calibrated(layers, way) for way in self._ways()]
        return self._judged(tried)

    def _tables(self) -> list[tuple[int, ...]]:
        """The winner's, the best uniform one, those of further finalists; weights cannot keep less than one expert."""
        found, loss = self.found, self._fit_loss
        uniform = min([*found.plain[UNIFORM], *found.scaled[UNIFORM]], key=loss)
        tables = dict.fromkeys(one.layers for one in (found.winner, uniform, *found.finalists))
        return [layers for layers in tables if min(layers) > 0][:MOST_TABLES]

    def _ways(self) -> tuple[Way, ...]:
        """Weights left alone, factors by least squares, and what the search by rank chose.

        Left alone is what the router does where it does not renormalise; where it does, its own way is not tried.
        """
        alone: Way = 1.0 if self.search.space.renormalize else "router"
        chosen = alone if self.found.rescale == "router" else self.found.rescale
        return tuple(dict.fromkeys((alone, FIT, chosen)))

    def _calibrated(self, layers: tuple[int, ...], way: Way) -> Tried:
        """Thresholds for one table, moved until the engine keeps to it."""
        text, space = self.search.fit_text, self.search.space
        tokens, rounds_at_most = sum(map(len, text.pieces)), 1 + CORRECTIONS
        title = f"by weight {'-'.join(map(str, layers))}, {way}"
        advance = self.search.watch.stage(title, rounds_at_most * tokens)

        def measure(schedule: SkipSchedule) -> float:
            text.asked += tokens
            kept = self.count(schedule.to_object(), text.pieces)
            advance(tokens)
            return kept

        wanted = budget.Budget.of_layers(
            "min_weight", tuple(map(float, layers)), min_na=max(1, space.lowest), rescale=way
        )
        rounds = budget.Search(
            budget=wanted,
            weights=self.sample.weights,
            expand=self.sample.expand,
            fit=self.sample.fit,
            measure=measure,
            corrections=CORRECTIONS,
            tolerance=HEADROOM * wanted.mean_na,
        ).run()
        advance((rounds_at_most - len(rounds)) * tokens)
        inside = [one for one in rounds if _kept(one) <= (1 + HEADROOM) * wanted.mean_na]
        if not inside:
            return Tried(layers, way, rounds, None, min(map(_kept, rounds)))
        chosen = budget.best(inside, wanted.mean_na)
        one = ByWeight(layers, schedule=chosen.schedule, way=way, top_k=space.top_k)
        return Tried(layers, way, rounds, one, _kept(chosen))

    def _judged(self, tried: list[Tried]) -> Judged:
        search, found, text = self.search, self.found, self.search.check_text
        plain = [one for kinds in (found.plain, found.scaled) for ones in kinds.values() for one in ones]
        rank = min([*found.finalists, *plain], key=self._check_loss)
        kept = {each.one: each.mean_na for each in tried if each.one is not None}
        if not kept:
            return Judged(tried, rank)
        search.measure("deciding by weight", list(kept), text)
        best = min(kept, key=self._check_loss)
        search.measure("by weight, text to fit on", [best])
        text.asked += (tokens := sum(map(len, text.pieces)))
        advance = search.watch.stage("experts by weight", tokens)
        check_na = self.count(best.hint, text.pieces)
        advance(tokens)
        better = all(text.difference(best, one).interval[1] < 0 for one in (rank, found.winner))
        return Judged(
            tried=tried,
            rank=rank,
            best=best,
            fit_na=kept[best],
            check_na=check_na,
            gain=text.difference(best, rank),
            wins=better and check_na <= (1 + CHECK_HEADROOM) * best.mean_na,
        )

    def _fit_loss(self, one: Candidate) -> float:
        return self.search.fit_text.difference(one, self.search.space.full).value

    def _check_loss(self, one: Candidate) -> float:
        return self.search.check_text.difference(one, self.search.space.full).value


def _kept(done: Round) -> float:
    assert done.realised is not None
    return done.realised
