"""The Triton kernel without a GPU: interpreted against the reference, inside SGLang's fused MoE, and compiled ahead."""

from __future__ import annotations

import pytest

from tests.routing.isolated import run_isolated

pytest.importorskip("triton")


@pytest.mark.slow
def test_interpreted_kernel_equals_the_reference() -> None:
    run_isolated("interp/kernel_vs_reference.py", interpret=True)


@pytest.mark.slow
def test_sglang_fused_moe_skips_what_the_kernel_dropped() -> None:
    run_isolated("interp/fused_moe.py", interpret=True)


@pytest.mark.slow
def test_compiled_kernel_has_no_spills() -> None:
    run_isolated("aot/registers.py", interpret=False)


@pytest.mark.slow
def test_interpreted_consolidation_equals_the_reference() -> None:
    run_isolated("interp/consolidate_vs_reference.py", interpret=True)


@pytest.mark.slow
def test_compiled_consolidation_has_no_spills() -> None:
    run_isolated("aot/consolidate_registers.py", interpret=False)
