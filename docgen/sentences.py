"""Figures in running text: a sentence with places for numbers, which are kept right in the file that it stands in.

A template is the sentence as it stands in the file, line breaks aside, with a field such as `{loss:.1f}` for a number,
or `{rounds:word}` for one up to twelve that is written as a word.
The pages stay free of marks; a sentence that was reworded fails loudly until its template is reworded, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from string import Formatter

_NUMBER = r"([-+]?\d(?:[\d,]*\d)?(?:\.\d+)?)"
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_WORD = f"({'|'.join(_WORDS)})"


class SentenceError(ValueError):
    """A sentence that is not in its file, or more than once."""


@dataclass(frozen=True)
class Sentence:
    """A sentence of `file` (a path from the repository's root), and what makes the values of its fields."""

    file: str
    template: str
    values: Callable[[], Mapping[str, float | int | str]]

    def fill(self, text: str) -> str:
        """The file's text with the sentence's numbers as they should be. Raises SentenceError."""
        parts = list(Formatter().parse(self.template))
        pattern = "".join(
            _words(literal) + ("" if name is None else _WORD if spec == "word" else _NUMBER)
            for literal, name, spec, _ in parts
        )
        found = list(re.finditer(pattern, text))
        if len(found) != 1:
            raise SentenceError(f"{self.file}: {len(found)} times, expected once: {self.template!r}")
        values = self.values()
        match, at, pieces = found[0], 0, []
        fields = [(name, spec or "") for _, name, spec, _ in parts if name is not None]
        for index, (name, spec) in enumerate(fields, start=1):
            pieces += [text[at : match.start(index)], _written(values[name], spec)]
            at = match.end(index)
        return "".join([*pieces, text[at:]])


def _words(literal: str) -> str:
    return re.sub(r"(?:\\?\s)+", r"\\s+", re.escape(literal))


def _written(value: float | int | str, spec: str) -> str:
    return _WORDS[int(value)] if spec == "word" else format(value, spec)


def fill(text: str, file: str, sentences: Iterable[Sentence]) -> str:
    """All sentences of a file, one after another."""
    for sentence in sentences:
        if sentence.file == file:
            text = sentence.fill(text)
    return text
