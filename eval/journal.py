"""Answers of a task that is under way, appended to a file as they arrive, so that nothing is asked for twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Answers by key, one JSON line each: {"key": ..., "answer": ...}.

    Args:
        file: is read if it is there; a last line that was cut off in writing is dropped.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._answers: dict[str, Any] = {}
        if file.exists():
            whole, _, cut_off = file.read_bytes().rpartition(b"\n")
            for line in whole.splitlines():
                entry = json.loads(line)
                self._answers[entry["key"]] = entry["answer"]
            if cut_off:
                with file.open("r+b") as stream:
                    stream.truncate(len(whole) + 1 if whole else 0)

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Any:
        return self._answers[key]

    def add(self, answers: Mapping[str, Any]) -> None:
        """Write answers; they are on disk when this returns."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"key": key, "answer": answer}) + "\n" for key, answer in answers.items()]
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))
        self._answers |= answers
