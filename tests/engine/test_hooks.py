"""Every hook finds its place in the installed SGLang and can be called from there."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sglang_moe_opt import sglang_version
from sglang_moe_opt.compat.calls import calls
from sglang_moe_opt.engine import hooks, plugin
from sglang_moe_opt.engine.calibration.hooks import HOOKS as CALIBRATION_HOOKS
from sglang_moe_opt.engine.cpu.hooks import HOOKS as CPU_HOOKS
from sglang_moe_opt.engine.hooks import HOOKS, Hook

registry = pytest.importorskip("sglang.srt.plugins.hook_registry")


def target_function(hook: Hook) -> Callable[..., Any]:
    return inspect.unwrap(getattr(hooks._resolve(hook.target), "__func__", hooks._resolve(hook.target)))


def hook_function(hook: Hook) -> Callable[..., Any]:
    module, name = hook.function.split(":")
    function = getattr(importlib.import_module(f"sglang_moe_opt.engine.{module}"), name)
    assert callable(function)
    return function


@pytest.mark.parametrize(
    "hook", (*HOOKS, *CALIBRATION_HOOKS, *CPU_HOOKS), ids=lambda hook: hook.target.removeprefix("sglang.srt.")
)
def test_a_hook_fits_what_it_hooks(hook: Hook) -> None:
    assert not isinstance(hooks._resolve(hook.target), type)
    signature = inspect.signature(hook_function(hook))
    first = {"AFTER": ["result"], "AROUND": ["original"], "BEFORE": []}[hook.kind]
    for args, kwargs in calls(inspect.signature(target_function(hook))):
        bound = signature.bind(*first, *args, **kwargs).arguments
        # what has the same name on both sides holds the same thing
        for name, value in bound.items():
            if name in inspect.signature(target_function(hook)).parameters:
                assert value == name
        if first:
            assert next(iter(bound.values())) == first[0]


def test_no_target_is_hooked_twice_and_each_has_a_reason() -> None:
    assert len({hook.target for hook in HOOKS}) == len(HOOKS)
    assert all(hook.reason for hook in HOOKS)
    assert set(hooks.TARGETS) == {hook.target for hook in HOOKS}


def place(target: str) -> tuple[Any, str]:
    owner, _, name = target.rpartition(".")
    return pkgutil.resolve_name(owner), name


@pytest.fixture
def framework(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """SGLang's real registry, empty; what was applied is taken back."""
    monkeypatch.setattr(registry.HookRegistry, "_hooks", registry.HookRegistry._hooks.copy())
    monkeypatch.setattr(registry.HookRegistry, "_patched", set())
    registry.HookRegistry._hooks.clear()
    # as stored in the class, that is with classmethod and staticmethod
    originals = {target: inspect.getattr_static(*place(target)) for target in hooks.TARGETS}
    yield registry.HookRegistry
    for target, original in originals.items():
        owner, name = place(target)
        applied = inspect.getattr_static(owner, name)
        if applied is not original:
            setattr(owner, name, original)
            registry._propagate_patch(applied, original, owner)


def test_unhooked_targets_are_named(framework: Any) -> None:
    """Also that no target is wrapped by upstream itself, which would pass for ours."""
    with pytest.raises(RuntimeError, match=r"could not hook.*moe-opt doctor") as caught:
        hooks.verify_applied()
    assert all(hook.target in str(caught.value) for hook in HOOKS)


def test_the_framework_applies_every_hook(framework: Any, caplog: pytest.LogCaptureFixture) -> None:
    hooks.register_hooks()
    with caplog.at_level(logging.ERROR):
        framework.apply_hooks()
    assert caplog.records == []
    hooks.verify_applied()


def test_one_failed_hook_is_named(framework: Any) -> None:
    hooks.register_hooks()
    failed = "sglang.srt.layers.moe.topk._post_process_topk_ids"
    del framework._hooks[failed]
    framework.apply_hooks()
    with pytest.raises(RuntimeError) as caught:
        hooks.verify_applied()
    assert str(caught.value).startswith(f"sglang-moe-opt could not hook {failed};")


# --- the plugin ---


def test_a_broken_plugin_ends_a_configured_server_and_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("no such place")

    monkeypatch.setattr(hooks, "register_hooks", broken)
    monkeypatch.setattr("sglang_moe_opt.engine.cpu.is_plain_cpu", lambda: False)
    with pytest.raises(ImportError):
        plugin.register()
    monkeypatch.setenv("SGLANG_MOE_OPT_CONFIG", "builtin")
    with pytest.raises(SystemExit, match=r"error: sglang-moe-opt cannot be loaded: .*no such place"):
        plugin.register()


def test_nothing_is_registered_where_nothing_is_hooked(framework: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process that SGLang calls its detokenizer, before it loads plugins."""
    from sglang.srt.managers import detokenizer_manager

    class Loaded(Exception):
        pass

    def load_plugins() -> None:
        plugin.register()
        raise Loaded

    title = ["python"]
    monkeypatch.setattr(detokenizer_manager, "load_plugins", load_plugins)
    monkeypatch.setattr(detokenizer_manager, "kill_itself_when_parent_died", lambda: None)
    monkeypatch.setattr("setproctitle.setproctitle", lambda given: title.__setitem__(0, given))
    monkeypatch.setattr("setproctitle.getproctitle", lambda: title[0])
    with pytest.raises(Loaded):
        detokenizer_manager.run_detokenizer_process(None, None)
    assert not framework._hooks
    assert not any("detokenizer" in hook.target for hook in (*HOOKS, *CALIBRATION_HOOKS, *CPU_HOOKS))


@pytest.mark.parametrize("version", ["0.5.22", "0.5.24", "0.5.23.post1", "0.5.23rc1", "unknown", None])
def test_another_sglang_is_refused_where_something_is_configured(
    framework: Any, monkeypatch: pytest.MonkeyPatch, version: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sglang_version, "installed_version", lambda: version)
    monkeypatch.setattr("sys.argv", ["sglang", "serve", "--model-path", "m"])
    plugin.register()  # SGLang as it is, without our hooks
    assert not framework._hooks
    assert "SGLang is left as it is" in caplog.text
    found = "none is installed" if version is None else f"found {version}"
    message = rf"^error: sglang-moe-opt [\d.]+ works with sglang {sglang_version.SUPPORTED}, {found}: pip install "
    monkeypatch.setattr("sys.argv", ["sglang", "serve", "--moe-opt-config=policy.yaml"])
    with pytest.raises(SystemExit, match=message):
        plugin.register()
    monkeypatch.setattr("sys.argv", ["sglang"])
    monkeypatch.setenv("SGLANG_MOE_OPT_SKIP_DEFAULT", "fast")
    with pytest.raises(SystemExit, match=message):
        plugin.register()


@pytest.mark.parametrize("version", ["0.5.23", "0.5.23+cu130"])
def test_builds_of_the_supported_version_are_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(sglang_version, "installed_version", lambda: version)
    assert sglang_version.refusal() is None


def test_the_plugin_knows_our_flags(framework: Any) -> None:
    import argparse

    from sglang_moe_opt.engine.flags import add_cli_args

    parser = argparse.ArgumentParser(add_help=False)
    add_cli_args(None, parser)
    assert set(plugin.FLAGS) == {action.option_strings[0] for action in parser._actions}


@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_plugin_registers_its_hooks(framework: Any, monkeypatch: pytest.MonkeyPatch, on_cpu: bool) -> None:
    cpu_hooks: list[str] = []
    monkeypatch.setattr("sglang_moe_opt.engine.cpu.is_plain_cpu", lambda: on_cpu)
    monkeypatch.setattr("sglang_moe_opt.engine.cpu.register_cpu_hooks", lambda: cpu_hooks.append("registered"))
    plugin.register()
    assert set(framework._hooks) == set(hooks.TARGETS)
    assert cpu_hooks == ["registered"] * on_cpu


def test_only_a_calibrating_server_records(framework: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang_moe_opt.engine.cpu.is_plain_cpu", lambda: False)
    monkeypatch.setenv("SGLANG_MOE_OPT_CALIBRATE", "folder")
    plugin.register()
    assert set(framework._hooks) == {hook.target for hook in (*HOOKS, *CALIBRATION_HOOKS)}
