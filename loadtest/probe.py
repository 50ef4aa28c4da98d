"""What this machine can do right now: read bandwidth and peak bf16 rate, probed in a third of a second."""

from __future__ import annotations

import statistics
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

    def machine(self, reads: int = 15, products: int = 5) -> Machine:
        """Medians: the host's other guests come and go within milliseconds, and a burst meets all of them."""
        return Machine(
            read_bandwidth=READ_BYTES / _seconds(lambda: probe.read(self._memory), reads),
            peak_flops=2 * MATRIX**3 / _seconds(lambda: self._matrix @ self._matrix, products),
        )


def _seconds(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
