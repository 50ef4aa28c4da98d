"""A folder that appears whole or not at all, and whose making can be interrupted and gone on with."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sglang_moe_opt.files import sha256_of, write_atomically

_STATE: Final = ".export.json"
_UNFINISHED: Final = ".unfinished"


class Staging:
    """The hidden folder `.NAME.partial` beside the target, renamed to it at the end.

    Attributes:
        target: what is made; a new name or an empty folder.
        folder: where it is made.
        identity: what decides the content, by argument; an unfinished folder of another identity is refused.
        finished: sha256 of the large files that are done, as recorded after each was on the disk.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any]) -> None:
        self.target = target
        self.folder = target.with_name(f".{target.name}.partial")
        self.identity = dict(identity)
        self.finished: dict[str, str] = {}

    def check(self) -> None:
        """Read what an interrupted run left. Raises ValueError where the target or that run stands in the way."""
        if self.target.exists() and (not self.target.is_dir() or any(self.target.iterdir())):
            raise ValueError(f"{self.target}: holds something already; allowed: a new or empty folder")
        if not self.folder.exists():
            return
        try:
            state = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
            identity, finished = state["identity"], dict(state["finished"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"{self.folder}: unreadable remains of an export; delete it") from None
        if identity != self.identity:
            names = {*identity, *self.identity}
            other = ", ".join(sorted(name for name in names if identity.get(name) != self.identity.get(name)))
            raise ValueError(
                f"{self.folder}: an unfinished export with other arguments ({other}); "
                "finish it with those, or delete that folder"
            )
        self.finished = finished

    @contextmanager
    def open(self) -> Iterator[None]:
        """Make or go on with the folder, alone. Whatever goes wrong inside, finished files stay for the next run.

        Raises ValueError where another process is at it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            self._lock(descriptor)
            self.check()
            for name in [*self.finished]:
                if not self._is_whole(name):
                    del self.finished[name]
            self._drop_others()
            try:
                yield
            except BaseException:
                if self.folder.exists():  # not renamed yet
                    self._drop_others()
                    if not self.finished:
                        shutil.rmtree(self.folder, ignore_errors=True)
                raise
        finally:
            os.close(descriptor)

    def add(self, name: str, write: Callable[[Path], str]) -> None:
        """Have `write` put a large file on the disk under a temporary path and return its sha256; then record it."""
        temporary = self.folder / f"{name}{_UNFINISHED}"
        digest = write(temporary)
        temporary.rename(self.folder / name)
        self.finished[name] = digest
        self._record()

    def _record(self) -> None:
        write_atomically(
            self.folder / _STATE, json.dumps({"identity": self.identity, "finished": self.finished}, indent=1) + "\n"
        )
        _sync(self.folder)

    def publish(self) -> None:
        """Put everything on the disk and give the folder its name."""
        (self.folder / _STATE).unlink(missing_ok=True)
        for file in self.folder.iterdir():
            _sync(file)
        _sync(self.folder)
        self.folder.rename(self.target)
        _sync(self.target.parent)

    def _lock(self, descriptor: int) -> None:
        """Released by the system when the descriptor is closed or the process dies."""
        busy = f"{self.folder}: another export is writing there"
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(busy) from None
        if not self.folder.exists() or not os.path.samestat(os.fstat(descriptor), self.folder.stat()):
            raise ValueError(busy)  # it was just renamed by the process that held the lock

    def _is_whole(self, name: str) -> bool:
        file = self.folder / name
        return file.is_file() and sha256_of(file) == self.finished[name]

    def _drop_others(self) -> None:
        """Remove what is not recorded: files half written, and small ones, which are written again."""
        for file in self.folder.iterdir():
            if file.name not in (*self.finished, _STATE):
                file.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
