"""The option `--corpus`: text files, what a reference model was trained on, or text that it never saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sglang_moe_opt.pruning.corpus import Corpus

REFERENCE: Final = "reference"
"""Corpus name: what a reference model was trained on; `reference:gloss,boolq` = these sources of it."""
HELDOUT: Final = "heldout"
"""Corpus name: the first half of every text that was held out from the reference models; the rest is for judging."""
CORPUS_HELP: Final = (
    "Text or JSONL file, a folder of them, 'reference', the mini models' training text, or 'heldout', text they never "
    "saw."
)


def read_corpus(
    corpus: str, model: str, data_dir: Path | None, *, vocab_size: int, piece: int, tokens: int, seed: int
) -> Corpus:
    """The text that `--corpus` names, cut into pieces of at most `piece` tokens, `tokens` of it in all.

    Args:
        corpus: text or JSONL file, a folder of them, REFERENCE, or HELDOUT.
        model: folder or hub id, for its tokenizer.
        data_dir: raw data of the reference models' text; None is beside the repository.
        vocab_size: token ids must be below.
        piece: most tokens of a piece.
        tokens: of all pieces.
        seed: of their order.

    Raises:
        ValueError: nothing to read there, or not for this model.
    """
    from sglang_moe_opt.pruning.corpus import Document, make_corpus, read_documents

    documents: list[Document]
    name, _, sources = corpus.partition(":")
    if name == REFERENCE:
        from eval.reference_models.recipe import DEFAULT_DATA_DIR
        from eval.reference_models.training_text import training_texts

        chosen = sources.split(",") if sources else ()
        documents = list(training_texts(Path(model), data_dir or DEFAULT_DATA_DIR, chosen, seed))
    elif corpus == HELDOUT:
        documents = list(_heldout(data_dir))
    else:
        documents = list(read_documents(Path(corpus)))
    tokenizer = _tokenizer(model) if any(isinstance(one, str) for one in documents) else None

    def encode(texts: Any) -> list[list[int]]:
        assert tokenizer is not None
        ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    begin = None if tokenizer is None or not tokenizer("a")["input_ids"] else tokenizer("a")["input_ids"][0]
    return make_corpus(
        documents,
        encode=None if tokenizer is None else encode,
        begin=begin if tokenizer is not None and begin == tokenizer.bos_token_id else None,
        vocab_size=vocab_size,
        piece_tokens=piece,
        tokens=tokens,
        seed=seed,
    )


def _heldout(data_dir: Path | None) -> list[str]:
    """What HELDOUT names. Raises ValueError where the raw data is missing."""
    from eval.heldout import first_halves, load_heldout
    from eval.reference_models.recipe import DEFAULT_DATA_DIR

    try:
        return first_halves(load_heldout(data_dir or DEFAULT_DATA_DIR))
    except OSError as error:
        raise ValueError(f"--data-dir: {error.filename}: {error.strerror}; held-out text is made from it") from None


def _tokenizer(model: str) -> Any:
    """The model's tokenizer; None where its folder has none."""
    from sglang_moe_opt.launch import lacks_tokenizer

    if lacks_tokenizer(Path(model)):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)
