"""The consolidation kernels compiled for absent GPUs: their registers, and no spills; run by ``test_triton_kernel.py``.

With MOE_OPT_AOT_REPORT=FILE the figures are written there as JSON.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreted kernel cannot be compiled", allow_module_level=True)

from sglang_moe_opt.routing.consolidate_kernels import fill_kernel, mark_kernel
from sglang_moe_opt.routing.consolidate_triton import launch_shapes
from tests.routing.aot.compiling import ARCHITECTURES, compiled
from tests.routing.cases import ROUTERS

MODELS = ((6, 64, 1), (8, 256, 8))
"""Slots, experts and groups of DeepSeek-V2-Lite and DeepSeek-V3."""
MAX_REGISTERS = 168
POINTERS = {
    "weights_ptr": "*fp32",
    "ids_ptr": "*i32",
    "logits_ptr": "*fp32",
    "bias_ptr": "*fp32",
    "rows_ptr": "*i32",
    "k0_ptr": "*i32",
    "na_ptr": "*i32",
    "rescale_ptr": "*fp32",
    "active_ptr": "*i32",
    "demand_ptr": "*fp32",
    "kept_ptr": "*i32",
    "filled_ptr": "*i32",
    "touched_ptr": "*i32",
    "min_share": "fp32",
}


@dataclass(frozen=True)
class Figures:
    """What the compiler used for one variant of a kernel."""

    kernel: str
    arch: str
    num_slots: int
    num_experts: int
    router: str
    cap: bool
    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int


def test_no_variant_spills(tmp_path: Path) -> None:
    figures = []
    for arch in ARCHITECTURES:
        for slots, experts, groups in MODELS:
            for scoring, biased in ROUTERS:
                for cap in (False, True):
                    flags = {"SCORING": scoring, "HAS_BIAS": biased, "HAS_LOGICAL_IDS": False, "HAS_CAP": cap}
                    flags |= {"HAS_GROUPS": groups > 1, "HAS_STATS": True, "logical_ids_ptr": None}
                    flags |= {} if biased else {"bias_ptr": None}
                    shapes = launch_shapes(slots, experts)
                    for kernel, shape in zip((mark_kernel, fill_kernel), shapes, strict=True):
                        usage, ptx = compiled(kernel, arch, flags | shape, POINTERS, tmp_path)
                        if kernel is fill_kernel:
                            first_store = ptx.partition("st.global")[0]
                            assert "bar.sync" in first_store, "a warp may overwrite what another has yet to load"
                        router = scoring + ("+bias" if biased else "")
                        used = (usage[name] for name in ("REG", "STACK", "LOCAL", "SHARED"))
                        name = kernel.fn.__name__
                        figures.append(Figures(name, f"sm_{arch}", slots, experts, router, cap, *used))
    for line in figures:
        print(*asdict(line).values(), sep="\t")
    if report := os.environ.get("MOE_OPT_AOT_REPORT"):
        Path(report).write_text(json.dumps([asdict(line) for line in figures], indent=1) + "\n")
    assert not [line for line in figures if line.stack_bytes or line.local_bytes]
    assert max(line.registers for line in figures) <= MAX_REGISTERS


def test_one_compiled_kernel_serves_every_layer_and_batch_size() -> None:
    for kernel, expected in ((mark_kernel, {"num_tokens", "layer"}), (fill_kernel, {"layer", "max_experts"})):
        assert {param.name for param in kernel.params if param.do_not_specialize} == expected
