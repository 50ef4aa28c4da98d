"""``apply_skip`` as one Triton launch, safe under CUDA graph capture: no host sync, fixed shapes, fixed pointers."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sglang_moe_opt.routing.base import Choice, RoutingStats, RoutingTable
from sglang_moe_opt.routing.reference import TINY_MASS

# Slot pairs one program compares: 8 tokens of 8 slots, 2 tokens of 16. Twice as many begin to spill on sm_80.
PAIRS_PER_PROGRAM = 512
BLOCK_E = 64

_TINY_MASS = tl.constexpr(TINY_MASS)


@triton.jit
def _log1p_of_fraction(x):
    """log(1 + x) for x in [0, 1]: 2 atanh(x / (2 + x)) as a series, to fp32 rounding.

    The device's log is an approximation with an *absolute* error near 1, which would tie the scores of all experts
    with strongly negative logits.
    """
    z = x / (2.0 + x)
    z2 = z * z
    series = 1.0 / 13.0
    series = 1.0 / 11.0 + z2 * series
    series = 1.0 / 9.0 + z2 * series
    series = 1.0 / 7.0 + z2 * series
    series = 1.0 / 5.0 + z2 * series
    series = 1.0 / 3.0 + z2 * series
    return 2.0 * z * (1.0 + z2 * series)


@triton.jit
def _row_logsumexp(logits_ptr, token_offsets, live, num_experts, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr):
    """Return the running maximum and the sum of exp(logit - maximum) over all experts, each float32 [BLOCK_T]."""
    peak = tl.full([BLOCK_T], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, num_experts, BLOCK_E):
        experts = start + tl.arange(0, BLOCK_E)
        inside = live[:, None] & (experts < num_experts)[None, :]
        block = tl.load(logits_ptr + token_offsets[:, None] + experts[None, :], mask=inside, other=float("-inf"))
        block = block.to(tl.float32)
        new_peak = tl.maximum(peak, tl.max(block, axis=1))
        # Rows past the end (and rows all -inf so far) have no finite peak: -inf - -inf would be NaN.
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        total = total * tl.exp(peak - base) + tl.sum(tl.exp(block - base[:, None]), axis=1)
        peak = new_peak
    return peak, total


@triton.jit(do_not_specialize=["num_tokens", "layer"])
def apply_skip_kernel(
    weights_ptr,
    ids_ptr,
    logical_ids_ptr,
    logits_ptr,
    bias_ptr,
    rows_ptr,
    na_ptr,
    min_ratio_ptr,
    top_p_ptr,
    min_na_ptr,
    rescale_ptr,
    kept_ptr,
    touched_ptr,
    num_tokens,
    layer,
    num_layers,
    num_experts,
    weights_stride,
    ids_stride,
    logical_ids_stride,
    logits_stride,
    scale,
    NUM_SLOTS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SCORING: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LOGICAL_IDS: tl.constexpr,
    HAS_STATS: tl.constexpr,
    DYNAMIC: tl.constexpr,
):
    """Each program owns BLOCK_T tokens; a token's NUM_SLOTS routed slots are padded to SLOTS, a power of two."""
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    slots = tl.arange(0, SLOTS)
    live = tokens < num_tokens
    cell = live[:, None] & (slots < NUM_SLOTS)[None, :]
    long_tokens = tokens.to(tl.int64)

    ids_ptrs = ids_ptr + long_tokens[:, None] * ids_stride + slots[None, :]
    weights_ptrs = weights_ptr + long_tokens[:, None] * weights_stride + slots[None, :]
    ids = tl.load(ids_ptrs, mask=cell, other=-1)
    weights = tl.load(weights_ptrs, mask=cell, other=0.0)
    experts = ids
    valid = ids >= 0
    if HAS_LOGICAL_IDS:
        logical_ptrs = logical_ids_ptr + long_tokens[:, None] * logical_ids_stride + slots[None, :]
        experts = tl.load(logical_ptrs, mask=cell, other=-1)
        valid = valid & (experts >= 0)

    token_offsets = long_tokens * logits_stride
    score = tl.load(logits_ptr + token_offsets[:, None] + experts, mask=valid, other=0.0).to(tl.float32)
    if SCORING == "sigmoid":
        score = 1.0 / (1.0 + tl.exp(-score))
    elif SCORING == "sqrtsoftplus":
        score = tl.sqrt(tl.maximum(score, 0.0) + _log1p_of_fraction(tl.exp(-tl.abs(score))))
    elif HAS_BIAS:
        peak, total = _row_logsumexp(logits_ptr, token_offsets, live, num_experts, BLOCK_T, BLOCK_E)
        score = tl.exp(score - peak[:, None]) / total[:, None]
    if HAS_BIAS:
        score += tl.load(bias_ptr + experts, mask=valid, other=0.0).to(tl.float32)

    # Axis 1 is the slot being ranked, axis 2 the slot it is compared with.
    mine, other = score[:, :, None], score[:, None, :]
    earlier = slots[None, None, :] < slots[None, :, None]
    ahead = ((other > mine) | ((other == mine) & earlier)) & valid[:, None, :]
    rank = tl.sum(ahead.to(tl.int32), axis=2)

    table_row = tl.load(rows_ptr + tokens, mask=live, other=0) * num_layers + layer
    na = tl.load(na_ptr + table_row, mask=live, other=0)
    keep = valid & (rank < na[:, None])
    if DYNAMIC:
        min_ratio = tl.load(min_ratio_ptr + table_row, mask=live, other=0.0)[:, None]
        top_p = tl.load(top_p_ptr + table_row, mask=live, other=1.0)[:, None]
        min_na = tl.load(min_na_ptr + table_row, mask=live, other=0)[:, None]
        routed = tl.where(valid, weights, 0.0)
        floor = tl.where(min_ratio < 0.0, -min_ratio * scale, min_ratio * tl.max(routed, axis=1)[:, None])
        passes = (min_ratio == 0.0) | (routed >= floor)
        my_weight, other_weight = routed[:, :, None], routed[:, None, :]
        better = rank[:, None, :] < rank[:, :, None]
        heavier = (other_weight > my_weight) | ((other_weight == my_weight) & better)
        before = tl.sum(tl.where(heavier, other_weight, 0.0), axis=2)
        passes = passes & ((top_p >= 1.0) | (before < top_p * tl.sum(routed, axis=1)[:, None]))
        keep = keep & (passes | (rank < min_na))

    dropped = valid & (keep == 0)
    kept_mass = tl.sum(tl.where(keep, weights, 0.0), axis=1)
    dropped_mass = tl.sum(tl.where(dropped, weights, 0.0), axis=1)
    rescale = tl.load(rescale_ptr + table_row, mask=live, other=1.0)
    mass_factor = 1.0 + dropped_mass / tl.maximum(kept_mass, _TINY_MASS)
    factor = tl.where(rescale < 0.0, mass_factor, rescale)[:, None]

    # The same cell may have been loaded by several warps; none may store before all have loaded.
    tl.debug_barrier()
    # Only what changes is stored: a row that drops nothing stays bit for bit.
    drops_any = (tl.max(dropped.to(tl.int32), axis=1) > 0)[:, None]
    # With an expert-location table a slot whose logical id is -1 may carry a real expert's id: it stays dropped.
    gone = (ids >= 0) & (keep == 0)
    tl.store(weights_ptrs, tl.where(keep, weights * factor, 0.0), mask=gone | (keep & drops_any))
    tl.store(ids_ptrs, tl.full([BLOCK_T, SLOTS], -1, ids.dtype), mask=gone)

    if HAS_STATS:
        # One program owns a token, and every writer of `touched` writes 1: no atomics.
        kept = tl.load(kept_ptr + tokens, mask=live, other=0)
        tl.store(kept_ptr + tokens, kept + tl.sum(keep.to(tl.int32), axis=1), mask=live)
        ones = tl.full([BLOCK_T, SLOTS], 1, tl.int32)
        tl.store(touched_ptr + layer * num_experts + experts, ones, mask=keep)


def launch_shape(num_slots: int) -> dict[str, int]:
    """Return the tile constants for ``num_slots`` routed slots."""
    slots = triton.next_power_of_2(num_slots)
    return {
        "NUM_SLOTS": num_slots,
        "SLOTS": slots,
        "BLOCK_T": min(64, max(1, PAIRS_PER_PROGRAM // slots**2)),
        "BLOCK_E": BLOCK_E,
    }


def row_strides(weights: Tensor, ids: Tensor, logical_ids: Tensor | None, choice: Choice) -> tuple[int, int, int, int]:
    """Elements from one token to the next in weights, ids, logical ids (0 without) and logits, as kernels take them.

    Raises:
        ValueError: a row's columns are not adjacent.
    """
    matrices = {"weights": weights, "ids": ids, "logical_ids": logical_ids, "choice.logits": choice.logits}
    for name, matrix in matrices.items():
        if matrix is not None and matrix.shape[1] > 1 and matrix.stride(1) != 1:
            raise ValueError(f"{name} has column stride {matrix.stride(1)}; the kernel reads adjacent columns")
    return (
        weights.stride(0),
        ids.stride(0),
        0 if logical_ids is None else logical_ids.stride(0),
        choice.logits.stride(0),
    )


def apply_skip(
    weights: Tensor,
    ids: Tensor,
    choice: Choice,
    rows: Tensor,
    table: RoutingTable,
    layer: int,
    *,
    logical_ids: Tensor | None = None,
    num_shared: int = 0,
    stats: RoutingStats | None = None,
    dynamic: bool = True,
    scale: float = 1.0,
) -> None:
    """Drop routed slots in place; see :class:`~sglang_moe_opt.routing.base.ApplySkip`.

    Rows of the four [n, ...] tensors may be strided, their columns must be adjacent.
    """
    num_tokens, width = ids.shape
    num_slots = width - num_shared
    if num_tokens == 0 or num_slots == 0:
        return
    strides = row_strides(weights, ids, logical_ids, choice)
    shape = launch_shape(num_slots)
    apply_skip_kernel[(triton.cdiv(num_tokens, shape["BLOCK_T"]),)](
        weights,
        ids,
        logical_ids,
        choice.logits,
        choice.bias,
        rows,
        table.na,
        table.min_ratio,
        table.top_p,
        table.min_na,
        table.rescale,
        None if stats is None else stats.kept,
        None if stats is None else stats.touched,
        num_tokens,
        layer,
        table.na.shape[1],
        choice.logits.shape[1],
        *strides,
        scale,
        **shape,
        SCORING=choice.scoring,
        HAS_BIAS=choice.bias is not None,
        HAS_LOGICAL_IDS=logical_ids is not None,
        HAS_STATS=stats is not None,
        DYNAMIC=dynamic,
    )
