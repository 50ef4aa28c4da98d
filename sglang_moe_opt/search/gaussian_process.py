"""Gaussian process over schedules: parameters of the greatest posterior, intervals from rows that are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy import linalg, optimize, stats

from sglang_moe_opt.search.covariance import Covariance, LayerLosses, Matrix, Sum, TableDistance
from sglang_moe_opt.search.surrogate import LEVEL, Prediction, Tables, Values, check_rows, half_width

_LEVEL_VARIANCE: Final = 10.0  # of the constant, in units of the scores' variance: as good as unknown
_NOISE: Final = (-4.0, 1.5)  # prior of the log of the noise's variance: mean, standard deviation
_CHUNK: Final = 4096  # schedules predicted at a time


@dataclass(frozen=True)
class GaussianProcess:
    """Scores = constant + a function with this covariance + independent noise."""

    name: str
    covariance: Covariance

    def fit(self, tables: Tables, scores: Values) -> FittedProcess:
        """Raises ValueError for too few rows, or where all scores are the same."""
        check_rows(tables, scores)
        centre, scale = float(scores.mean()), float(scores.std())
        target = (scores - centre) / scale
        prior_mean = np.append(self.covariance.centre, _NOISE[0])
        prior_spread = np.append(self.covariance.spread, _NOISE[1])

        def loss(parameters: Values) -> float:
            """Negative log posterior of the parameters, without what is constant."""
            try:
                lower = linalg.cholesky(self._gram(parameters, tables), lower=True)
            except linalg.LinAlgError:
                return 1e6
            whitened = linalg.solve_triangular(lower, target, lower=True)
            evidence = 0.5 * whitened @ whitened + np.log(np.diag(lower)).sum()
            return float(evidence + 0.5 * (((parameters - prior_mean) / prior_spread) ** 2).sum())

        bounds = list(zip(prior_mean - 4 * prior_spread, prior_mean + 4 * prior_spread, strict=True))
        found = []
        for start in (prior_mean, prior_mean - 0.5 * prior_spread):
            found.append(optimize.minimize(loss, start, method="L-BFGS-B", bounds=bounds))
            if found[-1].success:
                break
        parameters = min(found, key=lambda result: float(result.fun)).x
        return FittedProcess.of(self, tables, target, parameters, centre, scale)

    def _gram(self, parameters: Values, tables: Tables) -> Matrix:
        gram = self.covariance.matrix(parameters[:-1], tables, tables) + _LEVEL_VARIANCE
        gram[np.diag_indices_from(gram)] += np.exp(parameters[-1])
        return gram


@dataclass(frozen=True, eq=False)
class FittedProcess:
    """The posterior.

    Attributes:
        parameters: of the covariance, then the log of the noise's variance; float64 [P + 1].
        left_out: each fitted row's score without that row, predicted; float64 [N].
        width: half the interval, in standard deviations: as the rows that are left out ask, and no less than a normal
            distribution has, because the parameters were chosen with those rows.
    """

    process: GaussianProcess
    tables: Tables
    parameters: Values
    centre: float
    scale: float
    left_out: Values
    width: float
    _factor: Any
    _weights: Values

    @classmethod
    def of(
        cls, process: GaussianProcess, tables: Tables, target: Values, parameters: Values, centre: float, scale: float
    ) -> FittedProcess:
        factor = linalg.cho_factor(process._gram(parameters, tables), lower=True)
        weights = linalg.cho_solve(factor, target)
        precision = np.diag(linalg.cho_solve(factor, np.eye(len(target))))
        residual = weights / precision  # Rasmussen and Williams, equations 5.12: row i left out, in closed form
        width = max(half_width(residual * np.sqrt(precision)), float(stats.norm.ppf((1 + LEVEL) / 2)))
        left_out = (target - residual) * scale + centre
        return cls(process, tables, parameters, centre, scale, left_out, width, factor, weights)

    @property
    def noise(self) -> float:
        """Standard deviation of one measurement, in the scores' unit."""
        return float(np.exp(0.5 * self.parameters[-1]) * self.scale)

    def mean(self, tables: Tables) -> Values:
        pieces = [self._cross(tables[start : start + _CHUNK]) @ self._weights for start in _starts(tables)]
        return np.concatenate(pieces) * self.scale + self.centre

    def predict(self, tables: Tables) -> Prediction:
        means, deviations = [], []
        for start in _starts(tables):
            piece = tables[start : start + _CHUNK]
            cross = self._cross(piece)
            means.append(cross @ self._weights)
            explained = np.einsum("mn,nm->m", cross, linalg.cho_solve(self._factor, cross.T))
            variance = self.process.covariance.diagonal(self.parameters[:-1], piece) + _LEVEL_VARIANCE - explained
            deviations.append(np.sqrt(np.maximum(variance, 0) + np.exp(self.parameters[-1])))
        mean = np.concatenate(means) * self.scale + self.centre
        half = self.width * self.scale * np.concatenate(deviations)
        return Prediction(mean, mean - half, mean + half)

    def _cross(self, tables: Tables) -> Matrix:
        return self.process.covariance.matrix(self.parameters[:-1], tables, self.tables) + _LEVEL_VARIANCE


def default_surrogate(num_layers: int, top_k: int, *, interactions: bool = True, rest: bool = True) -> GaussianProcess:
    """What the search uses: losses by layer, their interactions, and a rest.

    The rest is what is a schedule's own and not its layers': on one benchmark, repeats of one schedule differ less
    than layers leave unexplained. Interactions and rest enter as far as the measurements show them.
    """
    losses = LayerLosses(num_layers, top_k, interactions)
    name = "layer losses" + " with interactions" * interactions + " and a rest" * rest
    own = TableDistance(num_layers, top_k, centres=(-3.0, -1.5), spreads=(1.5, 0.7))
    return GaussianProcess(name, Sum((losses, own)) if rest else losses)


def _starts(tables: Tables) -> range:
    return range(0, max(len(tables), 1), _CHUNK)
