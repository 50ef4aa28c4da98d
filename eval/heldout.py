"""Builds the held-out tasks from text the reference models never saw: cloze, gloss, next word, plain text. Pure.

Every list is a function of the documents alone, the same on every machine. Items come in a shuffled order, so that the
first N of a task are a fair sample of it.
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.reference_models.recipe import Recipe
from eval.reference_models.sources import TEXT_SOURCES, Document, heldout_documents

CHOICES = 4
CLOZE_ITEMS = 1002
"""The same number from each of the six text sources."""
NEXT_WORD_ITEMS = 498
CONTEXT_WORDS = 32
PIECE_BYTES = 1400
"""About 400 tokens of the reference models: a piece and its begin token fit a context of 512."""

_SEED = 20240229
_WORD = re.compile(r"(?<=\S )[a-z]+(?=[ .,;:!?\n]|$)")
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"[a-z]+",
        """
        about above across after again against almost along already also although always among another around away
        back because been before behind being below beneath beside between beyond both cannot could does doing
        done down during each either else even ever every everything except from further having hence here hers
        herself himself however indeed instead into itself just less like many might mine more most much must
        myself near neither never next none nothing often once only onto other others ought ours ourselves over
        perhaps quite rather same shall should since some somebody someone something still such than that their
        theirs them themselves then there therefore these they thing things this those though through throughout
        thus till together toward towards under unless until upon very well were what whatever when whenever where
        whether which while whom whose will with within without would your yours yourself
        """,
    )
)
"""Words of four letters and more that carry grammar rather than content."""


@dataclass(frozen=True)
class ChoiceItem:
    """Which of the choices continues the context, after one space? `label` is the right one's index."""

    source: str
    context: str
    choices: tuple[str, ...]
    label: int

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(context, continuation) of each choice; the likeliest continuation is the answer."""
        return [(self.context, f" {choice}") for choice in self.choices]


@dataclass(frozen=True)
class MatchItem:
    """Which of the contexts is followed by the text, after one space? `label` is the right one's index."""

    source: str
    contexts: tuple[str, ...]
    text: str
    label: int

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(context, continuation) with each context; the one under which the text is likeliest is the answer."""
        return [(context, f" {self.text}") for context in self.contexts]


@dataclass(frozen=True)
class WordItem:
    """A context and the one word that follows it after a space."""

    source: str
    context: str
    word: str


@dataclass(frozen=True)
class TextItem:
    """A piece of running text."""

    source: str
    text: str


def load_heldout(data_dir: Path) -> list[Document]:
    """The documents held out from the reference models, which share one split."""
    return heldout_documents(data_dir, Recipe.load("mini_v2.yaml").data)


def cloze_items(documents: Sequence[Document]) -> list[ChoiceItem]:
    """A content word of running text against three others of its source that are about as frequent there."""
    rng = random.Random(_SEED)
    drafts = []
    for source, places in _places(documents, rng, _is_content_word).items():
        words = _WordsByFrequency(word for _, word in places)
        for context, word in places[: CLOZE_ITEMS // len(TEXT_SOURCES)]:
            drafts.append((source, context, word, words.alike(word, context, rng)))
    rng.shuffle(drafts)
    items = []
    for number, (source, context, word, others) in enumerate(drafts):
        choices, label = _place(number, word, others)
        items.append(ChoiceItem(source, context, choices, label))
    return items


def gloss_items(documents: Sequence[Document]) -> list[MatchItem]:
    """A held-out WordNet gloss with its own words and with those of three other held-out lines.

    Scoring one gloss under four words, and not four glosses under one word, takes the glosses' own likelihoods out of
    the comparison, which otherwise drown what the model knows of the word. Example sentences are cut off: they tend to
    contain the word.
    """
    rng = random.Random(_SEED)
    lines = [document.text.partition(": ") for document in documents if document.source == "gloss"]
    rng.shuffle(lines)
    all_words = sorted({words for words, _, _ in lines})
    items = []
    for number, (words, _, gloss) in enumerate(lines):
        others = [other for other in rng.sample(all_words, CHOICES) if other != words][: CHOICES - 1]
        contexts, label = _place(number, words, others)
        items.append(MatchItem("gloss", tuple(f"{choice}:" for choice in contexts), gloss.split('; "')[0], label))
    return items


def next_word_items(documents: Sequence[Document]) -> list[WordItem]:
    """Words of running text, any that are not names, to be generated."""
    rng = random.Random(_SEED)
    each = NEXT_WORD_ITEMS // len(TEXT_SOURCES)
    places = _places(documents, rng, lambda word: True)
    items = [WordItem(source, context, word) for source, found in places.items() for context, word in found[:each]]
    rng.shuffle(items)
    return items


def text_items(documents: Sequence[Document]) -> list[TextItem]:
    """All held-out running text in pieces of up to `PIECE_BYTES`, cut before white space."""
    return _text_items((document.source, document.text) for document in running_text(documents))


def second_half_items(documents: Sequence[Document]) -> list[TextItem]:
    """As `text_items`, of the second halves alone: for judging what was chosen on `first_halves`."""
    return _text_items((document.source, halves(document.text)[1]) for document in running_text(documents))


def first_halves(documents: Sequence[Document]) -> list[str]:
    """The first half of every document of running text, to search and calibrate on; none that is empty."""
    return [half for document in running_text(documents) if (half := halves(document.text)[0])]


def running_text(documents: Sequence[Document]) -> list[Document]:
    """The documents that are running text, in their order."""
    return [document for document in documents if document.source in TEXT_SOURCES]


def halves(text: str) -> tuple[str, str]:
    """Two parts that join to the text, cut before the white space nearest to its middle, in characters.

    Text without white space behind its first character is cut in the middle.
    """
    middle = len(text) // 2
    spaces = (match.start() for match in re.finditer(r"\s+", text) if match.start() > 0)
    cut = min(spaces, key=lambda at: abs(at - middle), default=middle)
    return text[:cut], text[cut:]


def _is_content_word(word: str) -> bool:
    return len(word) >= 4 and word not in _FUNCTION_WORDS


def _places(
    documents: Sequence[Document], rng: random.Random, wanted: Callable[[str], bool]
) -> dict[str, list[tuple[str, str]]]:
    """By text source: (context, word) at every wanted word with a full context before it, shuffled."""
    places: dict[str, list[tuple[str, str]]] = {source: [] for source in TEXT_SOURCES}
    for document in documents:
        if document.source not in places:
            continue
        starts = [match.start() for match in re.finditer(r"\S+", document.text)]
        for match in _WORD.finditer(document.text):
            number = bisect_left(starts, match.start())
            if number >= CONTEXT_WORDS and wanted(match.group()):
                context = document.text[starts[number - CONTEXT_WORDS] : match.start()].rstrip()
                places[document.source].append((context, match.group()))
    for found in places.values():
        rng.shuffle(found)
    return places


class _WordsByFrequency:
    """The content words of one source, to draw alternatives of like frequency from."""

    def __init__(self, words: Iterator[str]) -> None:
        self._counts = Counter(words)
        self._by_count: dict[int, list[str]] = defaultdict(list)
        for word, count in sorted(self._counts.items()):
            self._by_count[count].append(word)

    def alike(self, word: str, context: str, rng: random.Random) -> list[str]:
        """Three words whose log-frequency is nearest, none of them in the context or a form of the word."""
        here = math.log(self._counts[word])
        seen = set(re.findall(r"[a-z]+", context.lower()))
        found: list[str] = []
        for count in sorted(self._by_count, key=lambda count: (abs(math.log(count) - here), count)):
            group = [other for other in self._by_count[count] if other[:4] != word[:4] and other not in seen]
            found += rng.sample(group, min(len(group), CHOICES - 1 - len(found)))
            if len(found) == CHOICES - 1:
                break
        return found


def _place(number: int, right: str, others: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """All choices and where the right one is: its place goes round, so that every place is right equally often."""
    label = number % CHOICES
    return (*others[:label], right, *others[label:]), label


def _text_items(texts: Iterable[tuple[str, str]]) -> list[TextItem]:
    """Pieces of (source, text), shuffled."""
    items = [TextItem(source, piece) for source, text in texts for piece in _pieces(text)]
    random.Random(_SEED).shuffle(items)
    return items


def _pieces(text: str) -> Iterator[str]:
    piece = ""
    for part in re.findall(r"\s*\S+|\s+", text):
        if piece and len((piece + part).encode()) > PIECE_BYTES:
            yield piece
            piece = ""
        piece += part
    if piece:
        yield piece
