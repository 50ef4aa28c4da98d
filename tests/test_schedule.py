"""Schedules: the paper's (b, h, e, p) to the digit, and what a rule becomes on a model."""

from __future__ import annotations

import csv
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.fields import FieldError, show
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.schedule import FULL, MASS, LayerTable, Limits, PhasedSchedule, SkipSchedule, interpolate_bhep

TABLE_10 = Path(__file__).parents[2] / "shared/paper/paper_t10_v2lite_skip_accuracy_avg.csv"

V2_LITE = MoEShape(27, tuple(range(1, 27)), 6, 64, 2, False, "softmax")
V3 = MoEShape(61, tuple(range(3, 61)), 8, 256, 1, True, "sigmoid", n_group=8, topk_group=4)
NO_SHARED = MoEShape(4, (0, 1, 2, 3), 4, 8, 0, True, "softmax")

counts = st.integers(0, 12)


def one_or_each(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """One value, or one for each MoE layer of V2-Lite."""
    return values | st.lists(values, min_size=26, max_size=26).map(tuple)


@st.composite
def schedules(draw: st.DrawFn) -> SkipSchedule:
    """Any rule that is valid on V2-Lite."""
    rule = draw(st.sampled_from(["na", "schedule", "layers", "min_ratio", "min_weight", "top_p", FULL]))
    values = {
        "na": counts,
        "schedule": st.tuples(counts, counts, counts, st.integers(1, 26)),
        "layers": st.tuples(*[counts] * 26),
        "min_ratio": one_or_each(st.floats(0, 1)),
        "min_weight": one_or_each(st.floats(0, 1)),
        "top_p": one_or_each(st.floats(0, 1, exclude_min=True)),
    }
    options = {
        "min_na": draw(st.none() | counts),
        "rescale": draw(one_or_each(st.sampled_from(["router", "mass"]) | st.floats(0.01, 10))),
    }
    return SkipSchedule(**{} if rule == FULL else {rule: draw(values[rule])}, **options)  # type: ignore[arg-type]


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


# --- the table ---


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


@given(schedules())
def test_object_form_round_trips(rule: SkipSchedule) -> None:
    written = rule.to_object()
    if rule.rule == FULL:
        assert written == {}
    else:
        assert SkipSchedule.from_object(written, "rule") == rule


def test_arrays_of_unequal_length_are_refused() -> None:
    one, two = np.ones(1), np.ones(2)
    with pytest.raises(ValueError, match="one length"):
        LayerTable(one, one, one, one, two, top_k=6)  # type: ignore[arg-type]


# --- the rule's own checks ---


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"na": 1, "top_p": 0.5}, "schedule"),
        ({"na": True}, "na"),
        ({"na": -1}, "na"),
        ({"na": 2.0}, "na"),
        ({"schedule": (1, 2, 3)}, "schedule"),
        ({"schedule": (1, 2, 3, 0)}, "schedule[3]"),
        ({"schedule": (1, "2", 3, 1)}, "schedule[1]"),
        ({"layers": ()}, "layers"),
        ({"layers": (1, None)}, "layers[1]"),
        ({"min_ratio": float("nan")}, "min_ratio"),
        ({"min_ratio": 1.01}, "min_ratio"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": float("inf")}, "top_p"),
        ({"rescale": "half"}, "rescale"),
        ({"rescale": 0}, "rescale"),
        ({"rescale": 1e-50}, "rescale"),
        ({"rescale": 11}, "rescale"),
        ({"rescale": True}, "rescale"),
        ({"min_weight": 1.01}, "min_weight"),
        ({"min_weight": (0.1, -0.1)}, "min_weight[1]"),
        ({"min_weight": 0.1, "min_ratio": 0.1}, "schedule"),
        ({"min_ratio": ()}, "min_ratio"),
        ({"min_ratio": (0.1, 0.2, 1.01)}, "min_ratio[2]"),
        ({"min_ratio": (0.1, None)}, "min_ratio[1]"),
        ({"min_ratio": (0.1, (0.2,))}, "min_ratio[1]"),
        ({"min_ratio": (True,)}, "min_ratio[0]"),
        ({"top_p": [0.5, 0]}, "top_p[1]"),
        ({"top_p": ["0.5"]}, "top_p[0]"),
        ({"rescale": (1, "half")}, "rescale[1]"),
        ({"rescale": ("mass", 11)}, "rescale[1]"),
        ({"layer_base": "dense"}, "layer_base"),
        ({"na": 2, "consolidate": 0}, "consolidate"),
        ({"na": 2, "consolidate": "3"}, "consolidate"),
        ({"min_ratio": 0.2, "consolidate": 2}, "consolidate"),
        ({"consolidate": 2}, "consolidate"),
    ],
)
def test_bad_values_name_their_field(values: dict[str, object], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        SkipSchedule(**values)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_lists_and_tuples_are_one_schedule() -> None:
    assert SkipSchedule(layers=[1, 2]) == SkipSchedule(layers=(1, 2))  # type: ignore[arg-type]


def test_with_floor_raises_magnitude_rules_only() -> None:
    assert SkipSchedule(min_ratio=0.2).with_floor(2) == SkipSchedule(min_ratio=0.2, min_na=2)
    assert SkipSchedule(min_weight=0.2).with_floor(2) == SkipSchedule(min_weight=0.2, min_na=2)
    assert SkipSchedule(top_p=0.2, min_na=3).with_floor(2).min_na == 3
    assert SkipSchedule(na=2).with_floor(3) == SkipSchedule(na=2)


def test_a_floor_never_exceeds_the_models_top_k() -> None:
    assert Limits.of(V2_LITE, min_na=8).min_na == 6
    assert Limits.of(NO_SHARED).min_na == 1


def test_phases() -> None:
    rule = SkipSchedule(na=2)
    assert PhasedSchedule.uniform(rule).to_object() == {"na": 2}
    assert PhasedSchedule(SkipSchedule(), rule).to_object() == {"prefill": {}, "decode": {"na": 2}}


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text() | st.binary(), st.lists))
def test_shown_values_are_one_short_ascii_line(value: object) -> None:
    text = show(value)
    assert len(text) <= 80 and text.isascii() and text.isprintable()


def test_shown_values_of_any_size_cost_little() -> None:
    assert show([0] * 10**6) == "a list of 1000000 items"
    assert show(10**10000) == "an integer of 33220 bits"
    assert show({str(i): i for i in range(1000)}) == "an object of 1000 keys"
    assert len(show("x\n" * 10**6)) == 80


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(FieldError("na", "x", "an integer")))
    assert (error.field, error.value, error.allowed) == ("na", "x", "an integer")
    assert str(error) == "na: got 'x', allowed: an integer"


def test_pure_modules_import_no_engine() -> None:
    modules = "schedule, model_shape, policy, hints, shapes, shape_checkpoint"
    code = f"import sys; from sglang_moe_opt import {modules}; sys.exit(bool({{'torch', 'sglang'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


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
