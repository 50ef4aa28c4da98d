"""Held-out text and cloze items as decode batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.consolidation.model import Batch
from eval.heldout import ChoiceItem, TextItem

BEGIN = 0
"""The reference models' begin token."""
PROMPT_TOKENS = 32
TEXT_TOKENS = 256
"""Tokens of every text, the begin token included: of one length, so that all steps have a full batch."""
CLOZE_LEAD = 16
"""Tokens of a cloze item's context that decode with the batch before its choices."""


@dataclass(frozen=True)
class Texts:
    """Texts of one length in batches, and the bytes that are scored of each."""

    batches: list[Batch]
    n_bytes: list[list[int]]


def text_batches(tokenizer: Any, items: Sequence[TextItem], size: int, count: int) -> Texts:
    """The first `count` batches of `size` items that are long enough. Raises ValueError where there are too few."""
    rows: list[tuple[list[int], int]] = []
    for item in items:
        encoded = tokenizer.encode(item.text, add_special_tokens=False)
        if len(encoded.ids) >= TEXT_TOKENS - 1:
            spans = encoded.offsets[PROMPT_TOKENS - 1 : TEXT_TOKENS - 1]
            scored = item.text[spans[0][0] : spans[-1][1]]
            rows.append(([BEGIN, *encoded.ids[: TEXT_TOKENS - 1]], len(scored.encode())))
        if len(rows) == size * count:
            break
    if len(rows) < size * count:
        raise ValueError(f"texts: got {len(rows)} of {TEXT_TOKENS} tokens, allowed: at least {size * count}")
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    same = [PROMPT_TOKENS] * size
    return Texts(
        [Batch.of([ids for ids, _ in group], same, same, 0) for group in groups],
        [[n_bytes for _, n_bytes in group] for group in groups],
    )


def cloze_batches(tokenizer: Any, items: Sequence[ChoiceItem], size: int) -> list[list[Batch]]:
    """For each batch of `size` items, one batch per choice: choices of one item never decode together."""
    batches = []
    for start in range(0, len(items) - size + 1, size):
        group = items[start : start + size]
        contexts = [[BEGIN, *_ids(tokenizer, item.context)] for item in group]
        lengths = [len(context) for context in contexts]
        batches.append(
            [
                Batch.of(
                    [
                        context + _ids(tokenizer, f" {item.choices[choice]}")
                        for context, item in zip(contexts, group, strict=True)
                    ],
                    [length - CLOZE_LEAD for length in lengths],
                    lengths,
                    CLOZE_LEAD,
                )
                for choice in range(len(group[0].choices))
            ]
        )
    return batches


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
