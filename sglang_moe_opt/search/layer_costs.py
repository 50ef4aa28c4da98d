"""`LayerCosts`: what a schedule loses, as a sum of one term per layer, with the interactions that the data show. Pure.

    link(loss) = sum_l u_l(na_l) + sum_l q_l u_l(na_l) u_{l+1}(na_{l+1}),     link(y) = log(1 + k y) / k

u falls with na and is 0 at the full top-k. With k = 0 losses add up (link(y) = y); k > 0 where several lowered layers
lose more together than one by one, k < 0 where they lose less. q are terms of neighbours. Both are in only where they
predict schedules that were not fitted better than without. Nothing here knows what router the model has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]
Layers = tuple[int, ...]

CURVATURES: Final = (-0.6, -0.3, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""k that are tried, in units of 1 / the largest loss measured."""
SINGLE_ERROR: Final = 0.10
"""How far the model itself is taken to be off at a single lowered layer, as a share of its loss."""
MIX_ERROR: Final = 0.02
"""The same at a mix of all layers, which is what it is for."""
SMOOTHING: Final = 1.0
"""How far the steps of u may bend from one na to the next, in units of the layer's mean step."""
FOLDS: Final = 5
WORTH: Final = 0.97
"""A richer model must have this share of a simpler one's error on left-out mixes, or less."""


@dataclass(frozen=True)
class Observation:
    """A measured schedule: nats per token above the full model on the same text, and its standard error."""

    layers: Layers
    loss: float
    error: float


@dataclass(frozen=True)
class LayerCosts:
    """The fitted model.

    Attributes:
        lowest: least na that it speaks of; levels are lowest..top_k.
        terms: float64 [L, levels], u_l by na, falling to 0.
        curvature: k of the link.
        neighbours: float64 [L - 1], q; None without such terms.
        error: root mean square error in nats on mixes that were left out of the fit; nan where there were none.
    """

    lowest: int
    terms: Array
    curvature: float = 0.0
    neighbours: Array | None = None
    error: float = float("nan")

    @property
    def top_k(self) -> int:
        return self.lowest + int(self.terms.shape[1]) - 1

    @property
    def levels(self) -> tuple[int, ...]:
        return tuple(range(self.lowest, self.top_k + 1))

    @property
    def pairs(self) -> Array | None:
        """Float64 [L - 1, levels, levels]: what neighbouring layers add to the sum; for `allocation.Problem`."""
        if self.neighbours is None:
            return None
        q, u = self.neighbours, self.terms
        return np.asarray(q[:, None, None] * u[:-1, :, None] * u[1:, None, :])

    def linked(self, layers: Sequence[int]) -> float:
        """link(loss): what allocation makes least; loss rises with it."""
        return float(_linked(self.terms, self.neighbours, self.lowest, [tuple(layers)])[0])

    def loss(self, linked: float) -> float:
        """Nats per token from link(loss)."""
        return float(_unlink(np.array([linked]), self.curvature)[0])

    def predict(self, layers: Sequence[int]) -> float:
        """Nats per token above the full model."""
        return self.loss(self.linked(layers))


def fit(observations: Sequence[Observation], lowest: int, top_k: int, seed: int = 0) -> LayerCosts:
    """Fit singles (one layer lowered) and mixes together; the model's form is chosen by left-out mixes.

    Args:
        observations: the full model is not among them.
        lowest, top_k: bounds of na.
        seed: of the folds.

    Raises ValueError without an observation, or where one is out of bounds.
    """
    if not observations:
        raise ValueError("layer costs: nothing was measured")
    counts = {len(one.layers) for one in observations}
    if len(counts) != 1 or any(not lowest <= na <= top_k for one in observations for na in one.layers):
        raise ValueError(f"layer costs: every schedule must have as many layers, each with {lowest} to {top_k} experts")
    mixes = np.array([index for index, one in enumerate(observations) if _lowered(one, top_k) > 1])
    largest = max(max(one.loss for one in observations), 1e-9)
    best: _Form | None = None
    for with_neighbours in (False, True) if len(mixes) >= 4 * FOLDS else (False,):
        forms = [_judge(observations, mixes, lowest, top_k, c / largest, with_neighbours, seed) for c in _curves(mixes)]
        chosen = min(forms, key=lambda form: form.relative_error)
        plain = next(form for form in forms if form.curvature == 0)
        if chosen.relative_error > WORTH * plain.relative_error:
            chosen = plain
        if best is None or chosen.relative_error < WORTH * best.relative_error:
            best = chosen
    assert best is not None
    return replace(_fit(observations, lowest, top_k, best.curvature, best.with_neighbours), error=best.error)


def _curves(mixes: NDArray[np.int64]) -> tuple[float, ...]:
    """Without mixes nothing tells how losses of several layers come together: they add up."""
    return CURVATURES if len(mixes) >= FOLDS else (0.0,)


@dataclass(frozen=True)
class _Form:
    """A form of the model, and its errors on left-out mixes: relative to their spreads, and in nats."""

    curvature: float
    with_neighbours: bool
    relative_error: float = 0.0
    error: float = float("nan")


def _judge(
    observations: Sequence[Observation],
    mixes: NDArray[np.int64],
    lowest: int,
    top_k: int,
    curvature: float,
    with_neighbours: bool,
    seed: int,
) -> _Form:
    """Cross-validate a form on the mixes, where there are enough of them."""
    if len(mixes) < FOLDS:
        return _Form(curvature, with_neighbours)
    folds = np.array_split(np.random.default_rng(seed).permutation(mixes), FOLDS)
    relative, absolute = [], []
    for fold in folds:
        left_out = set(fold.tolist())
        kept = [one for index, one in enumerate(observations) if index not in left_out]
        model = _fit(kept, lowest, top_k, curvature, with_neighbours)
        for index in fold:
            one = observations[index]
            difference = model.predict(one.layers) - one.loss
            absolute.append(difference)
            relative.append(difference / _spread(one, MIX_ERROR))
    relative_error, error = (float(np.sqrt(np.mean(np.square(errors)))) for errors in (relative, absolute))
    return _Form(curvature, with_neighbours, relative_error, error)


def _fit(
    observations: Sequence[Observation], lowest: int, top_k: int, curvature: float, with_neighbours: bool
) -> LayerCosts:
    """Least squares in the linked space; u as sums of steps >= 0, so that it falls with na."""
    layers, steps = len(observations[0].layers), top_k - lowest
    y = np.array([one.loss for one in observations])
    spread = np.array([_spread(one, MIX_ERROR if _lowered(one, top_k) > 1 else SINGLE_ERROR) for one in observations])
    target = _link(y, curvature)
    weight = (1 + curvature * np.maximum(y, 0)) / spread  # the link stretches errors by its slope
    design = np.zeros((len(y), layers * steps))
    for row, one in enumerate(observations):
        for layer, na in enumerate(one.layers):
            design[row, layer * steps + na - lowest : (layer + 1) * steps] = 1.0
    smooth = _smoothing(design, target, layers, steps)
    neighbours: Array | None = None
    terms = _terms(design, target, weight, smooth, layers, steps)
    for _ in range(4 if with_neighbours else 0):
        additive = np.array([sum(terms[i, na - lowest] for i, na in enumerate(one.layers)) for one in observations])
        products = np.array(
            [
                [terms[i, a - lowest] * terms[i + 1, b - lowest] for i, (a, b) in enumerate(pairwise(one.layers))]
                for one in observations
            ]
        )
        neighbours = _ridge(products, target - additive, weight)
        terms = _terms(design, target - products @ neighbours, weight, smooth, layers, steps)
    return LayerCosts(lowest, terms, curvature, neighbours)


def _terms(design: Array, target: Array, weight: Array, smooth: Array, layers: int, steps: int) -> Array:
    rows = np.vstack([design * weight[:, None], smooth])
    sums = np.concatenate([target * weight, np.zeros(len(smooth))])
    found = nnls(rows, sums)[0].reshape(layers, steps)
    falling = np.cumsum(found[:, ::-1], axis=1)[:, ::-1]
    return np.concatenate([falling, np.zeros((layers, 1))], axis=1)


def _smoothing(design: Array, target: Array, layers: int, steps: int) -> Array:
    """Rows that hold the steps of a layer near a curve that bends little, each layer at its own size.

    A step's size is what a lowered layer loses over the steps that it is lowered by, whoever else is lowered.
    """
    rows = []
    share = np.maximum(target, 0)[:, None] / np.maximum(design.sum(axis=1, keepdims=True), 1)
    for layer in range(layers):
        own = design[:, layer * steps : (layer + 1) * steps].sum(axis=1)
        size = float((own * share[:, 0]).sum() / max(float(own.sum()), 1.0))
        for step in range(steps - 2):
            row = np.zeros(layers * steps)
            at = layer * steps + step
            row[at : at + 3] = np.array([1.0, -2.0, 1.0]) / (SMOOTHING * max(size, 1e-9))
            rows.append(row)
    return np.array(rows).reshape(-1, layers * steps)


def _ridge(products: Array, residual: Array, weight: Array) -> Array:
    a = products * weight[:, None]
    gram = a.T @ a
    strength = 1e-2 * max(float(np.trace(gram)) / len(gram), 1e-12)
    return np.asarray(np.linalg.solve(gram + strength * np.eye(len(gram)), a.T @ (residual * weight)))


def _linked(terms: Array, neighbours: Array | None, lowest: int, schedules: Sequence[Layers]) -> Array:
    picks = np.array(schedules) - lowest
    values = terms[np.arange(len(terms))[None, :], picks]
    total = values.sum(axis=1)
    return np.asarray(total if neighbours is None else total + (values[:, :-1] * values[:, 1:]) @ neighbours)


def _link(y: Array, k: float) -> Array:
    return y if k == 0 else np.log1p(np.maximum(k * y, -0.95)) / k


def _unlink(z: Array, k: float) -> Array:
    return z if k == 0 else np.expm1(np.minimum(k * z, 50.0)) / k


def _spread(one: Observation, share: float) -> float:
    return float(np.hypot(one.error, share * abs(one.loss)) + 1e-9)


def _lowered(one: Observation, top_k: int) -> int:
    return sum(na < top_k for na in one.layers)
