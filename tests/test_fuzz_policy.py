"""Whatever stands in a policy file: a policy that works, or one line that names a field; and nothing else is raised."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.auto.profile import KEYS
from sglang_moe_opt.hints import ResolvedHint, resolve
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import MAX_BYTES, PHASES, Consolidation, Policy, PolicyError
from sglang_moe_opt.schedule import OPTIONS, RULES
from tests.fuzz import BOUNDED, junk, objects, text

SHAPE = MoEShape(5, (1, 2, 3, 4), 6, 64, 2, False, "softmax")
rules = objects([*RULES, *OPTIONS])
sides = st.one_of(rules, text, junk)
autos = st.fixed_dictionaries({"auto": st.one_of(junk, objects(KEYS))})
profiles = st.dictionaries(text, st.one_of(rules, autos, objects(PHASES, sides), junk), max_size=4)
fields: dict[str, Any] = {name: junk for name in Policy.model_fields}
fields["profiles"] = st.one_of(profiles, junk)
fields["consolidation"] = st.one_of(objects(list(Consolidation.model_fields)), junk)
policies = st.one_of(st.fixed_dictionaries({}, optional=fields), objects(list(fields)), junk)
yaml_like = st.text(alphabet="profiles:{}[]&*!<>|-? \n\tna12#%@`'\"", max_size=80).map(str.encode)


def survives(make: Any) -> None:
    """The policy can be used on a model, in this process and in the scheduler's; or it is refused by field."""
    try:
        policy = make()
        policy.check(SHAPE)
    except PolicyError as error:
        assert error.field and "\n" not in str(error) and len(str(error)) < 2000
        return
    for name in policy.names:
        hint = resolve(name, policy, SHAPE)
        assert ResolvedHint.from_wire(hint.to_wire(), SHAPE) == hint


@BOUNDED
@given(policies)
def test_any_content(content: Any) -> None:
    survives(lambda: Policy.from_object(content))


@BOUNDED
@given(profiles)
def test_any_profiles(content: Any) -> None:
    survives(lambda: Policy.from_object({"profiles": content}))


@BOUNDED
@given(st.one_of(st.binary(max_size=200), yaml_like))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    file.write_bytes(content)
    survives(lambda: Policy.load(file))


@BOUNDED
@given(policies)
def test_any_yaml(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    survives(lambda: Policy.load(file))


@pytest.mark.parametrize(
    "content",
    [
        "profiles: !!python/object/apply:os.system ['true']",
        "!!python/object/new:os.system [true]",
        "profiles: &a {fast: *a}",
        "[" * 1000,
        "{" * 1000,
        "default: 2026-99-99",
    ],
)
def test_tricks_of_yaml(tmp_path: Path, content: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(content)
    with pytest.raises(PolicyError):
        Policy.load(file)


@pytest.mark.parametrize(
    "last", ["profiles: *x8", "profiles: {fast: {layers: *x8}}", "default: *x8", "profiles: {fast: {na: *x8}}"]
)
def test_aliases_within_aliases_take_no_time(tmp_path: Path, last: str) -> None:
    """A file of a kilobyte that stands for a billion values."""
    lines = ["x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 9)]
    file = tmp_path / "policy.yaml"
    file.write_text("\n".join([*lines, last]))
    with pytest.raises(PolicyError) as caught:
        Policy.load(file)
    assert len(str(caught.value)) < 1000


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"#" * (MAX_BYTES + 1))
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "large", Path("/dev/zero"), tmp_path / "absent"):
        with pytest.raises(PolicyError, match="policy file: got "):
            Policy.load(path)
