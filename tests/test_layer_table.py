"""The table of a schedule: one form and one digest for one behaviour."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from sglang_moe_opt.schedule import FULL, LayerTable, SkipSchedule
from tests.model_shapes import V2_LITE, schedules


def test_spellings_of_one_behaviour_share_a_digest() -> None:
    digests = {
        rule.expand(V2_LITE).digest
        for rule in (
            SkipSchedule(na=2),
            SkipSchedule(schedule=(2, 2, 2, 11)),
            SkipSchedule(schedule=(2, 2, 2, 27), layer_base="all"),
            SkipSchedule(layers=(2,) * 26),
            SkipSchedule(na=2, min_na=1),  # without effect on a static rule
            SkipSchedule(na=2, rescale=1.0),  # V2-Lite's router does not renormalise
            SkipSchedule(na=2, rescale="router"),
        )
    }
    assert len(digests) == 1
    (digest,) = digests
    assert len(digest) == 32 and int(digest, 16)


def test_behaviours_differ_in_digest() -> None:
    rules = [
        SkipSchedule(),
        SkipSchedule(na=2),
        SkipSchedule(na=3),
        SkipSchedule(na=2, rescale="mass"),
        SkipSchedule(na=2, rescale=0.5),
        SkipSchedule(min_ratio=0.2),
        SkipSchedule(min_ratio=0.2, min_na=2),
        SkipSchedule(min_weight=0.2),
        SkipSchedule(top_p=0.2),
    ]
    assert len({rule.expand(V2_LITE).digest for rule in rules}) == len(rules)


@pytest.mark.parametrize(
    "rule",
    [
        SkipSchedule(),
        SkipSchedule(rescale=0.5),
        SkipSchedule(na=6, rescale="mass"),
        SkipSchedule(na=1000),
        SkipSchedule(layers=(6, 7) * 13),
        SkipSchedule(min_ratio=0),
        SkipSchedule(min_ratio=-0.0),
        SkipSchedule(min_weight=0),
        SkipSchedule(min_weight=(0.0,) * 26),
        SkipSchedule(top_p=1),
        SkipSchedule(min_ratio=0.9, min_na=6),
        SkipSchedule(schedule=(6, 8, 6, 3)),
    ],
)
def test_what_drops_nothing_is_full(rule: SkipSchedule) -> None:
    table = rule.expand(V2_LITE)
    assert table.is_full
    assert table.digest == FULL
    assert table == SkipSchedule().expand(V2_LITE)
    assert table.mean_na == 6


@given(schedules())
def test_any_table_is_canonical(rule: SkipSchedule) -> None:
    table = rule.expand(V2_LITE)
    again = LayerTable(table.na, table.min_ratio, table.top_p, table.min_na, table.rescale, top_k=6)
    assert again == table and hash(again) == hash(table)
    assert again.digest == table.digest
    assert table.is_full == (table.digest == FULL)
    for name, dtype in (("na", "i4"), ("min_ratio", "f4"), ("top_p", "f4"), ("min_na", "i4"), ("rescale", "f4")):
        column = getattr(table, name)
        assert column.dtype == np.dtype(dtype) and column.shape == (26,) and not column.flags.writeable
    assert ((table.na >= 0) & (table.na <= 6)).all()


def test_arrays_of_unequal_length_are_refused() -> None:
    one, two = np.ones(1), np.ones(2)
    with pytest.raises(ValueError, match="one length"):
        LayerTable(one, one, one, one, two, top_k=6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "digest"),
    [
        (SkipSchedule(schedule=(6, 4, 2, 26)), "cdeae178930074b68837760b09956e84"),
        (SkipSchedule(min_ratio=0.2, min_na=2), "1776c6bda66a5ac77955a79d0cbf130e"),
        (SkipSchedule(top_p=0.8, rescale=1.1), "6b42294050b08561db87ae3a0551edc1"),
    ],
)
def test_digest_is_stable_across_versions(rule: SkipSchedule, digest: str) -> None:
    """A change here empties every prefix cache in the field: it must be on purpose."""
    assert rule.expand(V2_LITE).digest == digest
