"""What a server's processes leave out of their imports, and that it ends when the plugin is loaded."""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Iterator

import pytest

from sglang_moe_opt import quick_imports
from sglang_moe_opt.engine import plugin


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    yield before
    quick_imports.end()
    gc.unfreeze()
    gc.set_threshold(*before)


def test_a_package_is_as_if_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "colorsys", sys)  # so that it is taken back
    del sys.modules["colorsys"]
    monkeypatch.setenv(quick_imports.LEFT_OUT_ENV, "colorsys,sys")
    assert importlib.util.find_spec("colorsys") is not None
    quick_imports.begin()
    assert importlib.util.find_spec("colorsys") is None
    with pytest.raises(ImportError):
        import colorsys  # noqa: F401
    assert sys.modules["sys"] is sys, "what is there already stays"


def test_garbage_is_collected_as_before_once_the_plugin_is_loaded(
    monkeypatch: pytest.MonkeyPatch, thresholds: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(plugin, "is_detokenizer", lambda: True)
    quick_imports.begin()
    assert gc.get_threshold() == quick_imports.THRESHOLDS
    assert gc.get_freeze_count() == 0
    plugin.register()
    assert gc.get_threshold() == thresholds
    assert gc.get_freeze_count() > 0, "modules stay: no collection need look at them"


def test_thresholds_that_somebody_else_set_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "is_detokenizer", lambda: True)
    quick_imports.begin()
    gc.set_threshold(1234, 5, 6)
    plugin.register()
    assert gc.get_threshold() == (1234, 5, 6)
    gc.set_threshold(*quick_imports.THRESHOLDS)
    plugin.register()
    assert gc.get_threshold() == quick_imports.THRESHOLDS, "nothing had begun"
