"""The Triton kernel compiled for absent GPUs: its registers, and no spills; run by ``test_triton_kernel.py``.

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

from sglang_moe_opt.routing.triton_kernel import apply_skip_kernel, launch_shape
from tests.routing.aot.compiling import ARCHITECTURES, compiled
from tests.routing.cases import ROUTERS

# Shared columns never reach the kernel: 8 + 1 columns are the 8-slot kernel on rows 9 wide.
VARIANTS = [(slots, *router) for slots in (6, 8) for router in ROUTERS] + [(16, "softmax", True), (16, "sigmoid", True)]
MAX_REGISTERS = 128


@dataclass(frozen=True)
class Figures:
    """What the compiler used for one variant of the kernel."""

    arch: str
    num_slots: int
    router: str
    dynamic: bool
    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int


POINTERS = {
    "weights_ptr": "*fp32",
    "ids_ptr": "*i32",
    "logits_ptr": "*fp32",
    "bias_ptr": "*fp32",
    "rows_ptr": "*i32",
    "na_ptr": "*i32",
    "min_ratio_ptr": "*fp32",
    "top_p_ptr": "*fp32",
    "min_na_ptr": "*i32",
    "rescale_ptr": "*fp32",
    "kept_ptr": "*i32",
    "touched_ptr": "*i32",
    "scale": "fp32",
}


def usage_of(arch: int, num_slots: int, scoring: str, biased: bool, dynamic: bool, directory: Path) -> dict[str, int]:
    """Compile one variant; return its resource usage by name (REG, STACK, LOCAL, SHARED)."""
    constants = launch_shape(num_slots) | {
        "SCORING": scoring,
        "HAS_BIAS": biased,
        "HAS_LOGICAL_IDS": False,
        "HAS_STATS": True,
        "DYNAMIC": dynamic,
        "logical_ids_ptr": None,
    }
    if not biased:
        constants["bias_ptr"] = None
    usage, ptx = compiled(apply_skip_kernel, arch, constants, POINTERS, directory)
    loads_then_stores = ptx.partition("st.global")[0].rpartition("ld.global")[2]
    assert "bar.sync" in loads_then_stores, "a warp may overwrite what another has yet to load"
    return usage


def test_no_variant_spills(tmp_path: Path) -> None:
    figures = []
    for arch in ARCHITECTURES:
        for num_slots, scoring, biased in VARIANTS:
            for dynamic in (False, True):
                usage = usage_of(arch, num_slots, scoring, biased, dynamic, tmp_path)
                router = scoring + ("+bias" if biased else "")
                used = (usage[name] for name in ("REG", "STACK", "LOCAL", "SHARED"))
                figures.append(Figures(f"sm_{arch}", num_slots, router, dynamic, *used))
    for line in figures:
        print(*asdict(line).values(), sep="\t")
    if report := os.environ.get("MOE_OPT_AOT_REPORT"):
        Path(report).write_text(json.dumps([asdict(line) for line in figures], indent=1) + "\n")
    assert not [line for line in figures if line.stack_bytes or line.local_bytes]
    assert max(line.registers for line in figures) <= MAX_REGISTERS


def test_one_compiled_kernel_serves_every_layer_and_batch_size() -> None:
    unspecialised = {param.name for param in apply_skip_kernel.params if param.do_not_specialize}
    assert unspecialised == {"num_tokens", "layer"}
