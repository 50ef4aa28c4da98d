"""Measured schedules: a CSV of schedules and scores, expanded layer by layer on a model. Pure."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.schedule import ModelShape, SkipSchedule
from sglang_moe_opt.schedule_limits import LayerBase

BHEP: Final = ("b", "h", "e", "p")
LAYERS: Final = "layers"
HIGHER: Final = ("score", "paper_avg", "average", "avg", "accuracy", "acc")
LOWER: Final = ("bits_per_byte", "loss", "kl", "perplexity")
"""Names of score columns, in the order in which one is chosen; of the second kind less is better."""


@dataclass(frozen=True)
class PlainShape:
    """A model of which only the number of MoE layers and the top-k are known."""

    num_layers: int
    top_k: int
    num_shared_experts: int = 1
    renormalize: bool = False

    def __post_init__(self) -> None:
        for name, value in (("layers", self.num_layers), ("top-k", self.top_k)):
            if value < 1:
                raise FieldError(name, value, "an integer from 1")

    @property
    def moe_layer_ids(self) -> tuple[int, ...]:
        return tuple(range(self.num_layers))


@dataclass(frozen=True, eq=False)
class Measurements:
    """Schedules with their scores.

    Attributes:
        shape: the model.
        rules: the schedules as they were written, N of them.
        tables: int64 [N, L]: routed experts of each MoE layer, 0..top_k.
        scores: float64 [N], as in the file.
        column: the score's name.
        lower_is_better: of two scores the smaller one is wanted.
    """

    shape: ModelShape
    rules: tuple[SkipSchedule, ...]
    tables: NDArray[np.int64]
    scores: NDArray[np.float64]
    column: str
    lower_is_better: bool = False

    def __len__(self) -> int:
        return len(self.rules)

    @property
    def sign(self) -> float:
        """Scores times this are larger where they are better."""
        return -1.0 if self.lower_is_better else 1.0

    @cached_property
    def mean_na(self) -> NDArray[np.float64]:
        """Mean routed experts per MoE layer: float64 [N]."""
        return np.asarray(self.tables.mean(1))

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """Number of its distinct table for every row, int64 [N]: rows with one table repeat one measurement."""
        return np.unique(self.tables, axis=0, return_inverse=True)[1].reshape(-1)

    @property
    def repeat_deviation(self) -> float | None:
        """Standard deviation of one measurement as its repeats show it; None where nothing is repeated."""
        counts = np.bincount(self.groups)
        freedom = len(self) - len(counts)
        if not freedom:
            return None
        means = np.bincount(self.groups, self.scores) / counts
        return float(np.sqrt(((self.scores - means[self.groups]) ** 2).sum() / freedom))

    def repeats(self, table: NDArray[np.int64]) -> NDArray[np.float64]:
        """The scores measured for a table, [0..N]."""
        return np.asarray(self.scores[(self.tables == table).all(1)])

    def subset(self, rows: NDArray[np.int64]) -> Measurements:
        """Only these rows."""
        rules = tuple(self.rules[row] for row in rows)
        return Measurements(self.shape, rules, self.tables[rows], self.scores[rows], self.column, self.lower_is_better)

    @classmethod
    def load(
        cls,
        path: Path,
        shape: ModelShape,
        column: str | None = None,
        *,
        layer_base: LayerBase = "moe",
        lower_is_better: bool | None = None,
    ) -> Measurements:
        """Read a CSV with a header.

        Each row has its schedule in the columns b, h, e, p, or in `layers` (na of each MoE layer: "6 5 4" or "6,5,4").

        Args:
            path: the file.
            shape: the model on which schedules are expanded.
            column: the score; default: the first of HIGHER and LOWER that the file has.
            layer_base: what p counts.
            lower_is_better: default: by the column's name.

        Raises:
            ValueError: one line that names file, line and column.
        """
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, strict=True)
                header = _header(reader.fieldnames)
                column = _score_column(header, column)
                rules, tables, scores = [], [], []
                for row in reader:
                    line = f"line {reader.line_num}"
                    rule = _rule(row, header, line, layer_base)
                    rules.append(rule)
                    tables.append(_table(rule, shape, line))
                    scores.append(_number(row, column, line))
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a CSV file ({error})") from None
        except FieldError as error:
            raise ValueError(f"{path}: {error}") from None
        if not rules:
            raise ValueError(f"{path}: no measurements below the header")
        if lower_is_better is None:
            lower_is_better = column in LOWER
        return cls(shape, tuple(rules), np.array(tables, np.int64), np.array(scores), column, lower_is_better)


def _header(names: Sequence[str] | None) -> tuple[str, ...]:
    header = tuple(names or ())
    if not set(BHEP) <= set(header) and LAYERS not in header:
        raise FieldError("line 1, header", ",".join(header), "columns b, h, e, p, or a column layers")
    return header


def _score_column(header: Sequence[str], column: str | None) -> str:
    if column is not None:
        if column not in header:
            raise FieldError("line 1, score column", column, ", ".join(header))
        return column
    found = next((name for name in HIGHER + LOWER if name in header), None)
    if found is None:
        raise FieldError("line 1, header", ",".join(header), "a score column: " + ", ".join(HIGHER + LOWER))
    return found


def _rule(row: Mapping[str, str | None], header: Sequence[str], line: str, layer_base: LayerBase) -> SkipSchedule:
    text = (row.get(LAYERS) or "").strip(" []") if LAYERS in header else ""
    if text:
        parts = text.replace(",", " ").split()
        layers = tuple(_integer(part, f"{line}, {LAYERS}[{index}]") for index, part in enumerate(parts))
        return _checked(line, layers=layers)
    if not set(BHEP) <= set(header):
        raise FieldError(f"{line}, {LAYERS}", row.get(LAYERS), "the experts of each MoE layer, such as 6 5 4")
    b, h, e, p = (_integer(row[name], f"{line}, {name}") for name in BHEP)
    return _checked(line, schedule=(b, h, e, p), layer_base=layer_base)


def _checked(line: str, **fields: object) -> SkipSchedule:
    try:
        return SkipSchedule(**fields)  # type: ignore[arg-type]
    except FieldError as error:
        raise _in_file(error, line) from None


def _table(rule: SkipSchedule, shape: ModelShape, line: str) -> NDArray[np.int32]:
    try:
        return rule.expand(shape).na
    except FieldError as error:
        raise _in_file(error, line) from None


def _in_file(error: FieldError, line: str) -> FieldError:
    """The error under the file's names: schedule[1] is column h."""
    names = {f"schedule[{index}]": name for index, name in enumerate(BHEP)}
    return FieldError(f"{line}, {names.get(error.field, error.field)}", error.value, error.allowed)


def _integer(value: str | None, field: str) -> int:
    try:
        return int(value or "")
    except ValueError:
        raise FieldError(field, value, "an integer") from None


def _number(row: Mapping[str, str | None], column: str, line: str) -> float:
    try:
        value = float(row[column] or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FieldError(f"{line}, {column}", row[column], "a finite number")
    return value
