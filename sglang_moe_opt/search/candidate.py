"""`Candidate`: one schedule of a search, and the plain schedules that every search is compared with. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any, Final

from sglang_moe_opt.schedule_limits import Rescale

UNIFORM: Final = "uniform"
ASCENDING: Final = "ascending"
DESCENDING: Final = "descending"


@dataclass(frozen=True)
class Candidate:
    """Routed experts of each MoE layer in order, and what becomes of the kept weights (`SkipSchedule.rescale`)."""

    layers: tuple[int, ...]
    rescale: Rescale = "router"

    @property
    def total(self) -> int:
        """Sum of na over the layers."""
        return sum(self.layers)

    @property
    def mean_na(self) -> float:
        return self.total / len(self.layers)

    @property
    def hint(self) -> dict[str, Any]:
        """`moe_skip` of a request, and the rule of a profile."""
        rule: dict[str, Any] = {"layers": list(self.layers)}
        return rule if self.rescale == "router" else {**rule, "rescale": self.rescale}

    @property
    def applied(self) -> dict[str, Any]:
        """What a server's answer says of a request under it: experts by layer, at most, and whether weights matter."""
        return {"mean_na": self.mean_na, "dynamic": False}

    @property
    def label(self) -> str:
        """Short and unique, such as `6-4-4-2` or `6-4-4-2 x1.1`."""
        text = "-".join(map(str, self.layers))
        if self.rescale == "router":
            return text
        return f"{text} {self.rescale}" if isinstance(self.rescale, str) else f"{text} x{self.rescale:g}"


def uniforms(layers: int, total: int, rescale: Rescale = "router") -> list[Candidate]:
    """Every schedule of this sum whose layers differ by one at most: the same number everywhere where it divides.

    Of a sum that does not divide there are as many as ways to place the larger number; beyond 64 only the first and
    the last layers, and an even spread.
    """
    low, more = divmod(total, layers)
    if more == 0:
        return [Candidate((low,) * layers, rescale)]
    return [
        Candidate(tuple(low + (index in places) for index in range(layers)), rescale)
        for places in _places(layers, more)
    ]


def slopes(layers: int, total: int, lowest: int, top_k: int, rescale: Rescale = "router") -> dict[str, list[Candidate]]:
    """Straight lines of this sum through the layers, upwards and downwards: as steep as they can be, and half as steep.

    Args:
        layers: number of MoE layers.
        total: sum of na.
        lowest, top_k: bounds of na.
        rescale: of all of them.
    """
    mean = total / layers
    widest = min(mean - lowest, top_k - mean)
    found: dict[str, list[Candidate]] = {ASCENDING: [], DESCENDING: []}
    for share in (1.0, 0.5):
        step = 2 * share * widest / max(1, layers - 1)
        up = rounded_to([mean - share * widest + step * index for index in range(layers)], total, lowest, top_k)
        for kind, line in ((ASCENDING, up), (DESCENDING, up[::-1])):
            one = Candidate(tuple(line), rescale)
            if len(set(line)) > 1 and one not in found[kind]:
                found[kind].append(one)
    return found


def baselines(
    layers: int, total: int, lowest: int, top_k: int, rescale: Rescale = "router"
) -> dict[str, list[Candidate]]:
    """The schedules of this sum that need no search, by kind: uniform, ascending, descending."""
    even = uniforms(layers, total, rescale)
    lines = slopes(layers, total, lowest, top_k, rescale)
    return {UNIFORM: even, **{kind: [one for one in ones if one not in even] for kind, ones in lines.items()}}


def rounded_to(values: Sequence[float], total: int, lowest: int, highest: int) -> list[int]:
    """Whole numbers within the bounds that sum to `total`, each as near to its value as that allows.

    Raises ValueError where the bounds do not allow the sum.
    """
    if not lowest * len(values) <= total <= highest * len(values):
        raise ValueError(f"total: got {total}, allowed: {lowest * len(values)} to {highest * len(values)}")
    whole = [min(highest, max(lowest, int(value // 1))) for value in values]
    while (missing := total - sum(whole)) != 0:
        sign = 1 if missing > 0 else -1
        free = [i for i, n in enumerate(whole) if lowest <= n + sign <= highest]
        chosen = max(free, key=lambda i: sign * (values[i] - whole[i]))
        whole[chosen] += sign
    return whole


def _places(layers: int, count: int) -> Iterator[frozenset[int]]:
    if comb(layers, count) <= 64:
        yield from map(frozenset, combinations(range(layers), count))
        return
    yield frozenset(range(count))
    yield frozenset(range(layers - count, layers))
    yield frozenset(int((i + 0.5) * layers / count) for i in range(count))
