"""docs/evaluation.md."""

from __future__ import annotations

from collections.abc import Mapping

from docgen.figures.lookups import six_benchmarks
from docgen.results import load
from docgen.sentences import Sentence

PAGE = "docs/evaluation.md"


def _items() -> Mapping[str, int]:
    return {task["name"]: task["total"] for task in load("mini_v2/summary.json")["tasks"]}


SENTENCES = (
    Sentence(PAGE, "| `arc_easy`, `arc_challenge` | {arc_easy:,}, {arc_challenge:,} |", _items),
    Sentence(PAGE, "| `openbookqa` | {openbookqa} |", _items),
    Sentence(PAGE, "| `boolq`, `rte`, `winogrande` | {boolq:,}, {rte}, {winogrande:,} |", _items),
    Sentence(PAGE, "| `bits_per_byte` | {bits_per_byte} |", _items),
    Sentence(PAGE, "| `cloze` | {cloze:,} |", _items),
    Sentence(PAGE, "| `gloss` | {gloss:,} |", _items),
    Sentence(PAGE, "| `next_word` | {next_word} |", _items),
    Sentence(
        PAGE,
        "| `bits_per_byte_second_half` | {documents} |",
        lambda: {"documents": load("search_mini_v2/summary.json")["tasks"][0]["total"]},
    ),
    Sentence(
        PAGE,
        "The six benchmarks of one schedule on mini-v2, {items:,} items, take {total:.0f} s on two cores",
        six_benchmarks,
    ),
    Sentence(PAGE, "BoolQ {boolq:.0f}, ARC-Easy {arc:.0f})", six_benchmarks),
    Sentence(
        PAGE,
        "the paper's accuracy study ({distinct} distinct schedules,",
        lambda: {"distinct": load("search_measured.json")["distinct_schedules"]},
    ),
)
