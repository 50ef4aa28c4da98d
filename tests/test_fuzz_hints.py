"""Whatever a client sends as a hint, and whatever arrives as a resolved one: a schedule, or a refusal by field."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.hints import HintError, ResolvedHint, resolve
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import PHASES, Policy
from sglang_moe_opt.schedule import OPTIONS, RULES
from tests.fuzz import BOUNDED, junk, numbers, objects, text

SHAPE = MoEShape(5, (1, 2, 3, 4), 6, 64, 2, False, "softmax")
AUTO = {"levels": ["full", "fast"], "speedup": {"fast": {1: 1.5}}}
POLICIES = [
    Policy.from_object({"profiles": {"fast": {"na": 2}, "auto": {"auto": AUTO}}, **more})
    for more in (
        {},
        {"min_na": 2, "default": "auto"},
        {"allow_custom": False},
        {"consolidation": {"allow_custom": True}},
    )
]
values = st.one_of(junk, numbers, st.lists(st.one_of(st.integers(-1, 9), st.floats(-0.1, 1.1)), min_size=3, max_size=5))
rules = objects([*RULES, *OPTIONS, "profile", "consolidate", "auto"], values)
hints = st.one_of(rules, objects(PHASES, st.one_of(rules, text, junk)), junk)


@BOUNDED
@given(hints, st.sampled_from(POLICIES))
def test_any_hint(value: Any, policy: Policy) -> None:
    try:
        hint = resolve(value, policy, SHAPE)
    except HintError as error:
        assert error.status == 400 and error.field.startswith(("custom_params.moe_skip", "profiles."))
        assert str(error).isascii() and str(error).isprintable() and len(str(error)) < 2000
        return
    assert ResolvedHint.from_wire(hint.to_wire(), SHAPE) == hint
    assert min(hint.prefill.na.min(), hint.decode.na.min()) >= policy.min_na
    hash(hint)


WIRES = [resolve(name, POLICIES[0], SHAPE).to_wire() for name in ("full", "fast", "auto")]


@st.composite
def broken_wires(draw: st.DrawFn) -> str:
    """A wire with one value in it replaced, or one character changed."""
    wire = draw(st.sampled_from(WIRES))
    if draw(st.booleans()):
        place = draw(st.integers(0, len(wire) - 1))
        return wire[:place] + draw(st.text(max_size=2)) + wire[place + 1 :]
    content = json.loads(wire)
    inside = content["auto"] if "auto" in content and draw(st.booleans()) else content
    inside[draw(st.sampled_from(sorted(inside)))] = draw(junk.filter(_is_json))
    return json.dumps(content)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


@BOUNDED
@given(st.one_of(broken_wires(), st.text(max_size=40)))
def test_any_wire(wire: str) -> None:
    """A scheduler that cannot read a schedule aborts the request; it gets no other exception."""
    try:
        hint = ResolvedHint.from_wire(wire, SHAPE)
    except HintError:
        return
    assert ResolvedHint.from_wire(hint.to_wire(), SHAPE) == hint
