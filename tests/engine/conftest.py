"""No test leaves a state, a plan, a resolver or a variable of ours behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sglang_moe_opt.engine import state as engine_state
from sglang_moe_opt.engine.calibration import CALIBRATE_ENV
from sglang_moe_opt.engine.pruning.active import load_pruning
from sglang_moe_opt.engine.pruning.check import CHECKED_ENV
from sglang_moe_opt.engine.settings import CONFIG_ENV, DEFAULT_ENV, ISOLATION_ENV, LOG_ENV, PRUNE_ENV

OURS = (CONFIG_ENV, DEFAULT_ENV, ISOLATION_ENV, LOG_ENV, PRUNE_ENV, CHECKED_ENV, CALIBRATE_ENV)


@pytest.fixture(autouse=True)
def clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*OURS, "PROMETHEUS_MULTIPROC_DIR", "SGLANG_RUST_SERVER"):
        monkeypatch.setenv(name, "")  # recorded, so that what a test sets behind our back is undone as well
        monkeypatch.delenv(name)
    yield
    engine_state.set_state(None)
    load_pruning.cache_clear()
