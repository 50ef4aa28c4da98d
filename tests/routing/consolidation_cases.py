"""Random consolidation problems, and ``consolidate`` in pure Python and double precision; needs only torch."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sglang_moe_opt.routing import (
    MASS,
    ActiveSet,
    Choice,
    Consolidate,
    ConsolidationTable,
    FillRule,
    RoutingStats,
)
from tests.routing.cases import NUM_LAYERS, NUM_ROWS, RESCALES, Case, build

NEAR = 1e-6
"""Scores, demands or shares closer than this may compare either way in fp32."""


@dataclass(frozen=True)
class ConsolidationCase:
    """A routing case with the rule; groups divide the experts evenly."""

    routing: Case
    max_experts: int = 0
    min_share: float = 0.0
    num_groups: int = 1


def random_consolidation_case(rng: random.Random, max_tokens: int) -> ConsolidationCase:
    """Draw a case of a plain router without hypothesis, with more experts where there are more tokens to use them."""
    routing = Case(
        seed=rng.randrange(2**32),
        num_tokens=rng.randint(1, max_tokens),
        num_slots=rng.randint(1, 10),
        extra_experts=rng.randint(0, max(12, max_tokens)),
        router=rng.choice((("softmax", False), ("softmax", True), ("sigmoid", False), ("sigmoid", True))),
        coarse_logits=rng.random() < 0.3,
        exact_weights=rng.random() < 0.7,
    )
    groups = rng.choice((1, 1, 2, 4))
    return ConsolidationCase(routing, rng.choice((0, 0, 3, 8, 20)), rng.choice((0.0, 0.0, 0.25, 1.0)), groups)


@dataclass
class Problem:
    """The arguments of one ``consolidate`` call."""

    weights: Tensor
    ids: Tensor
    choice: Choice
    rows: Tensor
    table: ConsolidationTable
    layer: int
    rule: FillRule
    logical_ids: Tensor | None
    num_shared: int
    stats: RoutingStats


@dataclass
class Outcome:
    """What a call leaves behind, on the CPU."""

    weights: Tensor
    ids: Tensor
    kept: Tensor
    filled: Tensor
    touched: Tensor


def build_problem(case: ConsolidationCase) -> Problem:
    """Return the problem's tensors on the CPU.

    A token's slots are any experts, not the router's best, and weights are not the router's: whatever holds for them
    holds for what a router gives.
    """
    groups = case.num_groups
    shape = replace(case.routing, extra_experts=-case.routing.num_slots % groups + groups * case.routing.extra_experts)
    base = build(shape)
    rng = np.random.default_rng(case.routing.seed + 1)
    table = ConsolidationTable.allocate(NUM_ROWS, NUM_LAYERS, "cpu")
    for row in range(NUM_ROWS):
        # Few own experts and many slots, so that there is something to fill.
        na = rng.integers(0, shape.num_slots + 1, (2, NUM_LAYERS)).max(axis=0)
        k0 = np.where(rng.random(NUM_LAYERS) < 0.8, rng.integers(0, na // 2 + 2), 0)
        table.write_row(row, np.where(k0 < na, k0, 0), na, rng.choice(RESCALES, NUM_LAYERS))
    return Problem(
        weights=base.weights,
        ids=base.ids,
        choice=base.choice,
        rows=base.rows,
        table=table,
        layer=base.layer,
        rule=FillRule(case.max_experts, case.min_share, groups),
        logical_ids=base.logical_ids,
        num_shared=base.num_shared,
        stats=RoutingStats(base.stats.kept, base.stats.touched, base.stats.kept.flip(0).clone()),
    )


def run(implementation: Consolidate, problem: Problem) -> Outcome:
    """Call an implementation on a copy of the problem's outputs; the scratch begins with garbage."""
    weights, ids = _copy(problem.weights), _copy(problem.ids)
    assert problem.stats.filled is not None
    counts = [c.clone() for c in (problem.stats.kept, problem.stats.touched, problem.stats.filled)]
    scratch = ActiveSet.allocate(problem.choice.logits.shape[1], weights.device)
    scratch.ids.fill_(5)
    scratch.demand.fill_(7.0)
    implementation(
        weights,
        ids,
        problem.choice,
        problem.rows,
        problem.table,
        problem.layer,
        rule=problem.rule,
        scratch=scratch,
        logical_ids=problem.logical_ids,
        num_shared=problem.num_shared,
        stats=RoutingStats(*counts),
    )
    kept, touched, filled = (count.cpu() for count in counts)
    return Outcome(weights.cpu(), ids.cpu(), kept, filled, touched)


def _copy(tensor: Tensor) -> Tensor:
    """Clone with the same strides."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def judge(problem: Problem) -> tuple[Outcome, bool]:
    """What ``consolidate`` must leave behind, and whether nothing in the step hangs on rounding."""
    weights, ids = problem.weights.double().tolist(), problem.ids.tolist()
    logical = ids if problem.logical_ids is None else problem.logical_ids.tolist()
    scores, shares = _scores(problem)
    width = len(ids[0]) - problem.num_shared if ids else 0
    num_experts = problem.choice.logits.shape[1]
    near = Near()
    tokens = [
        Token(problem, token, ids[token][:width], logical[token][:width], weights[token], scores[token], shares[token])
        for token in range(len(ids))
    ]
    active: dict[int, int] = {}
    for token in tokens:
        for slot in token.own(near):
            active[token.experts[slot]] = max(active.get(token.experts[slot], -1), token.ids[slot])
    wanted: dict[int, int] = {}
    demand: dict[int, float] = {}
    for token in tokens:
        for slot in token.wanted(near):
            expert = token.experts[slot]
            wanted[expert] = max(wanted.get(expert, -1), token.ids[slot])
            demand[expert] = demand.get(expert, 0.0) + token.weights[slot]
    more = sorted((e for e in wanted if e not in active), key=lambda e: (-demand[e], e))
    room = max(0, problem.rule.max_experts - len(active))
    if 0 < room < len(more):
        near.compare(demand[more[room - 1]], demand[more[room]], exact=demand[more[room - 1]] == demand[more[room]])
    if problem.rule.max_experts:
        active |= {expert: wanted[expert] for expert in more[:room]}

    group_size = num_experts // problem.rule.num_groups
    assert problem.stats.filled is not None
    kept, filled = problem.stats.kept.clone(), problem.stats.filled.clone()
    touched = problem.stats.touched.clone()
    for number, token in enumerate(tokens):
        token.consolidate(active, problem.rule, group_size, near)
        for slot in range(width):
            if slot in token.result:
                expert, physical, weight = token.result[slot]
                ids[number][slot], weights[number][slot] = physical, weight
                touched[problem.layer, expert] = 1
                filled[number] += slot in token.fills
            elif slot in token.valid:
                ids[number][slot], weights[number][slot] = -1, 0.0
        kept[number] += len(token.result)
    outcome = Outcome(torch.tensor(weights, dtype=torch.float32), torch.tensor(ids), kept, filled, touched)
    return outcome, near.clear


class Near:
    """Remembers whether some comparison is too close to call in fp32."""

    def __init__(self) -> None:
        self.clear = True

    def compare(self, a: float, b: float, exact: bool) -> None:
        """Note a comparison of two numbers; ``exact``: they tie in any precision."""
        if not exact and math.isfinite(a) and math.isfinite(b) and abs(a - b) <= NEAR * max(1.0, abs(a), abs(b)):
            self.clear = False


class Token:
    """One token's slots and, after ``consolidate``, its result by slot: (expert, id, weight)."""

    def __init__(self, problem: Problem, number: int, ids: list, experts: list, weights: list, scores, shares) -> None:
        at = (int(problem.rows[number]), problem.layer)
        self.k0, self.na = int(problem.table.k0[at]), int(problem.table.na[at])
        self.rescale = float(problem.table.rescale[at])
        self.ids, self.experts, self.weights, self.scores, self.shares = ids, experts, weights, scores, shares
        self.logits = problem.choice.logits[number].double().tolist()
        bias = problem.choice.bias
        self.bias = [0.0] * len(self.logits) if bias is None else bias.double().tolist()
        self.valid = [s for s in range(len(ids)) if ids[s] >= 0 and experts[s] >= 0]
        self.ranking = sorted(self.valid, key=lambda s: (-scores[experts[s]], s))
        self.result: dict[int, tuple[int, int, float]] = {}
        self.fills: set[int] = set()

    def _cut(self, count: int, near: Near) -> None:
        if 0 < count < len(self.ranking):
            a, b = (self.experts[self.ranking[i]] for i in (count - 1, count))
            near.compare(self.scores[a], self.scores[b], exact=self._same(a, b))

    def _same(self, a: int, b: int) -> bool:
        return (self.logits[a], self.bias[a]) == (self.logits[b], self.bias[b])

    def own(self, near: Near) -> list[int]:
        if not self.k0:
            return self.valid
        self._cut(self.k0, near)
        return self.ranking[: self.k0]

    def wanted(self, near: Near) -> list[int]:
        if not self.k0:
            return []
        self._cut(self.na, near)
        return self.ranking[self.k0 : self.na]

    def consolidate(self, active: dict[int, int], rule: FillRule, group_size: int, near: Near) -> None:
        if not self.k0 or not self.valid:
            self.result = {s: (self.experts[s], self.ids[s], self.weights[s]) for s in self.valid}
            return
        heaviest = max(self.weights[s] for s in self.valid)
        reference = next(s for s in self.valid if self.weights[s] == heaviest)
        base = max(self.shares[self.experts[reference]], 1e-20)
        keep: list[int] = []
        for rank, slot in enumerate(self.ranking):
            if len(keep) == self.na:
                break
            if rank >= self.k0 and self.experts[slot] not in active:
                continue
            if rank >= self.na:
                near.compare(self.weights[slot], rule.min_share * heaviest, exact=rule.min_share in (0.0, 1.0))
                if self.weights[slot] < rule.min_share * heaviest:
                    continue
            keep.append(slot)
        groups = {self.experts[s] // group_size for s in self.valid}
        others = []
        for expert in sorted(set(active) - {self.experts[s] for s in self.valid}):
            share = self.shares[expert] / base
            if expert // group_size in groups and self.scores[expert] > -math.inf:
                near.compare(share, rule.min_share, exact=rule.min_share == 0)
                if share >= rule.min_share:
                    others.append(expert)
        others.sort(key=lambda e: (-self.scores[e], e))
        for a, b in pairwise(others):
            near.compare(self.scores[a], self.scores[b], exact=self._same(a, b))
        free = [s for s in range(len(self.ids)) if s in self.valid and s not in keep]
        mine = {s: (self.experts[s], self.ids[s], self.weights[s]) for s in keep}
        for slot, expert in zip(free, others[: self.na - len(keep)], strict=False):
            mine[slot] = (expert, active[expert], heaviest * self.shares[expert] / base)
            self.fills.add(slot)
        factor = 1.0
        if free:
            total, mass = sum(self.weights[s] for s in self.valid), sum(weight for _, _, weight in mine.values())
            factor = total / max(mass, 1e-20) if self.rescale == MASS else self.rescale
        self.result = {slot: (expert, i, weight * factor) for slot, (expert, i, weight) in mine.items()}


def _scores(problem: Problem) -> tuple[list[list[float]], list[list[float]]]:
    """Choice scores and what weights are proportional to, for every token and expert."""
    scoring, bias = problem.choice.scoring, problem.choice.bias
    scores, shares = [], []
    for row in problem.choice.logits.double().tolist():
        top = max(row)
        soft = [math.exp(x - top) for x in row]
        if scoring == "softmax":
            raw, share = ([s / sum(soft) for s in soft], soft) if bias is not None else (row, soft)
        elif scoring == "sigmoid":
            raw = share = [1 / (1 + math.exp(-x)) for x in row]
        else:
            raw = share = [math.sqrt(math.log1p(math.exp(x))) for x in row]
        biases = [0.0] * len(row) if bias is None else bias.double().tolist()
        scores.append([s + b for s, b in zip(raw, biases, strict=True)])
        shares.append(share)
    return scores, shares


def assert_same(actual: Outcome, expected: Outcome) -> None:
    """Compare two outcomes."""
    assert torch.equal(actual.ids.long(), expected.ids.long())
    torch.testing.assert_close(actual.weights, expected.weights, rtol=2e-5, atol=1e-7)
    for name in ("kept", "filled", "touched"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
