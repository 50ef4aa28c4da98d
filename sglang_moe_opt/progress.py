"""Progress bars on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Advance = Callable[[int], None]
"""Called with the bytes that were written since the last call."""


@contextmanager
def byte_progress(title: str, total: int, shown: bool) -> Iterator[Advance]:
    """A bar over `total` bytes; none where standard error is no terminal."""
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


@dataclass(frozen=True)
class Steps:
    """A bar over steps, with lines above it."""

    bar: Progress
    task: TaskID

    def advance(self, line: str = "") -> None:
        """One step is done; `line` says what came of it."""
        if line:
            self.say(line)
        self.bar.advance(self.task)

    def reach(self, step: int) -> None:
        """So many steps are done."""
        self.bar.update(self.task, completed=step)

    def say(self, line: str) -> None:
        self.bar.console.print(line, highlight=False)


@contextmanager
def step_progress(title: str, total: int, shown: bool) -> Iterator[Steps]:
    """A bar over `total` steps on standard error; nothing at all unless `shown`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=not shown)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not shown) as bar:
        yield Steps(bar, bar.add_task(title, total=total))
