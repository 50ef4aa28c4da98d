"""docs/policy.md."""

from __future__ import annotations

from collections.abc import Mapping

from docgen.sentences import Sentence
from docgen.tables.predictions import speed_models


def _part_of_a_batch() -> Mapping[str, float]:
    """Percent of what a level gains for 32 tokens that is left where 16 of them opted in."""
    measured, _ = speed_models()
    whole, part = measured.speeds(32, 32), measured.speeds(32, 16)
    kept = [100 * (some - 1) / (every - 1) for some, every in zip(part[1:], whole[1:], strict=True)]
    return {"four": kept[0], "two": kept[1]}


SENTENCES = (
    Sentence(
        "docs/policy.md",
        "16 of 32 tokens on V2-Lite's counts keep {four:.0f} % of what `na` 4 gains and {two:.0f} % of what `na` 2"
        " does;",
        _part_of_a_batch,
    ),
)
