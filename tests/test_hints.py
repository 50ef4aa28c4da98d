"""Request hints: what is accepted, what is refused and how, and that both processes see the same schedule."""

from __future__ import annotations

import json
import math
import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_moe_opt.hints import HintError, ResolvedHint, resolve
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy
from sglang_moe_opt.schedule import SkipSchedule

SHAPE = MoEShape(5, (1, 2, 3, 4), 6, 64, 2, False, "softmax")
POLICY = Policy.builtin()
FLOOR_2 = Policy.from_object({"min_na": 2, "profiles": {"adaptive": {"min_ratio": 0.2}, "fast": {"na": 2}}})

# --- accepted ---


@pytest.mark.parametrize(
    ("hint", "profile", "decode"),
    [
        (None, "full", {}),
        ("full", "full", {}),
        ("fast", "fast", {"na": 2}),
        ({"profile": "fast"}, "fast", {"na": 2}),
        ({"na": 2}, "custom", {"na": 2}),
        ({"na": 1024}, "custom", {}),
        ({"schedule": [6, 4, 2, 4]}, "custom", {"layers": [6, 5, 5, 2]}),
        ({"schedule": [6, 4, 2, 5], "layer_base": "all"}, "custom", {"layers": [6, 5, 5, 2]}),
        ({"layers": [6, 5, 4, 3]}, "custom", {"layers": [6, 5, 4, 3]}),
        (
            {"min_ratio": 0.2, "min_na": 2, "rescale": "mass"},
            "custom",
            {"min_ratio": 0.2, "min_na": 2, "rescale": "mass"},
        ),
        ({"min_ratio": 0}, "custom", {}),
        ({"min_ratio": [0, 0.1, 0.2, 0.3]}, "custom", {"min_ratio": [0, 0.1, 0.2, 0.3]}),
        ({"min_ratio": [0.2] * 4, "rescale": ["router"] * 4}, "custom", {"min_ratio": 0.2}),
        ({"top_p": [1, 1, 1, 1]}, "custom", {}),
        ({"min_weight": 0.2, "rescale": 1}, "custom", {"min_weight": [0.2] * 4, "rescale": 1}),
        ({"top_p": 0.9}, "custom", {"top_p": 0.9}),
        ({"top_p": 1}, "custom", {}),
        ({"na": 2, "rescale": 1.5}, "custom", {"na": 2, "rescale": 1.5}),
        ({"prefill": "full", "decode": "fast"}, "custom", {"na": 2}),
        ({"decode": {"profile": "fast"}}, "custom", {"na": 2}),
        ({"prefill": {"na": 2}}, "custom", {}),
    ],
)
def test_hints_that_are_accepted(hint: object, profile: str, decode: dict[str, object]) -> None:
    resolved = resolve(hint, POLICY, SHAPE)
    assert resolved.profile == profile
    assert resolved.is_custom == (profile == "custom")
    expected = SkipSchedule.from_object(decode, "expected") if decode else SkipSchedule()
    assert resolved.decode == expected.expand(SHAPE)


def test_a_missing_side_is_the_default_profiles() -> None:
    resolved = resolve({"prefill": {"na": 3}}, POLICY.with_default("fast"), SHAPE)
    assert resolved.prefill.mean_na == 3
    assert resolved.decode.mean_na == 2
    assert resolved.mean_na == {"prefill": 3.0, "decode": 2.0}


def test_full_is_full() -> None:
    resolved = resolve("full", POLICY, SHAPE)
    assert resolved.is_full and resolved.decode.digest == "full"
    assert resolved.mean_na == 6.0


def test_na_0_where_policy_and_model_allow_it() -> None:
    policy = Policy(min_na=0)
    assert resolve({"na": 0}, policy, SHAPE).mean_na == 0
    with pytest.raises(HintError, match="from 1 to 6"):
        resolve({"na": 0}, policy, MoEShape(5, (1, 2, 3, 4), 6, 64, 0, False, "softmax"))


# --- refused ---


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        ("slow", "custom_params.moe_skip: got 'slow', allowed: the profiles full, balanced, fast, adaptive"),
        ("", "custom_params.moe_skip: got ''"),
        ({"na": "x"}, "custom_params.moe_skip.na: got 'x', allowed: an integer from 1 to 6"),
        ({"na": True}, "custom_params.moe_skip.na: got True"),
        ({"na": 2.0}, "custom_params.moe_skip.na: got 2.0"),
        ({"na": 0}, "custom_params.moe_skip.na: got 0, allowed: an integer from 1 to 6"),
        ({"na": 1025}, "custom_params.moe_skip.na: got 1025"),
        ({"na": None}, "custom_params.moe_skip.na: got None"),
        ({"na": 10**5000}, "custom_params.moe_skip.na: got an integer of 16610 bits"),
        ({}, "custom_params.moe_skip: got [], allowed: exactly one of"),
        ([], "custom_params.moe_skip: got [], allowed: a profile"),
        (3, "custom_params.moe_skip: got 3"),
        (False, "custom_params.moe_skip: got False"),
        ({"na": 2, "top_p": 0.5}, "custom_params.moe_skip: got ['na', 'top_p'], allowed: exactly one of"),
        ({"profile": "fast", "na": 2}, "custom_params.moe_skip: got 'na', allowed: the keys profile"),
        ({"profile": 3}, "custom_params.moe_skip.profile: got 3, allowed: the profiles full"),
        ({"profile": ["fast"]}, "custom_params.moe_skip.profile: got ['fast']"),
        ({"speed": 2}, "custom_params.moe_skip: got 'speed', allowed: the keys profile, prefill, decode, na"),
        ({"rescale": "mass"}, "custom_params.moe_skip: got ['rescale'], allowed: exactly one of"),
        ({"na": 2, "rescale": float("inf")}, "custom_params.moe_skip.rescale: got inf"),
        ({"na": 2, "layer_base": "moe"}, "custom_params.moe_skip.layer_base: got 'moe', allowed: only together"),
        ({"schedule": [1, 1, 1]}, "custom_params.moe_skip.schedule: got [1, 1, 1], allowed: a list of 4"),
        ({"schedule": [1, 1, 1, 5]}, "custom_params.moe_skip.schedule[3]: got 5, allowed: an integer from 1 to 4"),
        ({"schedule": "6,4,2,4"}, "custom_params.moe_skip.schedule: got '6,4,2,4'"),
        ({"layers": [1, 1, 1]}, "custom_params.moe_skip.layers: got [1, 1, 1], allowed: a list of 4"),
        ({"layers": [1, 1, 1, 0]}, "custom_params.moe_skip.layers[3]: got 0"),
        (
            {"min_ratio": [0.1] * 5},
            "custom_params.moe_skip.min_ratio: got [0.1, 0.1, 0.1, 0.1, 0.1], allowed: a list of 4",
        ),
        ({"min_ratio": [0.1, 0.1, 0.1, 1.2]}, "custom_params.moe_skip.min_ratio[3]: got 1.2, allowed: a number from 0"),
        ({"top_p": [0.1, 0]}, "custom_params.moe_skip.top_p: got [0.1, 0], allowed: a list of 4 values"),
        ({"decode": {"na": 2, "rescale": [1, 1, 1, "x"]}}, "custom_params.moe_skip.decode.rescale[3]: got 'x'"),
        ({"min_ratio": float("nan")}, "custom_params.moe_skip.min_ratio: got nan, allowed: a number from 0 to 1"),
        ({"min_ratio": True}, "custom_params.moe_skip.min_ratio: got True"),
        ({"top_p": 0}, "custom_params.moe_skip.top_p: got 0"),
        ({"prefill": "fast", "na": 2}, "custom_params.moe_skip: got 'na', allowed: the keys prefill, decode"),
        ({"prefill": None}, "custom_params.moe_skip.prefill: got None"),
        ({"decode": {"na": 0}}, "custom_params.moe_skip.decode.na: got 0"),
        ({"decode": "slow"}, "custom_params.moe_skip.decode: got 'slow'"),
        ({"decode": {"prefill": "fast"}}, "custom_params.moe_skip.decode: got {'prefill': 'fast'}, allowed: one rule"),
    ],
)
def test_hints_that_are_refused(hint: object, message: str) -> None:
    with pytest.raises(HintError) as caught:
        resolve(hint, POLICY, SHAPE)
    assert str(caught.value).startswith(message)
    assert caught.value.status == 400


def test_the_field_is_what_the_caller_calls_it() -> None:
    with pytest.raises(HintError, match=r"^x-moe-skip: got 'slow'"):
        resolve("slow", POLICY, SHAPE, field="x-moe-skip")


def test_custom_schedules_can_be_forbidden() -> None:
    policy = Policy.from_object({"allow_custom": False, "profiles": {"fast": {"na": 2}}})
    assert resolve("fast", policy, SHAPE).mean_na == 2
    assert resolve({"profile": "fast"}, policy, SHAPE).mean_na == 2
    for hint in ({"na": 2}, {"prefill": "fast"}):
        with pytest.raises(HintError, match=r"allowed: a profile: full, fast$"):
            resolve(hint, policy, SHAPE)


def test_nobody_goes_below_the_policys_floor() -> None:
    for hint in ({"na": 1}, {"layers": [6, 6, 6, 1]}, {"schedule": [2, 1, 2, 3]}, {"min_ratio": 0.5, "min_na": 1}):
        with pytest.raises(HintError, match="an integer from 2 to 6"):
            resolve(hint, FLOOR_2, SHAPE)
    for magnitude in ({"min_ratio": 0.5}, {"top_p": 0.1}, "adaptive", {"decode": "adaptive"}):
        assert resolve(magnitude, FLOOR_2, SHAPE).decode.min_na.tolist() == [2] * 4
    assert resolve({"min_ratio": 0.5, "min_na": 3}, FLOOR_2, SHAPE).decode.min_na.tolist() == [3] * 4


def test_a_floor_above_the_models_top_k_leaves_the_model_itself() -> None:
    policy = Policy(min_na=8)
    assert resolve({"na": 6}, policy, SHAPE).is_full
    assert resolve({"min_ratio": 0.5}, policy, SHAPE).is_full


def test_a_profile_that_does_not_fit_the_model_is_an_error_of_the_hint() -> None:
    policy = Policy.from_object({"profiles": {"other": {"layers": [1, 2]}}})
    with pytest.raises(HintError, match=r"profiles\.other\.layers"):
        resolve("other", policy, SHAPE)


def test_size_costs_nothing() -> None:
    big = [1] * 10**6
    start = time.perf_counter()
    for hint in (
        {"layers": big},
        {"min_ratio": big},
        {"na": 1, "rescale": big},
        {"schedule": big},
        {"na": big},
        {"decode": big},
        big,
        {"profile": "x" * 10**6},
    ):
        with pytest.raises(HintError) as caught:
            resolve(hint, POLICY, SHAPE)
        assert len(str(caught.value)) < 400
    assert time.perf_counter() - start < 0.5


def test_depth_costs_nothing() -> None:
    deep: object = 1
    for _ in range(100_000):
        deep = {"decode": deep}
    with pytest.raises(HintError):
        resolve(deep, POLICY, SHAPE)
    while isinstance(deep, dict):  # or its deallocation recurses
        deep = deep.pop("decode")


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(HintError("na", 1, "2", status=429)))
    assert (error.field, error.value, error.allowed, error.status) == ("na", 1, "2", 429)


# --- the wire ---

leaves = st.none() | st.booleans() | st.integers(-3, 12) | st.integers() | st.floats() | st.text(max_size=5)
names = st.sampled_from(["full", "fast", "adaptive", "balanced", "slow", "router", "mass", "all", "moe"])
keys = st.sampled_from(
    [
        "profile",
        "na",
        "schedule",
        "layers",
        "min_ratio",
        "min_weight",
        "top_p",
        "min_na",
        "rescale",
        "layer_base",
        "prefill",
        "decode",
    ]
)
junk = st.recursive(
    leaves | names | st.lists(st.integers(0, 7), min_size=4, max_size=4),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
rules = st.one_of(
    st.fixed_dictionaries({"na": st.integers(0, 9)}),
    st.fixed_dictionaries({"layers": st.lists(st.integers(0, 7), min_size=4, max_size=4)}),
    st.fixed_dictionaries({"schedule": st.tuples(*[st.integers(0, 7)] * 3, st.integers(1, 5)).map(list)}),
    st.fixed_dictionaries({"min_ratio": st.floats(0, 1)}, optional={"min_na": st.integers(0, 7)}),
    st.fixed_dictionaries({"min_ratio": st.lists(st.floats(0, 1.1), min_size=3, max_size=5)}),
    st.fixed_dictionaries({"min_weight": st.floats(0, 1) | st.lists(st.floats(0, 1), min_size=4, max_size=4)}),
    st.fixed_dictionaries({"top_p": st.lists(st.floats(0, 1) | leaves, min_size=4, max_size=4)}),
    st.fixed_dictionaries({"top_p": st.floats(0, 1)}, optional={"rescale": names | st.floats(0, 11)}),
)
plausible = rules | names | st.dictionaries(st.sampled_from(["prefill", "decode"]), rules | names, max_size=2)


@settings(max_examples=500)
@given(junk | plausible, st.sampled_from([POLICY, FLOOR_2, Policy(min_na=0), Policy(allow_custom=False)]))
def test_any_json_is_refused_or_means_one_thing(hint: object, policy: Policy) -> None:
    try:
        resolved = resolve(hint, policy, SHAPE)
    except HintError as error:
        text = str(error)
        assert text.isascii() and text.isprintable()
        assert error.field.startswith(("custom_params.moe_skip", "profiles."))
        return
    assert resolve(hint, policy, SHAPE) == resolved
    received = ResolvedHint.from_wire(resolved.to_wire(), SHAPE)
    assert received == resolved
    assert received.prefill.digest == resolved.prefill.digest
    assert received.decode.digest == resolved.decode.digest
    assert received.is_custom == resolved.is_custom
    means = resolved.mean_na
    assert all(math.isfinite(mean) for mean in (means.values() if isinstance(means, dict) else [means]))


def test_the_wire_is_compact_json() -> None:
    text = resolve({"decode": "fast"}, POLICY, SHAPE).to_wire()
    assert json.loads(text) == {"profile": "custom", "schedule": {"prefill": {}, "decode": {"na": 2}}}
    assert " " not in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"profile":1,"schedule":{}}',
        '{"profile":"a","schedule":3}',
        '{"profile":"a","schedule":{"na":99999}}',
        '{"profile":"a","schedule":{"layers":[1]}}',
        "[" * 100_000,
    ],
)
def test_a_broken_wire_is_refused(text: str) -> None:
    with pytest.raises(HintError, match="wire"):
        ResolvedHint.from_wire(text, SHAPE)


# --- consolidation ---

JOINING = {"profiles": {"together": {"na": 6, "consolidate": True}}, "consolidation": {"k0": 2}, "min_na": 2}


def test_a_profile_consolidates_its_decode_and_shares_the_prompts_of_full() -> None:
    policy = Policy.from_object(JOINING)
    resolved = resolve("together", policy, SHAPE)
    assert resolved.prefill.is_full and resolved.decode.own_first.tolist() == [2] * 4
    assert resolved.mean_na == 6 and not resolved.is_full
    assert ResolvedHint.from_wire(resolved.to_wire(), SHAPE) == resolved
    mixed = resolve({"prefill": {"na": 4}, "decode": {"profile": "together"}}, policy, SHAPE)
    assert mixed.decode == resolved.decode and mixed.prefill.na.tolist() == [4] * 4
    reverse = resolve({"prefill": {"profile": "together"}, "decode": {"na": 4}}, policy, SHAPE)
    assert not reverse.decode.consolidates
    assert ResolvedHint.from_wire(mixed.to_wire(), SHAPE) == mixed
    assert ResolvedHint.from_wire(reverse.to_wire(), SHAPE) == reverse


@pytest.mark.parametrize("hint", [{"na": 6, "consolidate": 3}, {"decode": {"na": 6, "consolidate": True}}])
@pytest.mark.parametrize("policy", [JOINING, {}])
def test_a_request_does_not_consolidate_by_itself(policy: object, hint: object) -> None:
    with pytest.raises(HintError, match=r"consolidate: got (3|True), allowed: only by a profile") as caught:
        resolve(hint, Policy.from_object(policy), SHAPE)
    assert caught.value.status == 400


def test_a_policy_may_let_requests_consolidate_above_its_floor() -> None:
    policy = Policy.from_object({**JOINING, "consolidation": {"k0": 3, "allow_custom": True}})
    assert resolve({"na": 6, "consolidate": True}, policy, SHAPE).decode.own_first.tolist() == [3] * 4
    with pytest.raises(HintError, match="consolidate: got 1, allowed: an integer from 2 to 6"):
        resolve({"na": 6, "consolidate": 1}, policy, SHAPE)
    with pytest.raises(HintError, match=r"prefill\.consolidate: got 3, allowed: only in decode"):
        resolve({"prefill": {"na": 6, "consolidate": 3}}, policy, SHAPE)
    floor = Policy.from_object({"consolidation": {"k0": 1, "allow_custom": True}, "min_na": 2})
    with pytest.raises(HintError, match="consolidate: got 1, allowed: an integer from 2 to 6"):
        resolve({"na": 6, "consolidate": True}, floor, SHAPE)
