"""Rows of the routing table: who gets one, who gives way, what is written to the device."""

from __future__ import annotations

from sglang_moe_opt.engine.rows import FULL_ROW, NONE_ROW, RowCache
from sglang_moe_opt.layer_table import LayerTable
from tests.engine.stand_ins import hint


def table(na: int) -> LayerTable:
    return hint({"na": na}).decode


def test_two_rows_are_reserved() -> None:
    rows = RowCache(4)
    assert {NONE_ROW, FULL_ROW} == {0, 1}
    assert rows.assign("a", table(1)) == 2
    assert rows.assign("a", table(2)) == 3


def test_every_full_table_shares_one_row_that_is_never_written() -> None:
    rows = RowCache(4)
    assert rows.assign("a", hint("full").decode) == FULL_ROW
    assert rows.assign("b", table(6)) == FULL_ROW
    assert list(rows.take_pending()) == []
    assert rows.labels == {FULL_ROW: "full"}


def test_a_known_schedule_keeps_its_row_and_is_written_once() -> None:
    rows = RowCache(4)
    row = rows.assign("a", table(1))
    assert rows.assign("a", table(1)) == row
    assert [(r, t.digest) for r, t in rows.take_pending()] == [(row, table(1).digest)]
    assert rows.assign("a", table(1)) == row
    assert list(rows.take_pending()) == []


def test_the_metrics_tell_two_profiles_of_one_schedule_apart() -> None:
    rows = RowCache(4)
    first, second = rows.assign("fast", table(2)), rows.assign("custom", table(2))
    assert first != second
    assert rows.labels[first] == "fast" and rows.labels[second] == "custom"


def test_the_least_recently_used_row_gives_way() -> None:
    rows = RowCache(5)
    one, two, three = (rows.assign("a", table(na)) for na in (1, 2, 3))
    rows.assign("a", table(1))  # one is young again
    assert rows.assign("b", table(4)) == two
    assert rows.labels[two] == "b"
    assert rows.assign("a", table(2)) == three
    assert rows.assign("a", table(3)) == one


def test_a_row_that_changes_hands_before_it_was_written_is_written_once_with_the_last_owner() -> None:
    rows = RowCache(3)
    row = rows.assign("a", table(1))
    assert rows.assign("a", table(2)) == row
    assert [(r, t.digest) for r, t in rows.take_pending()] == [(row, table(2).digest)]
