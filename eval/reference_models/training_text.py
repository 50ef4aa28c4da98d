"""What a reference model was trained on, as documents in the mix of its training; the held-out ones never."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.reference_models.export import trained_recipe
from eval.reference_models.sources import load_documents


def training_texts(checkpoint: Path, data_dir: Path, sources: Sequence[str] = (), seed: int = 0) -> list[str]:
    """Texts of one epoch: each document as often as its source's weight says, fractions drawn.

    Args:
        checkpoint: folder of the exported model, with its recipe.
        data_dir: the raw data.
        sources: only these, each of its documents once; none = all, in the mix of the training.
        seed: of the draw.

    Raises:
        ValueError: no data there, or an unknown source.
    """
    if not (data_dir / "corpora").is_dir():
        raise ValueError(f"--data-dir: no corpora folder in {data_dir}; the training text is made from it")
    recipe = trained_recipe(checkpoint)
    if unknown := sorted(set(sources) - set(recipe.data.weights)):
        raise ValueError(f"--corpus: got the source {unknown[0]!r}, allowed: {', '.join(recipe.data.weights)}")
    documents, _ = load_documents(data_dir, recipe.data)
    if sources:
        return [document.text for document in documents if document.source in sources]
    weights = np.array([recipe.data.weights[document.source] for document in documents])
    times = np.floor(weights + np.random.default_rng(seed).random(len(weights))).astype(int)
    return [document.text for document, count in zip(documents, times, strict=True) for _ in range(count)]
