"""`Controller`: the level of each decode step, a deterministic function of the steps so far."""

from __future__ import annotations

from sglang_moe_opt.auto.speedup import SpeedModel


class Controller:
    """Picks one of a profile's levels for every decode step. Levels count from 0, the gentlest.

    Wanted is the gentlest level that is not beaten by a factor of `min_gain` (see `SpeedModel.best`). While answers
    run, the level follows only after it was wanted to be cheaper, or gentler, for `hold_steps` steps in a row, and then
    only as far as all of those steps wanted. Ranks that see the same steps pick the same levels.

    Args:
        model: what the levels gain.
        min_gain: a cheaper level must be at least so many times as fast, >= 1.
        hold_steps: steps in a row before a level changes, >= 1; 1 follows at once.
    """

    def __init__(self, model: SpeedModel, min_gain: float, hold_steps: int) -> None:
        self._model, self._min_gain, self._hold_steps = model, min_gain, hold_steps
        self._next, self._agreed = 0, 0
        self.level = 0
        self.switches = 0

    def step(self, tokens: int, opted: int, fresh: bool = False) -> int:
        """The level of a decode step.

        Args:
            tokens: of the step, of all requests.
            opted: how many of them run under this profile.
            fresh: none of these requests has decoded before, so that there is no answer to hold a level for.
        """
        wanted = self._model.best(tokens, opted, self._min_gain)
        if fresh:
            self._move(wanted)
        elif wanted == self.level:
            self._agreed = 0
        else:
            self._wait_for(wanted)
        return self.level

    def _wait_for(self, wanted: int) -> None:
        cheaper = wanted > self.level
        if self._agreed and cheaper == (self._next > self.level):
            self._next = min(self._next, wanted) if cheaper else max(self._next, wanted)
            self._agreed += 1
        else:
            self._next, self._agreed = wanted, 1
        if self._agreed >= self._hold_steps:
            self._move(self._next)

    def _move(self, level: int) -> None:
        self.switches += level != self.level
        self.level, self._agreed = level, 0
