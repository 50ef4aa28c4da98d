"""Marked blocks and sentences: what is replaced, what is left alone, and what is refused."""

from __future__ import annotations

import pytest

from docgen import blocks
from docgen.blocks import BlockError
from docgen.results import pick, table, within
from docgen.sentences import Sentence, SentenceError

TABLES = {"one": lambda: "| 1 |", "said": lambda word: word, "lacks": lambda: {}["x"]}


def test_only_what_stands_between_marks_is_replaced() -> None:
    example = "```\n  <!-- table: one -->\n  <!-- /table -->\n```\n"
    assert blocks.fill(example, TABLES, "f") == example
    text = "a 1\n<!-- table: one -->\nold\n\nolder\n<!-- /table -->\nb\n<!-- table: said word -->\n<!-- /table -->\nc\n"
    filled = (
        "a 1\n<!-- table: one -->\n| 1 |\n<!-- /table -->\nb\n<!-- table: said word -->\nword\n<!-- /table -->\nc\n"
    )
    assert blocks.fill(text, TABLES, "f") == filled
    assert blocks.fill(filled, TABLES, "f") == filled
    assert blocks.without_blocks(filled) == "a 1\n\nb\n\nc\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- table: two -->\n<!-- /table -->", "f: no table 'two', allowed: lacks, one, said"),
        ("<!-- table: one -->\nx", "f: a table mark without its other half"),
        ("<!-- table: one -->\n<!-- table: one -->\n<!-- /table -->", "f: a table mark without its other half"),
        ("x\n<!-- /table -->", "f: a table mark without its other half"),
        ("<!-- table: said -->\n<!-- /table -->", "f: table said: TypeError"),
        ("<!-- table: lacks -->\n<!-- /table -->", "f: table lacks: KeyError: 'x'"),
    ],
)
def test_bad_marks_are_named(text: str, said: str) -> None:
    with pytest.raises(BlockError) as caught:
        blocks.fill(text, TABLES, "f")
    assert str(caught.value).startswith(said)


def test_a_sentence_keeps_its_words_and_line_breaks() -> None:
    sentence = Sentence("f", "It takes {s:.1f} s (of {n:,}) at {p:+.0f} %.", lambda: {"s": 2.25, "n": 12345, "p": -3})
    text = "x 9 y. It takes 7\ns (of 1) at +12 %. 7 more"
    assert sentence.fill(text) == "x 9 y. It takes 2.2\ns (of 12,345) at -3 %. 7 more"
    assert sentence.fill(sentence.fill(text)) == sentence.fill(text)


def test_a_number_may_be_a_word() -> None:
    sentence = Sentence("f", "On {n:word} of six", lambda: {"n": 4})
    assert sentence.fill("On three of six.") == "On four of six."
    with pytest.raises(SentenceError, match=r"^f: 0 times"):
        sentence.fill("On 3 of six.")


@pytest.mark.parametrize("text", ["It took 7 s", "It takes 7 s. It takes 8 s.", "It takes no s"])
def test_a_sentence_that_moved_is_named(text: str) -> None:
    sentence = Sentence("f", "It takes {s:.1f} s", lambda: {"s": 1})
    with pytest.raises(SentenceError, match=r"^f: \d times, expected once: 'It takes \{s:\.1f\} s'"):
        sentence.fill(text)


def test_numbers_as_the_pages_write_them() -> None:
    assert table(["a", "b"], [["1", ""]]) == "| a | b |\n|---|---|\n| 1 |  |"
    assert within(0.9981, (0.93, 1.02), more=1) == "0.998 (0.93-1.02)"
    assert pick([{"c": 1, "x": 5}, {"c": 2, "x": 6}], c=2)["x"] == 6
    with pytest.raises(LookupError, match="0 points with"):
        pick([{"c": 1}], c=2)
