"""The schedule table and the choice rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sglang_moe_opt.routing import MASS, Choice, RoutingTable


def row(**changed: object) -> dict[str, object]:
    """Arguments of ``write_row`` for a table of three layers."""
    values: dict[str, object] = {
        "na": np.array([1, 2, 3]),
        "min_ratio": np.array([0.0, 0.5, 0.0]),
        "top_p": np.ones(3),
        "min_na": np.array([0, 1, 0]),
        "rescale": np.array([MASS, 1.0, 2.0]),
    }
    return values | changed


def test_a_new_table_drops_every_routed_expert() -> None:
    table = RoutingTable.allocate(2, 3, "cpu")
    assert table.na.shape == (2, 3)
    assert table.na.dtype == table.min_na.dtype == torch.int32
    assert table.min_ratio.dtype == table.top_p.dtype == table.rescale.dtype == torch.float32
    assert table.na.sum() == 0


def test_write_row_writes_one_row_in_place() -> None:
    table = RoutingTable.allocate(2, 3, "cpu")
    addresses = [table.na.data_ptr(), table.rescale.data_ptr()]
    table.write_row(1, **row())
    assert table.na.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert table.min_ratio[1].tolist() == [0.0, 0.5, 0.0]
    assert table.top_p[1].tolist() == [1.0, 1.0, 1.0]
    assert table.min_na[1].tolist() == [0, 1, 0]
    assert table.rescale.tolist() == [[1.0, 1.0, 1.0], [-1.0, 1.0, 2.0]]
    assert [table.na.data_ptr(), table.rescale.data_ptr()] == addresses


def test_write_row_accepts_read_only_arrays() -> None:
    na = np.array([3, 3, 3])
    na.flags.writeable = False
    table = RoutingTable.allocate(1, 3, "cpu")
    table.write_row(0, **row(na=na))
    assert table.na.tolist() == [[3, 3, 3]]


def test_a_bad_row_is_refused_whole() -> None:
    table = RoutingTable.allocate(1, 3, "cpu")
    with pytest.raises(ValueError, match=r"rescale has shape \(1,\); the table has 3 layers"):
        table.write_row(0, **row(rescale=np.array([1.0])))
    assert table.na.sum() == 0
    with pytest.raises(IndexError, match=r"row 1 is not in the table's 0\.\.0"):
        table.write_row(1, **row())


def test_an_unknown_scoring_is_refused() -> None:
    with pytest.raises(ValueError, match="'relu' is not supported; supported: softmax, sigmoid, sqrtsoftplus"):
        Choice(torch.zeros(1, 4), None, "relu")
