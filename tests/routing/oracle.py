"""``apply_skip`` in pure Python and double precision, written from the semantics alone: slow, and easy to read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from sglang_moe_opt.routing import MASS
from tests.routing.cases import Outcome, Problem

ROUNDING = 1e-6
"""Scores or masses closer than this may compare either way in fp32."""


@dataclass
class Verdict:
    """The oracle's outcome, and for which rows (bool [n]) it does not hang on rounding."""

    outcome: Outcome
    decided: torch.Tensor


def judge(problem: Problem, exact_weights: bool) -> Verdict:
    """Return what ``apply_skip`` must leave behind; ``exact_weights``: sums of the weights are exact in fp32."""
    weights, ids = problem.weights.double().tolist(), problem.ids.tolist()
    logical = ids if problem.logical_ids is None else problem.logical_ids.tolist()
    logits = problem.choice.logits.double().tolist()
    kept, touched = problem.stats.kept.tolist(), problem.stats.touched.tolist()
    decided = []
    for token in range(len(ids)):
        rule = _rule(problem, token)
        num_slots = len(ids[token]) - problem.num_shared
        valid = [s for s in range(num_slots) if ids[token][s] >= 0 and logical[token][s] >= 0]
        scores = _expert_scores(problem, logits[token])
        mine = {s: scores[logical[token][s]] for s in valid}
        ranking = sorted(valid, key=lambda s: (-mine[s], s))
        keep, clear = _kept_slots(ranking, weights[token], rule, exact_weights)
        decided.append(clear and not _nearly_tied(problem, mine, logical[token], logits[token]))

        lost = [s for s in valid if s not in keep]
        mass, kept_mass = sum(weights[token][s] for s in valid), sum(weights[token][s] for s in keep)
        factor = rule["rescale"]
        if factor == MASS:
            factor = mass / kept_mass if kept_mass > 0 else 1.0
        for s in range(num_slots):
            if s in keep:
                weights[token][s] *= factor if lost else 1.0
                touched[problem.layer][logical[token][s]] = 1
            elif ids[token][s] >= 0:
                ids[token][s], weights[token][s] = -1, 0.0
        kept[token] += len(keep)
    outcome = Outcome(
        torch.tensor(weights, dtype=torch.float32),
        torch.tensor(ids),
        torch.tensor(kept, dtype=torch.int32),
        torch.tensor(touched, dtype=torch.int32),
    )
    return Verdict(outcome, torch.tensor(decided, dtype=torch.bool))


def _rule(problem: Problem, token: int) -> dict[str, float]:
    """The five numbers of the token's schedule in this layer, and the factor that is in the weights."""
    at = (int(problem.rows[token]), problem.layer)
    names = ("na", "min_ratio", "top_p", "min_na", "rescale")
    return {name: getattr(problem.table, name)[at].item() for name in names} | {"scale": problem.scale}


def _expert_scores(problem: Problem, logits: list[float]) -> list[float]:
    """The score the router selects by, for every expert."""
    scoring, bias = problem.choice.scoring, problem.choice.bias
    if scoring == "softmax" and bias is None:
        return logits
    if scoring == "softmax":
        total = sum(math.exp(x) for x in logits)
        scores = [math.exp(x) / total for x in logits]
    elif scoring == "sigmoid":
        scores = [1 / (1 + math.exp(-x)) for x in logits]
    else:
        scores = [math.sqrt(math.log1p(math.exp(x))) for x in logits]
    biases = [0.0] * len(scores) if bias is None else bias.tolist()
    return [score + b for score, b in zip(scores, biases, strict=True)]


def _kept_slots(
    ranking: list[int], weights: list[float], rule: dict[str, float], exact_weights: bool
) -> tuple[set[int], bool]:
    """The slots to keep, and whether that is clear of rounding."""
    if not ranking:
        return set(), True
    margin = 0.0 if exact_weights else ROUNDING
    clear = True
    total = sum(weights[s] for s in ranking)
    ratio = rule["min_ratio"]
    floor = ratio * max(weights[s] for s in ranking) if ratio > 0 else -ratio * rule["scale"]
    by_weight = sorted(ranking, key=lambda s: (-weights[s], ranking.index(s)))
    keep = set()
    for rank, slot in enumerate(ranking):
        passes = True
        if ratio != 0:
            passes &= weights[slot] >= floor
            clear &= margin == 0 or ratio == 1 or abs(weights[slot] - floor) > margin
        if rule["top_p"] < 1:
            before = sum(weights[s] for s in by_weight[: by_weight.index(slot)])
            passes &= before < rule["top_p"] * total
            clear &= margin == 0 or before == 0 or abs(before - rule["top_p"] * total) > margin * total
        if rank < rule["na"] and (passes or rank < rule["min_na"]):
            keep.add(slot)
    return keep, clear


def _nearly_tied(problem: Problem, mine: dict[int, float], experts: list[int], logits: list[float]) -> bool:
    """Whether two slots have scores that fp32 cannot order, though not by being the same sum."""
    if problem.choice.scoring == "softmax" and problem.choice.bias is None:
        return False
    bias = [0.0] * len(logits) if problem.choice.bias is None else problem.choice.bias.tolist()

    def source(slot: int) -> tuple[float, float]:
        return logits[experts[slot]], bias[experts[slot]]

    # Equal inputs give equal scores in any precision; -inf is reached exactly, whatever it is added to.
    return any(
        abs(mine[a] - mine[b]) < ROUNDING and source(a) != source(b)
        for a in mine
        for b in mine
        if a < b and math.isfinite(mine[a]) and math.isfinite(mine[b])
    )
