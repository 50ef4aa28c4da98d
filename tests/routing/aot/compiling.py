"""Triton kernels compiled for GPUs that are not there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90)


def compiled(
    kernel: Any, arch: int, constants: Mapping[str, Any], pointers: Mapping[str, str], directory: Path
) -> tuple[dict[str, int], str]:
    """Compile for sm_`arch`; return the resource usage by name (REG, STACK, LOCAL, SHARED), and the PTX.

    Arguments that are neither constants nor in `pointers` are int32.
    """
    given = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {name: "constexpr" if name in given else pointers.get(name, "i32") for name in kernel.arg_names}
    done = triton.compile(ASTSource(kernel, types, given), target=GPUTarget("cuda", arch, 32), options={"num_warps": 4})
    # Without a device Triton leaves n_regs and n_spills unset; the bundled tool reads them from the binary.
    cubin = directory / "kernel.cubin"
    cubin.write_bytes(done.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return found | {"SHARED": done.metadata.shared}, done.asm["ptx"]
