"""Token streams: the cached corpus, the endless seeded training stream and the held-out windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from eval.reference_models.recipe import Recipe
from eval.reference_models.sources import Document


@dataclass(frozen=True)
class TokenCorpus:
    """Documents as one token array; document i is `tokens[offsets[i]:offsets[i + 1]]`, begin and end token included."""

    tokens: np.ndarray
    offsets: np.ndarray
    source_ids: np.ndarray
    n_bytes: np.ndarray
    sources: list[str]

    def save(self, path: Path) -> None:
        """Write as one uncompressed npz file, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(
            temporary,
            tokens=self.tokens,
            offsets=self.offsets,
            source_ids=self.source_ids,
            n_bytes=self.n_bytes,
            sources=np.array(self.sources),
        )
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> TokenCorpus:
        """Read what `save` wrote."""
        if not path.exists():
            raise FileNotFoundError(f"no token cache at {path}; run: python -m eval.reference_models tokenizer")
        with np.load(path) as file:
            return cls(file["tokens"], file["offsets"], file["source_ids"], file["n_bytes"], file["sources"].tolist())

    def only(self, source: str) -> tuple[np.ndarray, int]:
        """All tokens of one source and the bytes of text they stand for."""
        chosen = np.flatnonzero(self.source_ids == self.sources.index(source))
        parts = [self.tokens[self.offsets[i] : self.offsets[i + 1]] for i in chosen]
        return np.concatenate(parts), int(self.n_bytes[chosen].sum())


def encode_documents(documents: list[Document], tokenizer: PreTrainedTokenizerFast) -> TokenCorpus:
    """Tokenise every document as begin token, text, end token."""
    backend = tokenizer.backend_tokenizer
    encoded = backend.encode_batch([d.text for d in documents], add_special_tokens=False)
    lengths = np.array([len(e.ids) + 2 for e in encoded])
    offsets = np.concatenate([[0], lengths.cumsum()])
    tokens = np.empty(offsets[-1], dtype=np.uint16)
    for encoding, start, end in zip(encoded, offsets[:-1], offsets[1:], strict=True):
        tokens[start] = tokenizer.bos_token_id
        tokens[start + 1 : end - 1] = encoding.ids
        tokens[end - 1] = tokenizer.eos_token_id
    sources = sorted({d.source for d in documents})
    index = {source: i for i, source in enumerate(sources)}
    return TokenCorpus(
        tokens=tokens,
        offsets=offsets,
        source_ids=np.array([index[d.source] for d in documents]),
        n_bytes=np.array([len(d.text.encode()) for d in documents]),
        sources=sources,
    )


class TrainStream:
    """An endless, seeded stream of packed sequences; any batch is a pure function of its token position.

    Epoch e visits every document floor(weight) times plus once more with the probability of the fractional
    part, in an order drawn from (seed, e). Documents are packed end to end; a resumed run needs no reader state.
    """

    def __init__(self, corpus: TokenCorpus, recipe: Recipe) -> None:
        unknown = set(recipe.data.weights) ^ set(corpus.sources)
        if unknown:
            raise ValueError(f"sources and recipe weights differ in {sorted(unknown)}")
        self._corpus = corpus
        self._weights = np.array([recipe.data.weights[s] for s in corpus.sources])[corpus.source_ids]
        self._seed = recipe.seed
        self._length = recipe.data.sequence_length
        self._epochs: dict[int, np.ndarray] = {}
        self._starts = [0]

    def _epoch(self, number: int) -> np.ndarray:
        if number not in self._epochs:
            rng = np.random.default_rng((self._seed, number))
            whole = np.floor(self._weights)
            times = (whole + (rng.random(len(whole)) < self._weights - whole)).astype(int)
            order = rng.permutation(np.repeat(np.arange(len(times)), times))
            tokens, offsets = self._corpus.tokens, self._corpus.offsets
            self._epochs = {
                n: stream for n, stream in self._epochs.items() if n == number - 1
            }  # at most two are needed at once
            self._epochs[number] = np.concatenate([tokens[offsets[i] : offsets[i + 1]] for i in order])
        return self._epochs[number]

    def read(self, position: int, count: int) -> np.ndarray:
        """`count` tokens from token `position` of the endless stream."""
        number = 0
        while True:
            if number + 1 == len(self._starts):
                self._starts.append(self._starts[number] + len(self._epoch(number)))
            if position < self._starts[number + 1]:
                break
            number += 1
        parts: list[np.ndarray] = []
        offset = position - self._starts[number]
        while count > 0:
            part = self._epoch(number)[offset : offset + count]
            parts.append(part)
            count -= len(part)
            number, offset = number + 1, 0
        return np.concatenate(parts)

    def batch(self, position: int, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and next-token targets, both (sequences, sequence_length), int64."""
        block = torch.from_numpy(self.read(position, n_tokens + 1).astype(np.int64))
        return block[:-1].view(-1, self._length), block[1:].view(-1, self._length)


def sample_windows(corpus: TokenCorpus, sources: Sequence[str], count: int, length: int, seed: int = 0) -> torch.Tensor:
    """(count, length) tokens drawn without replacement from the sources' windows, laid end to end, int64."""
    tokens = np.concatenate([corpus.only(source)[0] for source in sources if source in corpus.sources])
    windows = tokens[: len(tokens) // length * length].reshape(-1, length)
    chosen = np.random.default_rng(seed).choice(len(windows), count, replace=False)
    return torch.from_numpy(windows[chosen].astype(np.int64))


def heldout_windows(tokens: np.ndarray, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut a held-out stream into (windows, length) inputs and targets; each token but the first is predicted once.

    The last window is filled up with target -100, which the loss ignores.
    """
    count = -(-(len(tokens) - 1) // length)
    padded = np.full(count * length + 1, -100, dtype=np.int64)
    padded[: len(tokens)] = tokens
    block = torch.from_numpy(padded)
    return block[:-1].clamp(min=0).view(count, length), block[1:].view(count, length)
