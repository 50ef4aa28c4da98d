"""What a search on a model is told, and what it ends with. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from sglang_moe_opt.schedule_limits import Rescale
from sglang_moe_opt.search.allocation import Allocation, Problem
from sglang_moe_opt.search.candidate import Candidate
from sglang_moe_opt.search.layer_costs import LayerCosts

AUTO: Final = "auto"


class Watch(Protocol):
    """Is told what is measured next and how many tokens that takes, and gives what is told of the progress."""

    def stage(self, title: str, tokens: int) -> Callable[[int], object]: ...


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        mixes: random schedules.
        top: best predicted schedules of each round.
        rounds: of measuring the best predicted and fitting again, at most.
        finalists: that meet on the other text.
        rescale: what becomes of kept weights in all schedules; "auto" chooses by loss.
        seconds: for measuring: rounds and swaps end when the next would not fit.
        seed: of the mixes.
    """

    mixes: int = 40
    top: int = 8
    rounds: int = 4
    finalists: int = 4
    rescale: Rescale | str = AUTO
    seconds: float = 720.0
    seed: int = 0


@dataclass
class Found:
    """What a search ends with; all losses are in the two texts.

    Attributes:
        winner: lost least on the text that decides.
        finalists: best first by that text.
        plain: baselines by kind, each as the router weighs them; scaled: the same under the winner's rescale.
        costs: the fitted model; singles, mixes: what it was fitted on, with `refined` from the rounds and swaps.
        rescales: tried on one uniform schedule.
        problem: levels, costs and weights of the allocation.
    """

    winner: Candidate
    finalists: list[Candidate]
    plain: dict[str, list[Candidate]]
    scaled: dict[str, list[Candidate]]
    costs: LayerCosts
    problem: Problem
    limit: float
    rescale: Rescale
    singles: list[Candidate]
    mixes: list[Candidate]
    refined: list[Candidate]
    rescales: list[Candidate]

    def front(self, limit: float) -> list[Allocation]:
        """Predicted best for every amount spent up to `limit`; losses in nats per token."""
        return [Allocation(one.layers, self.costs.loss(one.loss), one.spent) for one in self.problem.front(limit)]
