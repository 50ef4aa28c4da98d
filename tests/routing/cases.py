"""Random routing problems, reproducible from a few fields; needs only torch, so that GPU machines can use it too."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sglang_moe_opt.routing import MASS, ApplySkip, Choice, RoutingStats, RoutingTable

ROUTERS = (
    ("softmax", False),
    ("softmax", True),
    ("sigmoid", False),
    ("sigmoid", True),
    ("sqrtsoftplus", False),
    ("sqrtsoftplus", True),
)
RESCALES = (MASS, 1.0, 2.5, 0.5)
NUM_LAYERS = 3
NUM_ROWS = 12


@dataclass(frozen=True)
class Case:
    """What shapes one problem; ``seed`` decides the numbers."""

    seed: int
    num_tokens: int
    num_slots: int
    num_shared: int = 0
    extra_experts: int = 8
    router: tuple[str, bool] = ("softmax", False)
    logits_dtype: torch.dtype = torch.float32
    ids_dtype: torch.dtype = torch.int32
    coarse_logits: bool = False
    """Logits take 5 values, so that choice scores tie often."""
    exact_weights: bool = True
    """Weights are multiples of 1/64: sums are exact in fp32, and weights tie often."""
    remapped: bool = False
    """Ids are physical (redundant experts); logical ids come apart."""
    strided: bool = False
    dynamic: bool = True

    @property
    def num_experts(self) -> int:
        """Number of logical experts E."""
        return self.num_slots + self.extra_experts


@dataclass
class Problem:
    """The arguments of one ``apply_skip`` call."""

    weights: Tensor
    ids: Tensor
    choice: Choice
    rows: Tensor
    table: RoutingTable
    layer: int
    logical_ids: Tensor | None
    num_shared: int
    stats: RoutingStats
    dynamic: bool
    scale: float


@dataclass
class Outcome:
    """What one ``apply_skip`` call leaves behind, on the CPU."""

    weights: Tensor
    ids: Tensor
    kept: Tensor
    touched: Tensor


def random_case(rng: random.Random) -> Case:
    """Draw a case without hypothesis."""
    return Case(
        seed=rng.randrange(2**32),
        num_tokens=rng.randint(1, 80),
        num_slots=rng.randint(1, 16),
        num_shared=rng.randint(0, 2),
        extra_experts=rng.randint(0, 150),
        router=rng.choice(ROUTERS),
        logits_dtype=rng.choice((torch.float32, torch.bfloat16, torch.float16)),
        ids_dtype=rng.choice((torch.int32, torch.int64)),
        coarse_logits=rng.random() < 0.3,
        exact_weights=rng.random() < 0.7,
        remapped=rng.random() < 0.3,
        strided=rng.random() < 0.3,
        dynamic=rng.random() < 0.7,
    )


def random_table(rng: np.random.Generator, top_k: int, dynamic: bool) -> RoutingTable:
    """Return a table of random schedules on the CPU; every row has a dropped-nothing, dropped-all and mixed layers."""
    table = RoutingTable.allocate(NUM_ROWS, NUM_LAYERS, "cpu")
    shape = (NUM_ROWS, NUM_LAYERS)
    # Below zero, min_ratio is minus a weight.
    # Zero is "off" for min_ratio and one or more is "off" for top_p: both come up as often as a live rule.
    off = rng.random((2, *shape)) < (0.5 if dynamic else 1.1)
    columns = {
        "na": rng.integers(0, top_k + 2, shape),
        "min_ratio": np.where(off[0], 0.0, rng.integers(-8, 17, shape) / 16),
        "top_p": np.where(off[1], rng.choice([1.0, 1.5], shape), rng.integers(0, 16, shape) / 16),
        "min_na": rng.integers(0, top_k + 2, shape),
        "rescale": rng.choice(RESCALES, shape),
    }
    for row in range(NUM_ROWS):
        table.write_row(row, **{name: values[row] for name, values in columns.items()})
    return table


def build(case: Case) -> Problem:
    """Return the problem's tensors on the CPU."""
    rng = np.random.default_rng(case.seed)
    n, k, e = case.num_tokens, case.num_slots, case.num_experts
    grid = rng.integers(-2, 3, (n, e)) if case.coarse_logits else rng.integers(-64, 65, (n, e)) / 8
    logits = torch.from_numpy(grid).to(case.logits_dtype)
    bias = None
    if case.router[1]:
        bias = torch.from_numpy(rng.integers(-8, 9, e) / 16).float()
        # A pruned expert, which the router may have been forced to select.
        bias[int(rng.integers(e))] = -torch.inf

    logical = torch.from_numpy(np.argsort(rng.random((n, e)), axis=1)[:, :k])
    logical[torch.from_numpy(rng.random((n, k)) < 0.05)] = -1
    logical[torch.from_numpy(rng.random(n) < 0.1)] = -1
    ids = logical.clone()
    if case.remapped:
        ids = torch.where(logical >= 0, 2 * logical + torch.from_numpy(rng.integers(0, 2, (n, k))), -1)
        # SGLang's location table maps -1 to the last expert.
        ids[(logical < 0) & torch.from_numpy(rng.random((n, k)) < 0.5)] = 2 * e - 1
    shared = torch.arange(case.num_shared).expand(n, case.num_shared)
    ids = torch.cat((ids, 2 * e + shared), dim=1)
    # Shared columns of the logical ids index no router logit: reading them would fault.
    logical = torch.cat((logical, 10**6 + shared), dim=1)

    shape = (n, k + case.num_shared)
    weights = torch.from_numpy(rng.integers(0, 65, shape) / 64 if case.exact_weights else rng.random(shape) + 1e-3)
    table = random_table(rng, k, case.dynamic)
    stats = RoutingStats(
        kept=torch.from_numpy(rng.integers(0, 100, n + 3)).int(),
        touched=torch.from_numpy(rng.random((NUM_LAYERS, e)) < 0.1).int(),
    )
    return Problem(
        weights=_place(weights.float(), case.strided),
        ids=_place(ids.to(case.ids_dtype), case.strided),
        choice=Choice(_place(logits, case.strided), bias, case.router[0]),
        rows=torch.from_numpy(rng.integers(0, NUM_ROWS, n + 2)).int(),
        table=table,
        layer=int(rng.integers(NUM_LAYERS)),
        logical_ids=_place(logical.to(case.ids_dtype), case.strided) if case.remapped else None,
        num_shared=case.num_shared,
        stats=stats,
        dynamic=case.dynamic,
        scale=float(rng.choice([1.0, 2.5])),
    )


def _place(matrix: Tensor, strided: bool) -> Tensor:
    """Return ``matrix``, or its copy in the middle of wider rows."""
    if not strided:
        return matrix.contiguous()
    wide = torch.full((matrix.shape[0], matrix.shape[1] + 5), 77, dtype=matrix.dtype)
    view = wide[:, 2:-3]
    view.copy_(matrix)
    return view


def to_device(problem: Problem, device: torch.device | str) -> Problem:
    """Copy a problem to another device, row strides included."""

    def move(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        there = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        return there.copy_(tensor)

    choice, table, stats = problem.choice, problem.table, problem.stats
    return Problem(
        weights=move(problem.weights),
        ids=move(problem.ids),
        choice=Choice(move(choice.logits), move(choice.bias), choice.scoring),
        rows=move(problem.rows),
        table=RoutingTable(*(move(c) for c in (table.na, table.min_ratio, table.top_p, table.min_na, table.rescale))),
        layer=problem.layer,
        logical_ids=move(problem.logical_ids),
        num_shared=problem.num_shared,
        stats=RoutingStats(move(stats.kept), move(stats.touched)),
        dynamic=problem.dynamic,
        scale=problem.scale,
    )


def run(implementation: ApplySkip, problem: Problem) -> Outcome:
    """Call an implementation on a copy of the problem's outputs; the problem stays as it was."""
    weights, ids = _copy_strided(problem.weights), _copy_strided(problem.ids)
    stats = RoutingStats(problem.stats.kept.clone(), problem.stats.touched.clone())
    implementation(
        weights,
        ids,
        problem.choice,
        problem.rows,
        problem.table,
        problem.layer,
        logical_ids=problem.logical_ids,
        num_shared=problem.num_shared,
        stats=stats,
        dynamic=problem.dynamic,
        scale=problem.scale,
    )
    return Outcome(weights.cpu(), ids.cpu(), stats.kept.cpu(), stats.touched.cpu())


def _copy_strided(tensor: Tensor) -> Tensor:
    """Clone with the same strides, where ``Tensor.clone`` would close the gaps."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def assert_same(actual: Outcome, expected: Outcome, decided: Tensor) -> None:
    """Compare two outcomes on the rows whose result does not hang on rounding; ``decided`` is bool [n]."""
    n = len(decided)
    assert torch.equal(actual.ids[decided].long(), expected.ids[decided].long())
    torch.testing.assert_close(actual.weights[decided], expected.weights[decided], rtol=1e-5, atol=1e-7)
    assert torch.equal(actual.kept[:n][decided], expected.kept[:n][decided])
    assert torch.equal(actual.kept[n:], expected.kept[n:])
    if decided.all():
        assert torch.equal(actual.touched, expected.touched)


def assert_unchanged_rows_are_identical(outcome: Outcome, problem: Problem) -> None:
    """A row without a newly dropped slot keeps its bits; so do shared columns and slots that were -1 before."""
    weights, ids = problem.weights.cpu(), problem.ids.cpu()
    same = (outcome.ids == ids).all(dim=1)
    assert torch.equal(outcome.weights[same], weights[same])
    fixed = ids < 0
    fixed[:, ids.shape[1] - problem.num_shared :] = True
    assert torch.equal(outcome.weights[fixed], weights[fixed])
    assert torch.equal(outcome.ids[fixed], ids[fixed])
