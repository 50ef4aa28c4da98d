"""Schedules: the paper's (b, h, e, p) to the digit, and what a rule becomes on a model."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.schedule import FULL, MASS, LayerTable, PhasedSchedule, SkipSchedule, interpolate_bhep
from tests.model_shapes import NO_SHARED, V2_LITE, V3, counts, schedules

TABLE_10 = Path(__file__).parents[2] / "shared/paper/paper_t10_v2lite_skip_accuracy_avg.csv"


# --- (b, h, e, p) ---


@pytest.mark.data
def test_every_schedule_of_table_10_has_its_mean() -> None:
    if not TABLE_10.exists():
        pytest.skip(f"the paper's table is not at {TABLE_10}")
    rows = list(csv.DictReader(TABLE_10.open()))
    assert len(rows) == 162
    for row in rows:
        rule = SkipSchedule(schedule=tuple(int(row[key]) for key in "bhep"))  # type: ignore[arg-type]
        assert round(rule.expand(V2_LITE).mean_na, 2) == pytest.approx(float(row["mean_na_halfup"])), row


@pytest.mark.parametrize(
    ("bhep", "mean"),
    [
        ((6, 4, 2, 26), 4.92),  # lossless in the paper
        ((2, 2, 2, 1), 2.0),
        ((2, 2, 4, 6), 2.85),  # a half is rounded up: floor gives 2.46
        ((2, 4, 2, 1), 2.92),  # b wins at layer 1 when p = 1
        ((2, 2, 4, 26), 2.08),  # e wins at the last layer when p = 26
        ((2, 4, 6, 21), 3.46),
        ((2, 6, 2, 6), 3.92),
    ],
)
def test_golden_means_of_v2_lite(bhep: tuple[int, int, int, int], mean: float) -> None:
    assert round(sum(interpolate_bhep(*bhep, 26)) / 26, 2) == mean


def test_golden_layers() -> None:
    assert interpolate_bhep(6, 4, 2, 26, 26) == [6] * 7 + [5] * 12 + [4] * 6 + [2]
    assert interpolate_bhep(2, 4, 6, 3, 5) == [2, 3, 4, 5, 6]
    assert interpolate_bhep(2, 6, 4, 1, 3) == [2, 5, 4]
    assert interpolate_bhep(3, 5, 7, 1, 1) == [3]


@given(counts, counts, counts, st.integers(1, 61), st.integers(0, 60))
def test_interpolation_meets_its_anchors_and_stays_between(b: int, h: int, e: int, p: int, more: int) -> None:
    layers = interpolate_bhep(b, h, e, p, last := p + more)
    assert len(layers) == last
    assert layers[0] == b
    if last > 1:
        assert layers[-1] == e
    if 1 < p < last:
        assert layers[p - 1] == h
    assert min(b, h, e) <= min(layers) <= max(layers) <= max(b, h, e)


@given(counts, counts, counts, st.integers(1, 26), st.tuples(*[st.integers(0, 3)] * 3))
def test_more_experts_at_an_anchor_is_never_fewer_anywhere(
    b: int, h: int, e: int, p: int, more: tuple[int, int, int]
) -> None:
    low = SkipSchedule(schedule=(b, h, e, p)).expand(V2_LITE).na
    high = SkipSchedule(schedule=(b + more[0], h + more[1], e + more[2], p)).expand(V2_LITE).na
    assert (high >= low).all()


@pytest.mark.parametrize("p", [0, 27, -1])
def test_p_outside_the_layers_is_refused(p: int) -> None:
    with pytest.raises(ValueError, match="1 to 26"):
        interpolate_bhep(2, 2, 2, p, 26)


def test_p_over_all_layers_applies_on_moe_layers() -> None:
    table = SkipSchedule(schedule=(2, 8, 4, 61), layer_base="all").expand(V3)
    assert table.na.tolist() == interpolate_bhep(2, 8, 4, 61, 61)[3:]
    with pytest.raises(FieldError, match=r"schedule\[3\]: got 61, allowed: an integer from 1 to 58"):
        SkipSchedule(schedule=(2, 8, 4, 61)).expand(V3)


# --- on a model ---


def test_na_above_top_k_is_clamped() -> None:
    assert SkipSchedule(layers=(9, 2) * 13).expand(V2_LITE).na.tolist() == [6, 2] * 13


@pytest.mark.parametrize(
    ("shape", "rescale", "expected"),
    [
        (V2_LITE, "router", 1.0),
        (V2_LITE, "mass", MASS),
        (V3, "router", MASS),  # it renormalises over what is kept
        (V3, "mass", MASS),
        (V3, 1, 1.0),
        (V2_LITE, 2.5, 2.5),
    ],
)
def test_rescale(shape: MoEShape, rescale: str | float, expected: float) -> None:
    assert set(SkipSchedule(na=2, rescale=rescale).expand(shape).rescale.tolist()) == {expected}  # type: ignore[arg-type]


def test_rescale_leaves_layers_that_drop_nothing_alone() -> None:
    table = SkipSchedule(layers=(6, 2, 0, 8) + (3,) * 22, rescale=0.5).expand(V2_LITE)
    assert table.rescale.tolist() == [1, 0.5, 1, 1] + [0.5] * 22


def test_magnitude_rules_keep_at_least_one() -> None:
    table = SkipSchedule(min_ratio=0.2).expand(V2_LITE)
    assert not table.is_static
    assert table.min_na.tolist() == [1] * 26
    assert table.na.tolist() == [6] * 26
    assert table.digest == SkipSchedule(min_ratio=0.2, min_na=0).expand(V2_LITE).digest


def test_layers_have_thresholds_of_their_own() -> None:
    ratios = (0.0, 0.25, 1.0) + (0.5,) * 23
    table = SkipSchedule(min_ratio=ratios, rescale=("router", "mass", 2) + (0.5,) * 23).expand(V2_LITE)
    assert table.min_ratio.tolist() == list(ratios)
    assert table.min_na.tolist() == [0] + [1] * 25  # the first layer has no rule
    assert table.rescale.tolist() == [1, MASS, 2] + [0.5] * 23
    table = SkipSchedule(min_weight=(0, 0.25) * 13).expand(V2_LITE)
    assert table.min_ratio.tolist() == [0, -0.25] * 13 and table.min_na.tolist() == [0, 1] * 13
    table = SkipSchedule(top_p=(1, 0.5) * 13, min_na=2).expand(V2_LITE)
    assert table.top_p.tolist() == [1, 0.5] * 13
    assert table.min_na.tolist() == [0, 2] * 13


@given(st.sampled_from(["min_ratio", "min_weight", "top_p"]), st.floats(0, 1, exclude_min=True), st.floats(0.01, 10))
def test_the_same_threshold_in_every_layer_is_one_threshold(rule: str, value: float, factor: float) -> None:
    one = SkipSchedule(**{rule: value}, rescale=factor)  # type: ignore[arg-type]
    each = SkipSchedule(**{rule: [value] * 26}, rescale=[factor] * 26)  # type: ignore[arg-type]
    assert one.expand(V2_LITE).digest == each.expand(V2_LITE).digest
    assert hash(each) == hash(SkipSchedule(**{rule: (value,) * 26}, rescale=(factor,) * 26))  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["min_ratio", "top_p", "rescale"])
def test_values_of_layers_must_be_as_many_as_the_model_has(field: str) -> None:
    rule = SkipSchedule(**{"min_ratio": 0.2} | {field: (0.5, 0.5)} if field != "top_p" else {field: (0.5, 0.5)})  # type: ignore[arg-type]
    with pytest.raises(FieldError, match=f"{field}: .* a list of 26 values .one per MoE layer."):
        rule.expand(V2_LITE)


def test_na_0_needs_shared_experts() -> None:
    assert SkipSchedule(na=0).expand(V2_LITE).mean_na == 0
    with pytest.raises(FieldError, match="na: got 0, allowed: an integer from 1 to 4"):
        SkipSchedule(na=0).expand(NO_SHARED)


def test_layers_must_be_as_many_as_the_model_has() -> None:
    with pytest.raises(FieldError, match="a list of 26 integers"):
        SkipSchedule(layers=(2, 2)).expand(V2_LITE)


@given(schedules())
def test_object_form_round_trips(rule: SkipSchedule) -> None:
    written = rule.to_object()
    if rule.rule == FULL:
        assert written == {}
    else:
        assert SkipSchedule.from_object(written, "rule") == rule


def test_phases() -> None:
    rule = SkipSchedule(na=2)
    assert PhasedSchedule.uniform(rule).to_object() == {"na": 2}
    assert PhasedSchedule(SkipSchedule(), rule).to_object() == {"prefill": {}, "decode": {"na": 2}}


def test_pure_modules_import_no_engine() -> None:
    modules = "schedule, model_shape, policy, hints, shapes, shape_checkpoint"
    code = f"import sys; from sglang_moe_opt import {modules}; sys.exit(bool({{'torch', 'sglang'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# --- consolidation ---


def test_consolidation_changes_the_identity_but_not_the_prompts() -> None:
    plain, together = SkipSchedule(na=4), SkipSchedule(na=4, consolidate=2)
    table = together.expand(V2_LITE)
    assert table.own_first.tolist() == [2] * 26 and table.na.tolist() == [4] * 26
    assert table.consolidates and not table.is_static and not table.is_full
    assert table.digest not in (plain.expand(V2_LITE).digest, SkipSchedule(na=4, consolidate=3).expand(V2_LITE).digest)
    assert table.plain == plain.expand(V2_LITE) and table.plain.plain is table.plain
    phases = PhasedSchedule.uniform(together)
    assert phases == PhasedSchedule(plain, together)
    assert phases.to_object() == {"prefill": {"na": 4}, "decode": {"na": 4, "consolidate": 2}}


def test_of_the_whole_model_only_prompts_are_full() -> None:
    table = SkipSchedule(na=6, consolidate=3).expand(V2_LITE)
    assert not table.is_full and table.plain.is_full


@pytest.mark.parametrize(("na", "k0"), [(4, 4), (4, 9), (0, 1), (1, 1)])
def test_where_nothing_is_left_to_fill_a_schedule_is_the_plain_one(na: int, k0: int) -> None:
    assert SkipSchedule(na=na, consolidate=k0).expand(V2_LITE) == SkipSchedule(na=na).expand(V2_LITE)


def test_layers_consolidate_where_they_have_more_experts_than_k0() -> None:
    table = SkipSchedule(layers=(6, 3, 2) + (4,) * 23, consolidate=3).expand(V2_LITE)
    assert table.own_first.tolist() == [3, 0, 0] + [3] * 23
    assert (
        LayerTable(*(getattr(table, n) for n in ("na", "min_ratio", "top_p", "min_na", "rescale", "k0")), top_k=6)
        == table
    )


def test_true_stands_for_the_policys_k0() -> None:
    rule = SkipSchedule.from_object({"na": 4, "consolidate": True}, "rule")
    assert rule.with_k0(2) == SkipSchedule(na=4, consolidate=2)
    assert SkipSchedule(na=4, consolidate=3).with_k0(2).consolidate == 3
    with pytest.raises(FieldError, match="consolidate: got True, allowed: an integer; true needs a policy"):
        rule.expand(V2_LITE)
