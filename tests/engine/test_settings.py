"""Settings: what the environment says, and which policy follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_moe_opt.engine.settings import CONFIG_ENV, DEFAULT_ENV, ISOLATION_ENV, PRUNE_ENV, Settings
from sglang_moe_opt.policy import Policy, PolicyError


def test_nothing_set_leaves_sglang_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.from_env() == Settings(None, None)
    assert not Settings.from_env().enabled
    monkeypatch.setenv(CONFIG_ENV, "")
    monkeypatch.setenv(DEFAULT_ENV, "")
    assert not Settings.from_env().enabled


def test_either_variable_switches_skipping_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEFAULT_ENV, "fast")
    assert Settings.from_env().enabled
    assert Settings.from_env().load_policy() == Policy.builtin().with_default("fast")
    monkeypatch.delenv(DEFAULT_ENV)
    monkeypatch.setenv(CONFIG_ENV, "builtin")
    assert Settings.from_env().load_policy() == Policy.builtin()


def test_a_file_with_another_default(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("profiles: {a: {na: 1}, b: {na: 2}}\ndefault: a")
    assert Settings(str(file), None).load_policy().default == "a"
    assert Settings(str(file), "b").load_policy().default == "b"
    with pytest.raises(PolicyError, match="default: got 'c'"):
        Settings(str(file), "c").load_policy()
    with pytest.raises(PolicyError, match="policy file"):
        Settings(str(tmp_path / "absent.yaml"), None).load_policy()


def test_isolation_is_on_unless_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, isolated in (("1", True), ("", True), ("0", False)):
        monkeypatch.setenv(ISOLATION_ENV, value)
        assert Settings.from_env().cache_isolation is isolated


def test_a_plan_alone_does_not_switch_skipping_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRUNE_ENV, "/plans/half.json")
    settings = Settings.from_env()
    assert not settings.enabled
    assert settings.plan_file() == Path("/plans/half.json")


def test_a_policys_plan_lies_relative_to_it_and_the_flag_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy.yaml").write_text("prune_plan: plans/half.json")
    written = tmp_path / "plans/half.json"
    assert Settings(str(tmp_path / "policy.yaml"), None).plan_file() == written
    monkeypatch.chdir(tmp_path)
    assert Settings("policy.yaml", None).plan_file() == written
    assert Settings("policy.yaml", None, "/other.json").plan_file() == Path("/other.json")
    (tmp_path / "policy.yaml").write_text("profiles: {}")
    for config in ("policy.yaml", "builtin", None):
        assert Settings(config, None).plan_file() is None


def test_a_policy_may_consolidate(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("consolidation: {k0: 2, max_batch: 8}")
    consolidation = Settings(config=str(tmp_path / "policy.yaml"), default_profile=None).load_policy().consolidation
    assert consolidation is not None and consolidation.k0 == 2
