"""How alike the scores of two schedules are: covariances for a Gaussian process over per-layer tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.search.surrogate import Tables, Values

Matrix = NDArray[np.float64]


class Covariance(Protocol):
    """A family of covariances with real parameters (logarithms, log-odds), in units of the scores' variance.

    `centre` and `spread`: mean and standard deviation of the parameters' prior, which is normal.
    """

    @property
    def centre(self) -> Values: ...
    @property
    def spread(self) -> Values: ...
    def matrix(self, parameters: Values, a: Tables, b: Tables) -> Matrix:
        """Covariances of N and M schedules: [N, M]."""
        ...

    def diagonal(self, parameters: Values, a: Tables) -> Values:
        """Each schedule's variance: [N]."""
        ...


@dataclass(frozen=True)
class LayerLosses:
    """A schedule's score is the full model's, less what every layer loses by its missing experts.

    The loss of a layer grows with each expert that is missing. The prior expects it to grow faster the fewer are left
    (the expert of rank k + 1 adds rho^k), to be similar in neighbouring layers (length ell of the depth) around a
    trend that all layers share, and lets every layer and every rank differ from that by what the measurements show.
    With `interactions` the losses of pairs of layers may also add to, or cancel, each other: the polynomial kernel
    k + q k^2; q is a parameter, so they enter only as far as they earn it.

    Parameters: log-odds of rho; log of ell; log variances of the shared trend, of single layers, of the concave law,
    of single ranks; and log q.
    """

    num_layers: int
    top_k: int
    interactions: bool = True

    @property
    def centre(self) -> Values:
        values = [0.5, -1.0, 0.0, -3.0, 1.0, 0.0]
        return np.array([*values, -2.0] if self.interactions else values)

    @property
    def spread(self) -> Values:
        values = [1.0, 0.7, 2.0, 2.0, 2.0, 2.0]
        return np.array([*values, 2.0] if self.interactions else values)

    def matrix(self, parameters: Values, a: Tables, b: Tables) -> Matrix:
        linear = self._one_hot(a) @ self._prior(parameters) @ self._one_hot(b).T
        return self._combined(parameters, linear)

    def diagonal(self, parameters: Values, a: Tables) -> Values:
        one_hot = self._one_hot(a)
        linear = np.einsum("nf,nf->n", one_hot @ self._prior(parameters), one_hot)
        return self._combined(parameters, linear)

    def _combined(self, parameters: Values, linear: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(linear + np.exp(parameters[6]) * linear**2) if self.interactions else linear

    def _one_hot(self, tables: Tables) -> Matrix:
        """[N, L x (top_k + 1)]: 1 where a layer has so many experts."""
        levels = np.arange(self.top_k + 1)
        return np.asarray((tables[:, :, None] == levels).reshape(len(tables), -1), np.float64)

    def _prior(self, parameters: Values) -> Matrix:
        """Covariance of the losses of all layers at all numbers of experts."""
        odds, length, trend, own, law, rank = parameters[:6]
        rho = 1 / (1 + np.exp(-odds))
        gains = rho ** np.arange(self.top_k)
        gains /= gains.sum()
        loss = np.append(np.cumsum(gains[::-1])[::-1], 0.0)  # 1 without any expert, 0 with all
        by_count = np.exp(law) * np.outer(loss, loss) + np.exp(rank) * np.minimum.outer(loss, loss)
        depth = np.linspace(0, 1, self.num_layers)
        near = np.exp(-0.5 * ((depth[:, None] - depth) / np.exp(length)) ** 2)
        by_layer = (np.exp(trend) + near + np.exp(own) * np.eye(self.num_layers)) / self.num_layers**2
        return np.asarray(np.kron(by_layer, by_count))


@dataclass(frozen=True)
class TableDistance:
    """Schedules are alike as far as their tables are near: one length for all layers, no structure.

    Parameters: log variance, log length. `centres`, `spreads`: of their prior.
    """

    num_layers: int
    top_k: int
    centres: tuple[float, float] = (1.0, -1.0)
    spreads: tuple[float, float] = (2.0, 1.0)

    @property
    def centre(self) -> Values:
        return np.array(self.centres)

    @property
    def spread(self) -> Values:
        return np.array(self.spreads)

    def matrix(self, parameters: Values, a: Tables, b: Tables) -> Matrix:
        x, y = a / self.top_k, b / self.top_k
        squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
        scale = self.num_layers * np.exp(2 * parameters[1])
        return np.asarray(np.exp(parameters[0]) * np.exp(-0.5 * np.maximum(squared, 0) / scale))

    def diagonal(self, parameters: Values, a: Tables) -> Values:
        return np.full(len(a), np.exp(parameters[0]))


@dataclass(frozen=True)
class Sum:
    """Independent functions added up; the parameters one after the other."""

    parts: tuple[Covariance, ...]

    @property
    def centre(self) -> Values:
        return np.concatenate([part.centre for part in self.parts])

    @property
    def spread(self) -> Values:
        return np.concatenate([part.spread for part in self.parts])

    def matrix(self, parameters: Values, a: Tables, b: Tables) -> Matrix:
        return np.asarray(sum(part.matrix(own, a, b) for part, own in self._split(parameters)))

    def diagonal(self, parameters: Values, a: Tables) -> Values:
        return np.asarray(sum(part.diagonal(own, a) for part, own in self._split(parameters)))

    def _split(self, parameters: Values) -> Iterator[tuple[Covariance, Values]]:
        start = 0
        for part in self.parts:
            end = start + len(part.centre)
            yield part, parameters[start:end]
            start = end
