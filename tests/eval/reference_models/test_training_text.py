"""Calibration text of a reference model: its training documents in their mix, none that was held out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from eval.reference_models.export import trained_recipe
from eval.reference_models.recipe import PACKAGE_DIR
from eval.reference_models.sources import load_documents
from eval.reference_models.training_text import training_texts

CHECKPOINT = PACKAGE_DIR / "checkpoints" / "mini-v2"


@pytest.mark.data
@pytest.mark.slow
def test_training_documents_in_their_mix(data_dir: Path) -> None:
    recipe = trained_recipe(CHECKPOINT)
    train, heldout = load_documents(data_dir, recipe.data)
    texts = training_texts(CHECKPOINT, data_dir)
    assert not set(texts) & {document.text for document in heldout}
    times = Counter(texts)
    for source, weight in recipe.data.weights.items():
        group = [document.text for document in train if document.source == source]
        once = [text for text, count in Counter(group).items() if count == 1]
        mean = sum(times[text] for text in once) / len(once)
        assert mean == pytest.approx(weight, abs=4 * 0.5 / len(once) ** 0.5 + 0.02), source
    assert training_texts(CHECKPOINT, data_dir) == texts
    only = training_texts(CHECKPOINT, data_dir, ["facts", "grimm"])
    assert only == [document.text for document in train if document.source in ("facts", "grimm")]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no corpora folder in"):
        training_texts(CHECKPOINT, tmp_path)
    (tmp_path / "corpora").mkdir()
    with pytest.raises(ValueError, match="got the source 'poems', allowed: wikitext, tinystories"):
        training_texts(CHECKPOINT, tmp_path, ["grimm", "poems"])
