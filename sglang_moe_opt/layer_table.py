"""`LayerTable`: what a schedule does on one model, layer by layer; its digest is the schedule's identity."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

MASS: Final = -1.0  # value of LayerTable.rescale that keeps the token's routed weight mass
FULL: Final = "full"  # digest of the unmodified model


@dataclass(frozen=True, eq=False)
class LayerTable:
    """A rule expanded on a model: arrays of length L = number of MoE layers, read-only and in one canonical form.

    na int32 [L]: experts kept at most, 0..top_k. min_ratio float32 [L]: 0 = off, below 0 it is minus a min_weight.
    top_p float32 [L]: 1 = off.
    min_na int32 [L]: experts the rules by weight always keep; 1..na there, 0 in layers without such a rule.
    rescale float32 [L]: factor on kept weights, or MASS; 1 in layers where nothing can be dropped or nothing is kept.
    k0 int32 [L]: own experts of a token that consolidates, 1..na-1; 0 in layers that do not (magnitude rules never do).
    Two spellings of one behaviour are equal and share `digest`. ValueError on arrays of unequal length.
    """

    na: NDArray[np.int32]
    min_ratio: NDArray[np.float32]
    top_p: NDArray[np.float32]
    min_na: NDArray[np.int32]
    rescale: NDArray[np.float32]
    k0: NDArray[np.int32] | None = None
    top_k: int = field(kw_only=True)

    def __post_init__(self) -> None:
        na = np.clip(_column(self.na, np.int32), 0, self.top_k)
        ratio = np.clip(_column(self.min_ratio, np.float32), -1, 1) + np.float32(0)  # + 0 turns -0.0 into 0.0
        top_p = np.clip(_column(self.top_p, np.float32), 0, 1)
        floor = np.maximum(_column(self.min_na, np.int32), 1)
        rescale = _column(self.rescale, np.float32)
        k0 = np.zeros_like(na) if self.k0 is None else _column(self.k0, np.int32)
        if len({len(column) for column in (na, ratio, top_p, floor, rescale, k0)}) != 1:
            raise ValueError("LayerTable: its arrays must have one length, the number of MoE layers")
        dynamic = ((ratio != 0) | (top_p < 1)) & (floor < na)
        k0 = np.where((k0 > 0) & (k0 < na) & ~dynamic, k0, 0)
        keeps_rescale = dynamic | ((na < self.top_k) & (na > 0)) | (k0 > 0)
        columns = {
            "na": na,
            "min_ratio": np.where(dynamic, ratio, 0),
            "top_p": np.where(dynamic, top_p, 1),
            "min_na": np.where(dynamic, floor, 0),
            "rescale": np.where(keeps_rescale, rescale, 1),
            "k0": k0,
        }
        for name, column in columns.items():
            dtype = np.int32 if name in ("na", "min_na", "k0") else np.float32
            array = np.ascontiguousarray(column, dtype=dtype)
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.na)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerTable) and self._fingerprint == other._fingerprint

    def __hash__(self) -> int:
        return hash(self._fingerprint)

    @cached_property
    def is_static(self) -> bool:
        """How many experts a token gets depends neither on its weights nor on its company."""
        return not (self.weighs or self.consolidates)

    @cached_property
    def consolidates(self) -> bool:
        """In some layer a token's experts depend on the batch."""
        return bool(self.own_first.any())

    @cached_property
    def weighs(self) -> bool:
        """In some layer how many experts a token gets depends on its weights."""
        return bool(self.min_na.any())

    @cached_property
    def drops(self) -> bool:
        """In some layer experts are dropped without regard to the batch."""
        alone = self.own_first == 0
        return bool((alone & ((self.na < self.top_k) | (self.min_na > 0))).any())

    @property
    def own_first(self) -> NDArray[np.int32]:
        """k0, which is always an array once the table is made."""
        assert self.k0 is not None
        return self.k0

    @cached_property
    def plain(self) -> LayerTable:
        """The same without consolidation; itself where there is none."""
        if not self.consolidates:
            return self
        return LayerTable(self.na, self.min_ratio, self.top_p, self.min_na, self.rescale, top_k=self.top_k)

    @cached_property
    def is_full(self) -> bool:
        """Nothing is ever dropped: this is the unmodified model, whatever rescale said."""
        return self.is_static and bool((self.na >= self.top_k).all())

    @cached_property
    def mean_na(self) -> float:
        """Mean of na over the MoE layers; an upper bound of what is kept unless `is_static`."""
        return float(self.na.mean())

    @cached_property
    def _fingerprint(self) -> str:
        state = hashlib.sha256(f"moe-skip-table-1 {len(self)} {self.top_k}".encode())
        for column in (self.na, self.min_ratio, self.top_p, self.min_na, self.rescale):
            state.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
        if self.consolidates:  # tables without it keep the digests that they had before there was any
            state.update(b"k0" + self.own_first.astype("<i4").tobytes())
        return state.hexdigest()[:32]

    @property
    def digest(self) -> str:
        """The schedule's identity on this model: 32 hex characters, or "full"."""
        return FULL if self.is_full else self._fingerprint


def _column(values: ArrayLike, dtype: type[np.int32] | type[np.float32]) -> NDArray[Any]:
    column = np.asarray(values, dtype=dtype)
    if column.ndim != 1:
        raise ValueError(f"LayerTable: its arrays have one dimension, got {column.ndim}")
    return column
