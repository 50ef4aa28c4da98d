"""What schedules lose on a text, paired with the full model by piece, and which are worth measuring. Pure.

Losses are nats per token above the full model on the same pieces. Standard errors are those of a ratio of sums over
pieces, which are drawn independently where the tokens of one piece are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.schedule_limits import Rescale
from sglang_moe_opt.search.candidate import Candidate, rounded_to
from sglang_moe_opt.search.layer_costs import Observation

Array = NDArray[np.float64]
Ids = NDArray[np.int32]

MOST_SINGLES = 24
"""Single lowered layers measured, about: where that leaves out levels, those between come from the fit."""
Z95 = 1.959964


class Meter(Protocol):
    """What can tell the nats of pieces under schedules: `endpoint.Endpoint`."""

    def nats(
        self, candidates: Sequence[Candidate], pieces: Sequence[Ids], advance: Callable[[int], object]
    ) -> Array: ...


@dataclass(frozen=True)
class Difference:
    """Nats per token of one schedule minus another's on the same text, with its standard error."""

    value: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return self.value - Z95 * self.error, self.value + Z95 * self.error


@dataclass
class Text:
    """Pieces of text and what is known of them so far.

    Attributes:
        name: what it is for, in results.
        pieces: token ids.
        meter: asked for what is not known.
        nats: float64 [pieces] by schedule.
        asked: tokens computed for it, each schedule's anew.
    """

    name: str
    pieces: Sequence[Ids]
    meter: Meter
    nats: dict[Candidate, Array] = field(default_factory=dict)
    asked: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that are predicted: all but the first of each piece."""
        return sum(len(piece) - 1 for piece in self.pieces)

    def measure(self, candidates: Iterable[Candidate], advance: Callable[[int], object] = lambda _: None) -> None:
        """Have the schedules measured that are not known yet; `advance` is told the tokens that are done."""
        missing = [one for one in dict.fromkeys(candidates) if one not in self.nats]
        if not missing:
            return
        found = self.meter.nats(missing, self.pieces, advance)
        self.nats |= dict(zip(missing, found, strict=True))
        self.asked += len(missing) * sum(map(len, self.pieces))

    def per_token(self, one: Candidate) -> float:
        """Nats per token of a measured schedule."""
        return float(self.nats[one].sum()) / self.tokens

    def difference(self, one: Candidate, other: Candidate) -> Difference:
        """`one` minus `other`; both have been measured."""
        apart = self.nats[one] - self.nats[other]
        lengths = np.array([len(piece) - 1 for piece in self.pieces], np.float64)
        value = float(apart.sum() / lengths.sum())
        count = len(lengths)
        if count < 2:
            return Difference(value, 0.0)
        residuals = apart - value * lengths
        error = float(np.sqrt(count / (count - 1) * float((residuals**2).sum())) / lengths.sum())
        return Difference(value, error)

    def percent(self, one: Candidate, other: Candidate) -> Difference:
        """Change of bits per byte in percent: bytes of the text cancel."""
        found, per_token = self.difference(one, other), self.per_token(other)
        return Difference(100 * found.value / per_token, 100 * found.error / per_token)

    def observation(self, one: Candidate, full: Candidate) -> Observation:
        """For the fit of layer costs."""
        found = self.difference(one, full)
        return Observation(one.layers, found.value, found.error)


@dataclass(frozen=True)
class Space:
    """The schedules that a search chooses from.

    Attributes:
        layers: number of MoE layers.
        lowest: least na that model and policy allow.
        top_k: the model's own.
        renormalize: the router divides kept weights by their sum, so that it keeps their mass by itself.
    """

    layers: int
    lowest: int
    top_k: int
    renormalize: bool = False

    @property
    def full(self) -> Candidate:
        return Candidate((self.top_k,) * self.layers)

    @property
    def levels(self) -> tuple[int, ...]:
        return tuple(range(self.lowest, self.top_k + 1))

    def singles(self, rescale: Rescale) -> list[Candidate]:
        """One layer lowered, the others full; at every level, or at fewer where there are many layers."""
        levels = list(range(self.lowest, self.top_k))
        most = max(3, MOST_SINGLES // self.layers)
        if len(levels) > most:
            levels = sorted({levels[round(i)] for i in np.linspace(0, len(levels) - 1, most)})
        return [self._with(index, na, rescale) for index in range(self.layers) for na in levels]

    def mixes(self, count: int, totals: tuple[int, int], rescale: Rescale, seed: int) -> list[Candidate]:
        """Different random schedules whose sums lie between the two: around a uniform one, near and far.

        Every layer gets the mean plus noise of a scale that itself is drawn, so that there are gentle and rough ones.
        """
        generator = np.random.default_rng((seed, 7))
        found: dict[Candidate, None] = {}
        for _ in range(50 * count):
            if len(found) == count:
                break
            total = int(generator.integers(totals[0], totals[1] + 1))
            wide = generator.uniform(0.3, 1.0) * (self.top_k - self.lowest) / 2
            values = total / self.layers + generator.normal(0, wide, self.layers)
            inside = np.clip(values, self.lowest, self.top_k).tolist()
            found[Candidate(tuple(rounded_to(inside, total, self.lowest, self.top_k)), rescale)] = None
        return list(found)

    def swaps(self, one: Candidate) -> list[Candidate]:
        """One expert moved from a layer to another."""
        found = []
        for giver in range(self.layers):
            for taker in range(self.layers):
                layers = list(one.layers)
                layers[giver] -= 1
                layers[taker] += 1
                if giver != taker and layers[giver] >= self.lowest and layers[taker] <= self.top_k:
                    found.append(Candidate(tuple(layers), one.rescale))
        return found

    def _with(self, index: int, na: int, rescale: Rescale) -> Candidate:
        layers = [self.top_k] * self.layers
        layers[index] = na
        return Candidate(tuple(layers), rescale)


def as_rows(text: Text, full: Candidate, candidates: Iterable[Candidate]) -> list[dict[str, Any]]:
    """Measured schedules as JSON-ready rows, losses in nats per token and in percent of bits per byte."""
    rows = []
    for one in candidates:
        nats, percent = text.difference(one, full), text.percent(one, full)
        rows.append(
            {
                "layers": list(one.layers),
                "rescale": one.rescale,
                "mean_na": round(one.mean_na, 4),
                "nats_per_token": round(nats.value, 6),
                "standard_error": round(nats.error, 6),
                "percent": round(percent.value, 4),
                "percent_95": [round(v, 4) for v in percent.interval],
            }
        )
    return rows
