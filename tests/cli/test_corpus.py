"""`--corpus heldout` is the first halves of what was held out, for any model with a tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.heldout import first_halves, halves, load_heldout, running_text
from eval.reference_models.recipe import PACKAGE_DIR
from sglang_moe_opt.cli.corpus import HELDOUT, read_corpus

MINI_V2 = PACKAGE_DIR / "checkpoints" / "mini-v2"


@pytest.mark.data
def test_heldout_is_all_first_halves_and_nothing_else(data_folder: Path) -> None:
    from transformers import AutoTokenizer

    corpus = read_corpus(HELDOUT, str(MINI_V2), data_folder, vocab_size=4096, piece=512, tokens=10**9, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(MINI_V2)
    documents = load_heldout(data_folder)
    first, second = first_halves(documents), [halves(one.text)[1] for one in running_text(documents)]
    texts = [tokenizer.decode(piece[1:].tolist()) for piece in corpus.pieces]
    assert sum(map(len, texts)) == pytest.approx(sum(map(len, first)), rel=1e-3)
    for text in texts:
        inside = text.strip("\ufffd")  # a piece may end within a character
        assert any(inside in half for half in first)
        assert len(inside) < 200 or not any(inside in half for half in second)
