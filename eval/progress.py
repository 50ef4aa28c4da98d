"""The progress bar of an evaluation: all schedules and tasks together, with the time left by the work really done."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class RunProgress:
    """One bar over the whole run.

    Args:
        weights: size of each task in any common unit; every schedule runs all of them.
        schedules: how many there are.
        console: None shows nothing.
    """

    def __init__(self, weights: dict[str, int], schedules: int, console: Console | None) -> None:
        self._weights = weights
        self._whole = schedules * sum(weights.values())
        self._finished = 0.0  # of the unit, tasks that are complete
        self._skipped = 0.0  # what was there before: it says nothing about the speed
        self._weight, self._total, self._done = 0, 0, 0
        self._start = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f} %  {task.fields[left]}"),
            console=console or Console(quiet=True),
        )
        self._line = self._bar.add_task("", total=self._whole, left="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def skip(self, task: str) -> None:
        """A task that was complete already."""
        self._finished += self._weights[task]
        self._skipped += self._weights[task]
        self._show()

    def enter(self, schedule: str, task: str) -> None:
        """The task that the next `begin` and `advance` are about."""
        self._weight, self._total, self._done = self._weights[task], 0, 0
        self._bar.update(self._line, description=f"{schedule}  {task}")

    def begin(self, total: int, known: int) -> None:
        """The present task's work in tokens, and how much of it is there already."""
        self._total, self._done = total, known
        self._skipped += self._weight * known / max(1, total)
        self._show()

    def advance(self, done: int) -> None:
        """So many tokens of the present task have been answered."""
        self._done += done
        self._show()

    def leave(self) -> None:
        """The present task is complete."""
        self._finished += self._weight
        self._total = 0
        self._show()

    def _show(self) -> None:
        at = self._finished + (self._weight * self._done / self._total if self._total else 0)
        worked, elapsed = at - self._skipped, time.monotonic() - self._start
        left = f"{_clock(elapsed * (self._whole - at) / worked)} left" if worked > 0 else ""
        self._bar.update(self._line, completed=at, left=left)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
