"""What the machine can do: the roof that the kernels are measured against."""

from __future__ import annotations

from torch import Tensor

from sglang_moe_opt.engine.cpu import native


def read(memory: Tensor) -> None:
    """Read every byte of a contiguous tensor as fast as all threads together can."""
    native.functions["read"](memory.data_ptr(), memory.nbytes)
