"""A search on a model: sensitivities, layer costs, allocation, verification; whatever measures is handed in. Pure.

1. plain schedules of the budget, on the text to fit on; ways to rescale kept weights, on the uniform one
2. every layer lowered alone, and random mixes of the budget's sum: layer costs
3. the best by allocation are measured and fitted again, until nothing new comes first; then swaps of one expert
4. the best few and the plain ones again on other text, which decides
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.schedule_limits import Rescale
from sglang_moe_opt.search.allocation import Problem
from sglang_moe_opt.search.budget import Budget
from sglang_moe_opt.search.candidate import Candidate, baselines, uniforms
from sglang_moe_opt.search.layer_costs import LayerCosts, fit
from sglang_moe_opt.search.outcome import AUTO, Found, Settings, Watch
from sglang_moe_opt.search.sensitivity import Space, Text

FACTOR_STEP: Final = 0.1
"""Between the factors on kept weights that are tried first, from 1 up or down; then half of it beside the best."""
MOST_FACTORS: Final = 6
BEST_PLAIN: Final = 2


@dataclass
class Search:
    """One search.

    Attributes:
        space: the schedules there are.
        budget: what they may spend.
        fit_text: measured for fitting and choosing finalists.
        check_text: other text, which decides.
        settings: how much is measured.
        watch: sees the stages.
        max_loss: percent of bits per byte that the winner may lose at most; None where the budget is the limit.
        clock: seconds, ever rising.
    """

    space: Space
    budget: Budget
    fit_text: Text
    check_text: Text
    settings: Settings
    watch: Watch
    max_loss: float | None = None
    clock: Callable[[], float] = time.monotonic
    _began: float = field(init=False, default=0.0)
    _rescales: list[Candidate] = field(init=False, default_factory=list)
    _seen: dict[Candidate, None] = field(init=False, default_factory=dict)

    def run(self) -> Found:
        """Search. Raises FieldError where no schedule keeps to the budget or the loss; RuntimeError of the meter."""
        self._began = self.clock()
        total = self._ladder() if self.max_loss is not None else self._total(self.budget.limit)
        self._measure_plain(total, "router")
        rescale = self._choose_rescale(total)
        self._measure_plain(total, rescale)
        singles = self.space.singles(rescale)
        low, high = self._around(total)
        mixes = self.space.mixes(self.settings.mixes, (low, high), rescale, self.settings.seed)
        self.measure("single layers", singles)
        self.measure("mixes", mixes)
        # Plain schedules were measured before: they belong to the fit as well.
        self._seen = dict.fromkeys([*singles, *mixes, *self._measured(rescale)])
        if self.max_loss is not None:
            return self._cheapest(singles, mixes, rescale)
        costs = self._refine(self.budget.limit, rescale)
        return self._decide(self.budget.limit, costs, rescale, singles, mixes)

    def measure(self, title: str, candidates: Sequence[Candidate], text: Text | None = None) -> None:
        """Have the schedules measured that are not known on a text, by default the one to fit on, as a stage."""
        text = text or self.fit_text
        count = sum(one not in text.nats for one in dict.fromkeys(candidates))
        if count:
            text.measure(candidates, self.watch.stage(title, count * sum(map(len, text.pieces))))

    @property
    def seconds_left(self) -> float:
        """Of those that the settings give; below 0 where they are spent."""
        return self.settings.seconds - (self.clock() - self._began)

    # --- parts -------------------------------------------------------------------------------------------------------

    def _total(self, limit: float) -> int:
        return replace(self.budget, limit=limit).total(self.space.layers, self.space.lowest)

    def _around(self, total: int) -> tuple[int, int]:
        """Sums of na of the mixes: the budget's own; a wider range where the sum is still to be found."""
        if self.max_loss is None:
            return total, total
        half = max(1, self.space.layers // 2)
        most = self.space.layers * self.space.top_k - 1
        return max(self.space.layers * self.space.lowest, total - 2 * half), min(most, total + half)

    def _ladder(self) -> int:
        """The least sum of na at which uniform schedules keep to the loss, about."""
        assert self.max_loss is not None
        total = self.space.layers * self.space.top_k
        for na in range(self.space.top_k - 1, self.space.lowest - 1, -1):
            one = Candidate((na,) * self.space.layers)
            self.measure(f"uniform na {na}", [self.space.full, one])
            if self.fit_text.percent(one, self.space.full).value > self.max_loss:
                break
            total = one.total
        return max(self.space.layers * self.space.lowest, total - self.space.layers // 2)

    def _measure_plain(self, total: int, rescale: Rescale) -> None:
        plain = self._baselines(total, rescale)
        self.measure("plain schedules", [self.space.full, *(one for ones in plain.values() for one in ones)])

    def _choose_rescale(self, total: int) -> Rescale:
        """The rescale under which a uniform schedule loses least; the router's own unless another is clearly better."""
        wanted = self.settings.rescale
        if wanted != AUTO:
            return wanted  # type: ignore[return-value]
        layers = min(uniforms(self.space.layers, total), key=lambda one: self._loss(one)).layers
        own = Candidate(layers)
        # Of the two names one is what the router does, by whether it renormalises.
        other = [] if self.space.renormalize else [Candidate(layers, "mass")]
        factors = [Candidate(layers, 1.0) if self.space.renormalize else own]
        self.measure("rescaling", [*other, *factors])
        factors = self._walk(factors, FACTOR_STEP)
        if min(factors, key=self._loss) == factors[0]:
            factors = self._walk(factors[::-1], -FACTOR_STEP)
        best = min(factors, key=self._loss)
        at = 1.0 if best == own else float(best.rescale)
        factors += [Candidate(layers, round(at + side * FACTOR_STEP / 2, 3)) for side in (-1, 1)]
        self.measure("rescaling", factors)
        self._rescales = list(dict.fromkeys([own, *other, *factors]))
        best = min(self._rescales, key=self._loss)
        gain = self.fit_text.difference(own, best)
        return best.rescale if gain.value > 2 * gain.error and gain.value > 0 else "router"

    def _walk(self, factors: list[Candidate], step: float) -> list[Candidate]:
        """Factors from the last one on, step by step, as long as the last one is the best."""
        first = factors[-1]
        at = 1.0 if first.rescale == "router" else float(first.rescale)
        for number in range(1, MOST_FACTORS):
            factors = [*factors, Candidate(first.layers, round(at + step * number, 3))]
            self.measure("rescaling", factors)
            if min(factors, key=self._loss) != factors[-1]:
                break
        return factors

    def _refine(self, limit: float, rescale: Rescale) -> LayerCosts:
        """Measure what allocation calls best and fit again, until nothing new; then swaps around the best measured."""
        costs = self._fit()
        for number in range(1, self.settings.rounds + 1):
            best = self._problem(costs).best(limit, self.settings.top)
            new = self._unknown(Candidate(one.layers, rescale) for one in best)
            if not new or not self._has_time_for(len(new)):
                break
            before = self._leader(limit, rescale)
            self.measure(f"best predicted, round {number}", new)
            self._seen |= dict.fromkeys(new)
            costs = self._fit()
            if number > 1 and self._leader(limit, rescale) == before:
                break
        for number in range(1, self.settings.rounds + 1):
            leader = self._leader(limit, rescale)
            if leader is None:
                break
            ways = [one for one in self.space.swaps(leader) if self._spent(one) <= limit * (1 + 1e-9)]
            near = sorted(ways, key=lambda one: costs.linked(one.layers))[: 2 * self.settings.top]
            new = self._unknown(near)
            if not new or not self._has_time_for(len(new)):
                break
            self.measure(f"swaps, round {number}", new)
            self._seen |= dict.fromkeys(new)
            costs = self._fit()
            if self._leader(limit, rescale) == leader:
                break
        return costs

    def _decide(
        self, limit: float, costs: LayerCosts, rescale: Rescale, singles: list[Candidate], mixes: list[Candidate]
    ) -> Found:
        finalists = self._finalists(limit, rescale)
        total = self._total(limit)
        for one in {"router", rescale}:
            self._measure_plain(total, one)
        plain = self._best_plain(total, "router")
        scaled = self._best_plain(total, rescale) if rescale != "router" else plain
        everything = [*finalists, *(one for kinds in (plain, scaled) for ones in kinds.values() for one in ones)]
        self.measure("deciding", [self.space.full, *everything], self.check_text)
        finalists.sort(key=lambda one: self.check_text.difference(one, self.space.full).value)
        known = {*singles, *mixes}
        return Found(
            winner=finalists[0],
            finalists=finalists,
            plain=plain,
            scaled=scaled,
            costs=costs,
            problem=self._problem(costs),
            limit=limit,
            rescale=rescale,
            singles=singles,
            mixes=mixes,
            refined=[one for one in self._seen if one not in known],
            rescales=self._rescales,
        )

    def _cheapest(self, singles: list[Candidate], mixes: list[Candidate], rescale: Rescale) -> Found:
        """Walk down the front as long as the other text agrees that the loss is kept to, with 95 % confidence."""
        assert self.max_loss is not None
        whole = self.budget.limit
        costs = self._fit()
        full = self.space.full
        per_token = self.fit_text.per_token(full)
        front = self._problem(costs).front(whole)
        inside = [one for one in front if 100 * costs.loss(one.loss) / per_token <= self.max_loss]
        if not inside:
            raise FieldError("--max-loss", self.max_loss, "more: only the full model is predicted to keep to it")
        limit = min(one.spent for one in inside)
        kept: tuple[float, LayerCosts] | None = None
        failed: float | None = None
        step = float(self.budget.weights[1] - self.budget.weights[0])
        while self.space.layers * self.space.lowest * step <= limit < whole:
            costs = self._refine(limit, rescale)
            chosen = self._finalists(limit, rescale)
            self.measure("deciding", [full, *chosen], self.check_text)
            bounds = [self.check_text.percent(one, full).interval[1] for one in chosen]
            if bounds and min(bounds) <= self.max_loss:
                kept = limit, costs
                if failed is not None and failed <= limit - step:
                    break
                limit -= step
            else:
                failed = limit if failed is None else max(failed, limit)
                if kept is not None:
                    break
                limit += step
        if kept is None:
            raise FieldError("--max-loss", self.max_loss, "more: only the full model keeps to it for certain")
        return self._decide(kept[0], kept[1], rescale, singles, mixes)

    # --- small things ------------------------------------------------------------------------------------------------

    def _baselines(self, total: int, rescale: Rescale) -> dict[str, list[Candidate]]:
        return baselines(self.space.layers, total, self.space.lowest, self.space.top_k, rescale)

    def _best_plain(self, total: int, rescale: Rescale) -> dict[str, list[Candidate]]:
        """Of each kind the best two: there are as many uniform ones as ways to place a rest."""
        return {
            kind: sorted(ones, key=self._loss)[:BEST_PLAIN] for kind, ones in self._baselines(total, rescale).items()
        }

    def _finalists(self, limit: float, rescale: Rescale) -> list[Candidate]:
        inside = self._inside(limit, rescale)
        return sorted(inside, key=self._loss)[: self.settings.finalists]

    def _leader(self, limit: float, rescale: Rescale) -> Candidate | None:
        """The best measured so far within the limit."""
        return min(self._inside(limit, rescale), key=self._loss, default=None)

    def _inside(self, limit: float, rescale: Rescale) -> list[Candidate]:
        """Measured schedules within the limit."""
        return [one for one in self._measured(rescale) if self._spent(one) <= limit * (1 + 1e-9)]

    def _measured(self, rescale: Rescale) -> list[Candidate]:
        """Schedules measured under this rescale, but for the full model."""
        return [one for one in self.fit_text.nats if one.rescale == rescale and one != self.space.full]

    def _spent(self, one: Candidate) -> float:
        return self.budget.spent(one.layers, self.space.lowest)

    def _loss(self, one: Candidate) -> float:
        return self.fit_text.difference(one, self.space.full).value

    def _fit(self) -> LayerCosts:
        seen = [self.fit_text.observation(one, self.space.full) for one in self._seen]
        return fit(seen, self.space.lowest, self.space.top_k, self.settings.seed)

    def _problem(self, costs: LayerCosts) -> Problem:
        weights = np.tile(self.budget.weights, (self.space.layers, 1))
        return Problem(self.space.levels, costs.terms, costs.pairs, weights)

    def _unknown(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        return [one for one in dict.fromkeys(candidates) if one not in self.fit_text.nats]

    def _has_time_for(self, count: int) -> bool:
        """Whether so many schedules more, and the decision, fit into the time at the speed so far."""
        spent = self.clock() - self._began
        asked = self.fit_text.asked + self.check_text.asked
        length, check = (sum(map(len, text.pieces)) for text in (self.fit_text, self.check_text))
        ahead = count * length + (self.settings.finalists + 12) * check
        return spent * (1 + ahead / max(asked, 1)) <= self.settings.seconds
