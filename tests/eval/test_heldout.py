"""Items built from held-out text: fair, never seen in training, the same on every machine."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from eval.heldout import (
    CHOICES,
    CLOZE_ITEMS,
    CONTEXT_WORDS,
    NEXT_WORD_ITEMS,
    PIECE_BYTES,
    cloze_items,
    first_halves,
    gloss_items,
    halves,
    load_heldout,
    next_word_items,
    second_half_items,
    text_items,
)
from eval.reference_models.sources import TEXT_SOURCES, Document, text_groups

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def documents(data_folder: Path) -> list[Document]:
    return load_heldout(data_folder)


@pytest.fixture(scope="module")
def training_text(data_folder: Path, documents: list[Document]) -> str:
    held = {document.text for document in documents}
    every = (text for groups in text_groups(data_folder).values() for group in groups for text in group)
    return "\n\n".join(text for text in every if text not in held)


def test_items_are_the_same_each_time(documents: list[Document]) -> None:
    for build in (cloze_items, gloss_items, next_word_items, text_items, second_half_items):
        assert build(documents) == build(list(documents))


def test_cloze_is_spread_over_the_sources_from_the_first_item_on(documents: list[Document]) -> None:
    items = cloze_items(documents)
    assert Counter(item.source for item in items) == dict.fromkeys(TEXT_SOURCES, CLOZE_ITEMS // len(TEXT_SOURCES))
    assert len({item.source for item in items[:50]}) == len(TEXT_SOURCES)


def test_no_cloze_context_is_training_text(documents: list[Document], training_text: str) -> None:
    for item in [*cloze_items(documents), *next_word_items(documents)]:
        assert item.context not in training_text
        assert len(item.context.split()) == CONTEXT_WORDS


def test_the_true_word_follows_its_context(documents: list[Document]) -> None:
    text = "\n\n".join(document.text for document in documents)
    for item in cloze_items(documents)[:200]:
        assert f"{item.context} {item.choices[item.label]}" in text
    for item in next_word_items(documents)[:200]:
        assert f"{item.context} {item.word}" in text


def test_every_place_is_right_equally_often(documents: list[Document]) -> None:
    for items in (cloze_items(documents), gloss_items(documents)):
        counts = Counter(item.label for item in items)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert set(counts) == set(range(CHOICES))


def test_choices_are_distinct_and_distractors_do_not_give_themselves_away(documents: list[Document]) -> None:
    for item in cloze_items(documents):
        assert len(set(item.choices)) == CHOICES
        right = item.choices[item.label]
        for other in set(item.choices) - {right}:
            assert other[:4] != right[:4]
            assert other not in re.findall("[a-z]+", item.context.lower())
    for item in gloss_items(documents):
        assert len(set(item.contexts)) == CHOICES


def test_distractors_are_about_as_frequent(documents: list[Document]) -> None:
    counts = {
        source: Counter(
            re.findall(r"[a-z]{4,}", " ".join(document.text for document in documents if document.source == source))
        )
        for source in TEXT_SOURCES
    }
    gaps = []
    for item in cloze_items(documents):
        frequency = [math.log(counts[item.source][choice]) for choice in item.choices]
        right = frequency.pop(item.label)
        gaps.append(right - sum(frequency) / len(frequency))
    assert abs(sum(gaps) / len(gaps)) < 0.35  # a scorer that knows frequencies alone gains little


@pytest.mark.parametrize("scorer", ["uniform", "random", "longest", "shortest"])
def test_without_a_model_scores_are_chance(documents: list[Document], scorer: str) -> None:
    rng = random.Random(0)
    for items in (cloze_items(documents), gloss_items(documents)):
        right = 0
        for item in items:
            lengths = [len(context + continuation) for context, continuation in item.pairs]
            values = {
                "uniform": [0.0] * CHOICES,
                "random": [rng.random() for _ in lengths],
                "longest": lengths,
                "shortest": [-length for length in lengths],
            }[scorer]
            right += max(range(CHOICES), key=values.__getitem__) == item.label
        error = math.sqrt(0.25 * 0.75 / len(items))
        assert abs(right / len(items) - 0.25) < 4 * error, scorer


def test_glosses_are_the_held_out_lines(documents: list[Document]) -> None:
    lines = {document.text for document in documents if document.source == "gloss"}
    items = gloss_items(documents)
    assert len(items) == len(lines)
    for item in items:
        assert any(line.startswith(f"{item.contexts[item.label]} {item.text}") for line in lines)
        assert '; "' not in item.text


def test_next_words_come_from_every_source(documents: list[Document]) -> None:
    counts = Counter(item.source for item in next_word_items(documents))
    assert counts == dict.fromkeys(TEXT_SOURCES, NEXT_WORD_ITEMS // len(TEXT_SOURCES))


def test_pieces_are_the_whole_held_out_text(documents: list[Document]) -> None:
    items = text_items(documents)
    text = {source: sum(len(d.text.encode()) for d in documents if d.source == source) for source in TEXT_SOURCES}
    pieces = Counter[str]()
    for item in items:
        size = len(item.text.encode())
        assert size <= PIECE_BYTES
        pieces[item.source] += size
    assert pieces == text


def test_pieces_join_to_their_document() -> None:
    text = "one  two\n\n three " * 300 + "x" * 3000 + " end\n"
    items = text_items([Document("grimm", text), Document("gloss", "a: b")])
    assert sorted(item.text for item in items if item.text.startswith("one"))
    assert sum(len(item.text) for item in items) == len(text)
    assert all(not item.text[0].isalpha() or item.text.startswith(("one", "x")) for item in items)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("one two three four", "one two"),
        ("a bcdefgh ijk", "a bcdefgh"),
        ("one\n\n two", "one"),
        (" wordwithoutanyspace", " wordwitho"),
        ("abcdef", "abc"),
        ("x", ""),
        ("", ""),
    ],
)
def test_halves_are_cut_before_the_white_space_nearest_to_the_middle(text: str, first: str) -> None:
    assert halves(text) == (first, text[len(first) :])


def test_halves_of_every_document_join_to_it_and_share_nothing(documents: list[Document]) -> None:
    whole = [document.text for document in documents if document.source in TEXT_SOURCES]
    first, second = first_halves(documents), [halves(text)[1] for text in whole]
    assert [a + b for a, b in zip(first, second, strict=True)] == whole
    share = sum(map(len, first)) / sum(map(len, whole))
    assert share == pytest.approx(0.5, abs=0.002)
    for item in second_half_items(documents):
        assert any(item.text in half for half in second)
        # Lines such as a speech's "(Applause.)" are in many places; no piece of some length is in both halves.
        assert len(item.text) < 200 or not any(item.text in half for half in first)


def test_the_judging_task_has_all_second_halves_and_nothing_else(documents: list[Document]) -> None:
    second = Counter[str]()
    for document in documents:
        if document.source in TEXT_SOURCES:
            second[document.source] += len(halves(document.text)[1])
    found = Counter[str]()
    for item in second_half_items(documents):
        found[item.source] += len(item.text)
    assert found == second
