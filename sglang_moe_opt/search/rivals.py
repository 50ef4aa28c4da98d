"""Simpler surrogates, kept to show what the default one gains: `search.validate` compares them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from sglang_moe_opt.search.covariance import TableDistance
from sglang_moe_opt.search.gaussian_process import GaussianProcess, default_surrogate
from sglang_moe_opt.search.surrogate import Prediction, Surrogate, Tables, Values, check_rows, half_width

FOLDS: Final = 5
_KNOTS: Final = (1, 2, 3, 5)
_RIDGES: Final = (0.001, 0.01, 0.1, 1.0)


def surrogates(num_layers: int, top_k: int) -> tuple[Surrogate, ...]:
    """The default surrogate, and what it is compared with."""
    return (
        default_surrogate(num_layers, top_k),
        default_surrogate(num_layers, top_k, rest=False),
        default_surrogate(num_layers, top_k, interactions=False),
        default_surrogate(num_layers, top_k, interactions=False, rest=False),
        ConcaveLosses(top_k),
        GaussianProcess("distance of tables", TableDistance(num_layers, top_k)),
        MeanNa(),
    )


def folds(rows: int, count: int, seed: int = 0) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of fitted and left-out rows; every row is left out once."""
    order = np.random.default_rng(seed).permutation(rows)
    for part in np.array_split(order, min(count, rows)):
        yield np.setdiff1d(order, part), part


@dataclass(frozen=True, eq=False)
class LinearFit:
    """Coefficients on features of a table; intervals of one width, from rows that were left out."""

    features: Callable[[Tables], Values]
    coefficients: Values
    half: float

    def mean(self, tables: Tables) -> Values:
        return np.asarray(self.features(tables) @ self.coefficients)

    def predict(self, tables: Tables) -> Prediction:
        mean = self.mean(tables)
        return Prediction(mean, mean - self.half, mean + self.half)


@dataclass(frozen=True)
class MeanNa:
    """A parabola in mean na: where experts are missing does not count."""

    name: str = "parabola in mean na"

    def fit(self, tables: Tables, scores: Values) -> LinearFit:
        check_rows(tables, scores)

        def features(tables: Tables) -> Values:
            return np.vander(tables.mean(1), 3)

        def solve(x: Values, y: Values) -> Values:
            return np.asarray(np.linalg.lstsq(x, y, rcond=None)[0])

        x = features(tables)
        return LinearFit(features, solve(x, scores), half_width(_left_out_errors(x, scores, solve)))


@dataclass(frozen=True)
class ConcaveLosses:
    """Every missing expert costs something, and the next one at least as much: non-negative least squares.

    The loss of a layer is a non-negative sum of hinges (k - na)+, its size a piecewise linear function of depth.
    Number of knots and ridge are those with the least error in cross-validation.
    """

    top_k: int
    name: str = "concave losses by layer"

    def fit(self, tables: Tables, scores: Values) -> LinearFit:
        check_rows(tables, scores)
        best: tuple[float, LinearFit] | None = None
        for knots, ridge in product(_KNOTS, _RIDGES):

            def features(tables: Tables, knots: int = knots) -> Values:
                return self._features(tables, knots)

            def solve(x: Values, y: Values, ridge: float = ridge) -> Values:
                return _non_negative(x, y, ridge)

            x = features(tables)
            errors = _left_out_errors(x, scores, solve)
            error = float((errors**2).mean())
            if best is None or error < best[0]:
                best = error, LinearFit(features, solve(x, scores), half_width(errors))
        assert best is not None
        return best[1]

    def _features(self, tables: Tables, knots: int) -> Values:
        """[N, 2 + knots x top_k]: plus and minus a constant, which may have either sign, then minus the hinges."""
        hinges = np.maximum(np.arange(1, self.top_k + 1) - tables[:, :, None], 0) / self.top_k
        depth = np.linspace(0, 1, tables.shape[1])
        at = np.linspace(0, 1, knots)
        hats = np.array([np.interp(depth, at, row) for row in np.eye(knots)]) if knots > 1 else np.ones((1, len(depth)))
        losses = np.einsum("kl,nlj->nkj", hats / len(depth), hinges).reshape(len(tables), -1)
        ones = np.ones((len(tables), 1))
        return np.hstack([ones, -ones, -losses])


def _non_negative(x: Values, y: Values, ridge: float) -> Values:
    """Non-negative coefficients of least squares, with a ridge on all but the constants; y is near its mean first."""
    scale = float(y.std()) or 1.0
    penalty = np.sqrt(ridge) * 0.1 * np.eye(x.shape[1])[2:]
    centre = float(y.mean())
    rows, target = np.vstack([x, penalty]), np.append((y - centre) / scale, np.zeros(len(penalty)))
    found = optimize.nnls(rows, target, maxiter=50 * x.shape[1])[0] * scale
    found[0] += centre
    return np.asarray(found)


def _left_out_errors(x: Values, y: Values, solve: Callable[[Values, Values], Values]) -> Values:
    errors = np.empty(len(y))
    for fitted, left in folds(len(y), FOLDS):
        errors[left] = y[left] - x[left] @ solve(x[fitted], y[fitted])
    return errors
