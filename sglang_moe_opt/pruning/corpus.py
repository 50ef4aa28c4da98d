"""Text or token ids to calibrate with: read from files, cut into pieces, shuffled, as many as are asked for."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.fields import is_int, show
from sglang_moe_opt.files import write_atomically

Ids = NDArray[np.int32]
Document = str | list[int]
Encode = Callable[[Sequence[str]], list[list[int]]]
"""Token ids of texts, without begin and end tokens."""

TEXT_SUFFIXES: Final = (".txt", ".txt.gz")
JSONL_SUFFIXES: Final = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Corpus:
    """Pieces of text as token ids, each a prompt of its own, in the order in which they are sent."""

    pieces: tuple[Ids, ...]

    @property
    def starts(self) -> NDArray[np.int64]:
        """int64 [pieces + 1]: number of each piece's first token, and of all."""
        return np.cumsum([0, *map(len, self.pieces)], dtype=np.int64)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def sha256(self) -> str:
        """64 hex digits over the ids and where the pieces end."""
        state = hashlib.sha256(self.starts.tobytes())
        for piece in self.pieces:
            state.update(piece.tobytes())
        return state.hexdigest()

    def save(self, path: Path) -> None:
        """Write ``ids`` int32 [tokens] and ``starts`` int64 [pieces + 1] as safetensors, whole or not at all."""
        from safetensors.numpy import save

        write_atomically(path, save({"ids": np.concatenate(self.pieces), "starts": self.starts}))

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Read what :meth:`save` wrote. Raises ValueError, one line that begins with the path."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(path.read_bytes())
            return cls(tuple(np.split(tensors["ids"], tensors["starts"][1:-1])))
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}; moe-opt calibrate writes it") from None
        except (KeyError, SafetensorError) as error:
            raise ValueError(f"{path}: {error}; not the text of a calibration") from None

    def runs(self, pieces: range, tokens: int) -> list[range]:
        """``pieces`` in consecutive runs of about so many tokens."""
        starts = self.starts[pieces.start : pieces.stop]
        cuts = np.flatnonzero(np.diff((starts - starts[0]) // tokens)) + 1 + pieces.start
        return [range(first, end) for first, end in pairwise([pieces.start, *cuts.tolist(), pieces.stop])]

    def sample(self, count: int, seed: int) -> NDArray[np.int64]:
        """Ascending numbers of ``count`` different tokens, or of all where there are fewer."""
        count = min(count, self.tokens)
        return np.sort(np.random.default_rng((seed, 1)).choice(self.tokens, count, replace=False)).astype(np.int64)


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of a text file (one), of a JSONL file (one a line), or of a folder of them, by name.

    A JSONL line is an object with ``text`` or ``prompt``, a string, or with ``ids``, a list of token ids.

    Raises:
        ValueError: nothing to read there, or a line that is none of these; names file and line.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.endswith((*TEXT_SUFFIXES, *JSONL_SUFFIXES)))
        if not files:
            raise ValueError(f"--corpus: {path} has no file named *{', *'.join((*TEXT_SUFFIXES, *JSONL_SUFFIXES))}")
    elif path.is_file():
        files = [path]
    else:
        allowed = "a text or JSONL file, a folder of them, 'reference', 'heldout'"
        raise ValueError(f"--corpus: {path} is not there; allowed: {allowed}")
    for file in files:
        try:
            raw = file.read_bytes()
            text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode()
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise ValueError(f"--corpus: {file}: {error}") from None
        yield from _json_lines(file, text) if file.name.endswith(JSONL_SUFFIXES) else [text]


def _json_lines(file: Path, text: str) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"--corpus: {file}: line {number}: {error}") from None
        found = _document(row)
        if found is None:
            allowed = "an object with 'text' or 'prompt', a string, or 'ids', a list of integers"
            raise ValueError(f"--corpus: {file}: line {number}: got {show(row)}, allowed: {allowed}")
        yield found


def _document(row: Any) -> Document | None:
    if not isinstance(row, dict):
        return None
    for key in ("text", "prompt"):
        if isinstance(row.get(key), str):
            return str(row[key])
    ids = row.get("ids")
    return ids if isinstance(ids, list) and all(map(is_int, ids)) else None


def make_corpus(
    documents: Iterable[Document],
    *,
    encode: Encode | None,
    begin: int | None,
    vocab_size: int,
    piece_tokens: int,
    tokens: int,
    seed: int,
) -> Corpus:
    """Cut documents into pieces, shuffle these, and take ``tokens`` tokens of them; the last piece is cut to fit.

    Args:
        documents: texts or lists of token ids; ids are sent as they are.
        encode: the model's tokenizer; None where it has none.
        begin: id that begins each piece of a text.
        vocab_size: ids must be below.
        piece_tokens: length of a piece, at most.
        tokens: how many in all, at most.
        seed: of the order.

    Raises:
        ValueError: text without a tokenizer, an id out of range, or no tokens at all.
    """
    documents = list(documents)
    texts = [document for document in documents if isinstance(document, str)]
    if texts and encode is None:
        raise ValueError("--corpus: the model has no tokenizer, allowed: JSONL with token 'ids'")
    encoded = iter(encode(texts) if encode is not None and texts else [])
    pieces: list[Ids] = []
    for document in documents:
        front = [begin] if isinstance(document, str) and begin is not None else []
        ids = next(encoded) if isinstance(document, str) else document
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise ValueError(f"--corpus: got the token id {wrong}, allowed: 0 to {vocab_size - 1}")
        step = piece_tokens - len(front)
        pieces += [np.array([*front, *ids[at : at + step]], np.int32) for at in range(0, len(ids), step)]
    order = np.random.default_rng((seed, 0)).permutation(len(pieces))
    chosen: list[Ids] = []
    for index in order:
        if tokens <= 0:
            break
        chosen.append(pieces[index][:tokens])
        tokens -= len(chosen[-1])
    if not chosen:
        raise ValueError("--corpus: no tokens there")
    return Corpus(tuple(chosen))
