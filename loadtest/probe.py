"""What this machine can do right now: read bandwidth and peak bf16 rate, probed in about a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from sglang_moe_opt.engine.cpu import native
from sglang_moe_opt.engine.cpu.native import probe
from sglang_moe_opt.perfmodel.roofline import Machine

READ_BYTES = 1 << 29  # well above any cache
MATRIX = 2048


class Probe:
    """Keeps its buffers, so that probing again costs nothing but the probe."""

    def __init__(self) -> None:
        native.load()
        self._memory = torch.ones(READ_BYTES, dtype=torch.uint8)
        self._matrix = torch.randn(MATRIX, MATRIX).bfloat16()

    def machine(self, repeats: int = 3) -> Machine:
        """The best of ``repeats`` runs of each: a roof is what is possible."""
        return Machine(
            read_bandwidth=READ_BYTES / _least_seconds(lambda: probe.read(self._memory), repeats),
            peak_flops=2 * MATRIX**3 / _least_seconds(lambda: self._matrix @ self._matrix, repeats),
        )


def _least_seconds(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)
