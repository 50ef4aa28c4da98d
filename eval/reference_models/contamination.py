"""Keeps benchmark validation and test items out of the training text."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHINGLE = 8
"""Items of at least this many words are also searched inside longer training texts."""

HELD_OUT_SPLITS = (
    "arc_easy/test",
    "arc_easy/validation",
    "arc_challenge/test",
    "arc_challenge/validation",
    "openbookqa/test",
    "openbookqa/validation",
    "boolq/validation",
    "rte/validation",
    "winogrande/validation",
    "qa_extra/commonsenseqa_validation",
)


def normalise(text: str) -> str:
    """Lower-case words and digits separated by one space, so that spacing and punctuation cannot hide a copy."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSON-lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def item_texts(row: dict[str, Any]) -> list[str]:
    """The identifying texts of one benchmark row: question, passage, premise or filled-in sentence."""
    if "sentence1" in row:  # RTE: the premise is the long, identifying part
        return [row["sentence1"]]
    if "option1" in row:  # WinoGrande
        return [row["sentence"].replace("_", row[option]) for option in ("option1", "option2")]
    if "passage" in row:  # BoolQ: 957 validation items share their passage with a train item
        return [row["question"], row["passage"]]
    return [row.get("question") or row["question_stem"]]


class HeldOutItems:
    """The normalised texts of every held-out benchmark item, with fast equality and containment checks."""

    def __init__(self, texts: set[str]) -> None:
        self.texts = texts
        self._by_start: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
        for text in texts:
            words = text.split()
            if len(words) >= SHINGLE:
                self._by_start[tuple(words[:SHINGLE])].append(words)

    @classmethod
    def load(cls, data_dir: Path) -> HeldOutItems:
        """Read every validation and test split below `data_dir`."""
        rows = (row for split in HELD_OUT_SPLITS for row in read_jsonl(data_dir / f"{split}.jsonl"))
        return cls({normalise(text) for row in rows for text in item_texts(row)} - {""})

    def equals(self, text: str) -> bool:
        """Whether `text` is a held-out item, up to case, spacing and punctuation."""
        return normalise(text) in self.texts

    def found_in(self, text: str) -> Iterator[str]:
        """Every held-out item of at least `SHINGLE` words that occurs inside `text`."""
        words = normalise(text).split()
        for start, shingle in enumerate(zip(*(words[i:] for i in range(SHINGLE)), strict=False)):
            for item in self._by_start.get(shingle, ()):
                if words[start : start + len(item)] == item:
                    yield " ".join(item)

    def contaminates(self, text: str) -> bool:
        """Whether any held-out item occurs inside `text`."""
        return next(self.found_in(text), None) is not None
