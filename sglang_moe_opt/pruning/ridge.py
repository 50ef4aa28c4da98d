"""Ridge regression over features of which each token has a few blocks only: those of the experts that serve it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 16384
"""Tokens whose features exist in dense form at a time."""


@dataclass(frozen=True)
class Block:
    """One expert's share of a sum: `out[rows] += features @ weights`.

    Attributes:
        rows: int64 [n], ascending: the tokens that it serves.
        features: float32 [n, I].
        weights: float32 [I, H], as they are before the fit.
    """

    rows: Tensor
    features: Tensor
    weights: Tensor

    def first(self, tokens: int) -> Block:
        """The block of the first so many tokens."""
        count = int(torch.searchsorted(self.rows, tokens))
        return Block(self.rows[:count], self.features[:count], self.weights)


def combine(blocks: Iterable[Block], tokens: int) -> Tensor:
    """The sum of what the blocks add to so many tokens: [T, H]."""
    total: Tensor | None = None
    for block in blocks:
        total = torch.zeros(tokens, block.weights.shape[1]) if total is None else total
        total.index_add_(0, block.rows, block.features @ block.weights)
    if total is None:
        raise ValueError("blocks: none")
    return total


def refit(blocks: Sequence[Block], target: Tensor, ridge: float, max_features: int = 8192) -> list[Tensor]:
    """The blocks' weights, float32 [I, H] each, for which the sum of all is nearest to `target` [T, H].

    Minimises |sum - target|^2 + ridge |D (weights - before)|^2, D^2 being the features' summed squares and a tenth of
    their mean. Exact where all features together are at most `max_features`; else groups of blocks take turns, twice.
    """
    residual = target - combine(blocks, len(target))
    groups = list(_groups(blocks, max_features))
    changes = [torch.zeros_like(block.weights) for block in blocks]
    for _ in range(1 if len(groups) == 1 else 2):
        for members in groups:
            group = [blocks[index] for index in members]
            gram, moment = _normal_equations(group, residual)
            penalty = ridge * (gram.diagonal() + 0.1 * gram.diagonal().mean())
            moment -= penalty.unsqueeze(1) * torch.cat([changes[index] for index in members]).double()
            step = torch.linalg.solve(gram + torch.diag(penalty), moment).float()
            for index, part in zip(members, step.split([block.weights.shape[0] for block in group]), strict=True):
                changes[index] += part
                residual.index_add_(0, blocks[index].rows, blocks[index].features @ part, alpha=-1)
    return [block.weights + change for block, change in zip(blocks, changes, strict=True)]


def _groups(blocks: Sequence[Block], max_features: int) -> Iterator[list[int]]:
    """Numbers of blocks with at most so many features together, or of a single one that has more."""
    members: list[int] = []
    width = 0
    for index, block in enumerate(blocks):
        if members and width + block.features.shape[1] > max_features:
            yield members
            members, width = [], 0
        members.append(index)
        width += block.features.shape[1]
    yield members


def _normal_equations(blocks: Sequence[Block], residual: Tensor) -> tuple[Tensor, Tensor]:
    """features^T features, float64 [F, F], and features^T residual, float64 [F, H]."""
    widths = [block.features.shape[1] for block in blocks]
    columns = [slice(end - width, end) for end, width in zip(_cumulated(widths), widths, strict=True)]
    gram = torch.zeros(sum(widths), sum(widths), dtype=torch.float64)
    moment = torch.zeros(sum(widths), residual.shape[1], dtype=torch.float64)
    for start in range(0, len(residual), CHUNK):
        tokens = residual[start : start + CHUNK]
        dense = torch.zeros(len(tokens), sum(widths))
        parts = []
        for block, place in zip(blocks, columns, strict=True):
            first, end = torch.searchsorted(block.rows, torch.tensor([start, start + len(tokens)])).tolist()
            rows, features = block.rows[first:end] - start, block.features[first:end]
            dense[rows, place] = features
            parts.append((rows, features, place))
        for rows, features, place in parts:
            gram[place] += features.t() @ dense[rows]
            moment[place] += features.t() @ tokens[rows]
    return gram, moment


def _cumulated(widths: Sequence[int]) -> list[int]:
    return torch.tensor(widths).cumsum(0).tolist()
