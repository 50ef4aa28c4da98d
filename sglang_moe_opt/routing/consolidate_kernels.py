"""The two Triton kernels of ``consolidate``; ``consolidate_triton`` launches them.

The first finds what the step computes anyway: each program owns a block of experts and walks through all tokens, so
that there are no atomics and two replays agree bit for bit. The second fills, one program per token.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sglang_moe_opt.routing.reference import TINY_MASS
from sglang_moe_opt.routing.triton_kernel import _log1p_of_fraction, _row_logsumexp

_TINY_MASS = tl.constexpr(TINY_MASS)


@triton.jit
def _raw_score(logits, SCORING: tl.constexpr):
    """What a router's weights are proportional to, but for softmax, where it needs the row's maximum."""
    if SCORING == "sigmoid":
        return 1.0 / (1.0 + tl.exp(-logits))
    elif SCORING == "sqrtsoftplus":
        return tl.sqrt(tl.maximum(logits, 0.0) + _log1p_of_fraction(tl.exp(-tl.abs(logits))))
    else:
        return logits


@triton.jit(do_not_specialize=["num_tokens", "layer"])
def mark_kernel(
    weights_ptr,
    ids_ptr,
    logical_ids_ptr,
    logits_ptr,
    bias_ptr,
    rows_ptr,
    k0_ptr,
    na_ptr,
    active_ptr,
    demand_ptr,
    num_tokens,
    layer,
    num_layers,
    num_experts,
    weights_stride,
    ids_stride,
    logical_ids_stride,
    logits_stride,
    NUM_SLOTS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    OWNED: tl.constexpr,
    SCORING: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LOGICAL_IDS: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    """Write active[e] = an id that some token keeps, and with a cap wanted[e] and demand[e]; -1 and 0 where none."""
    mine = tl.program_id(0) * OWNED + tl.arange(0, OWNED)
    slots = tl.arange(0, SLOTS)
    active = tl.full([OWNED], -1, tl.int32)
    wanted = tl.full([OWNED], -1, tl.int32)
    demand = tl.zeros([OWNED], tl.float32)
    for start in range(0, num_tokens, BLOCK_T):
        tokens = start + tl.arange(0, BLOCK_T)
        live = tokens < num_tokens
        cell = live[:, None] & (slots < NUM_SLOTS)[None, :]
        long_tokens = tokens.to(tl.int64)
        ids = tl.load(ids_ptr + long_tokens[:, None] * ids_stride + slots[None, :], mask=cell, other=-1).to(tl.int32)
        experts = ids
        valid = ids >= 0
        if HAS_LOGICAL_IDS:
            logical = logical_ids_ptr + long_tokens[:, None] * logical_ids_stride + slots[None, :]
            experts = tl.load(logical, mask=cell, other=-1).to(tl.int32)
            valid = valid & (experts >= 0)

        offsets = long_tokens * logits_stride
        score = tl.load(logits_ptr + offsets[:, None] + experts, mask=valid, other=0.0).to(tl.float32)
        score = _raw_score(score, SCORING)
        if HAS_BIAS:
            if SCORING == "softmax":
                peak, total = _row_logsumexp(logits_ptr, offsets, live, num_experts, BLOCK_T, BLOCK_E)
                score = tl.exp(score - peak[:, None]) / total[:, None]
            score += tl.load(bias_ptr + experts, mask=valid, other=0.0).to(tl.float32)
        this, other = score[:, :, None], score[:, None, :]
        earlier = slots[None, None, :] < slots[None, :, None]
        ahead = ((other > this) | ((other == this) & earlier)) & valid[:, None, :]
        rank = tl.sum(ahead.to(tl.int32), axis=2)

        table_row = tl.load(rows_ptr + tokens, mask=live, other=0) * num_layers + layer
        k0 = tl.load(k0_ptr + table_row, mask=live, other=0)[:, None]
        own = valid & ((k0 <= 0) | (rank < k0))
        same = experts[:, :, None] == mine[None, None, :]
        found = tl.where(same & own[:, :, None], ids[:, :, None], -1)
        active = tl.maximum(active, tl.max(tl.max(found, axis=1), axis=0))
        if HAS_CAP:
            na = tl.load(na_ptr + table_row, mask=live, other=0)[:, None]
            wants = valid & (k0 > 0) & (rank >= k0) & (rank < na)
            weights = tl.load(
                weights_ptr + long_tokens[:, None] * weights_stride + slots[None, :], mask=cell, other=0.0
            )
            asked = same & wants[:, :, None]
            wanted = tl.maximum(wanted, tl.max(tl.max(tl.where(asked, ids[:, :, None], -1), axis=1), axis=0))
            demand += tl.sum(tl.sum(tl.where(asked, weights[:, :, None], 0.0), axis=1), axis=0)
    inside = mine < num_experts
    tl.store(active_ptr + mine, active, mask=inside)
    if HAS_CAP:
        tl.store(active_ptr + num_experts + mine, wanted, mask=inside)
        tl.store(demand_ptr + mine, demand, mask=inside)


@triton.jit
def _with_demanded(
    active, active_ptr, demand_ptr, experts, num_experts, max_experts, EXPERTS: tl.constexpr, STEP: tl.constexpr
):
    """``active`` [EXPERTS] and, up to ``max_experts``, those that tokens want most; ties to the lower id."""
    inside = experts < num_experts
    wanted = tl.load(active_ptr + num_experts + experts, mask=inside, other=-1)
    demand = tl.load(demand_ptr + experts, mask=inside, other=0.0)
    candidate = (active < 0) & (wanted >= 0)
    place = tl.zeros([EXPERTS], tl.int32)
    for start in range(0, num_experts, STEP):
        others = start + tl.arange(0, STEP)
        there = others < num_experts
        other_active = tl.load(active_ptr + others, mask=there, other=0)
        other_wanted = tl.load(active_ptr + num_experts + others, mask=there, other=-1)
        other_demand = tl.load(demand_ptr + others, mask=there, other=0.0)
        more = other_demand[None, :] > demand[:, None]
        tie = (other_demand[None, :] == demand[:, None]) & (others[None, :] < experts[:, None])
        rival = there & (other_active < 0) & (other_wanted >= 0)
        place += tl.sum(((more | tie) & rival[None, :]).to(tl.int32), axis=1)
    room = max_experts - tl.sum((active >= 0).to(tl.int32), axis=0)
    return tl.where(candidate & (place < room), wanted, active)


@triton.jit(do_not_specialize=["layer", "max_experts"])
def fill_kernel(
    weights_ptr,
    ids_ptr,
    logical_ids_ptr,
    logits_ptr,
    bias_ptr,
    rows_ptr,
    k0_ptr,
    na_ptr,
    rescale_ptr,
    active_ptr,
    demand_ptr,
    kept_ptr,
    filled_ptr,
    touched_ptr,
    layer,
    num_layers,
    num_experts,
    group_size,
    max_experts,
    min_share,
    weights_stride,
    ids_stride,
    logical_ids_stride,
    logits_stride,
    NUM_SLOTS: tl.constexpr,
    SLOTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    STEP: tl.constexpr,
    SCORING: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LOGICAL_IDS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_GROUPS: tl.constexpr,
    HAS_STATS: tl.constexpr,
):
    """One token; its NUM_SLOTS routed slots are padded to SLOTS, the experts to EXPERTS, both powers of two."""
    token = tl.program_id(0)
    long_token = token.to(tl.int64)
    slots = tl.arange(0, SLOTS)
    cell = slots < NUM_SLOTS
    ids_ptrs = ids_ptr + long_token * ids_stride + slots
    weights_ptrs = weights_ptr + long_token * weights_stride + slots
    ids = tl.load(ids_ptrs, mask=cell, other=-1)
    weights = tl.load(weights_ptrs, mask=cell, other=0.0)
    mine = ids.to(tl.int32)
    valid = ids >= 0
    if HAS_LOGICAL_IDS:
        mine = tl.load(logical_ids_ptr + long_token * logical_ids_stride + slots, mask=cell, other=-1).to(tl.int32)
        valid = valid & (mine >= 0)
    table_row = tl.load(rows_ptr + token) * num_layers + layer
    k0 = tl.load(k0_ptr + table_row)
    na = tl.load(na_ptr + table_row)
    rescale = tl.load(rescale_ptr + table_row)
    joins = k0 > 0

    experts = tl.arange(0, EXPERTS)
    inside = experts < num_experts
    active = tl.load(active_ptr + experts, mask=inside, other=-1)
    if HAS_CAP:
        active = _with_demanded(active, active_ptr, demand_ptr, experts, num_experts, max_experts, EXPERTS, STEP)
    logits = tl.load(logits_ptr + long_token * logits_stride + experts, mask=inside, other=float("-inf"))
    logits = logits.to(tl.float32)
    score = _raw_score(logits, SCORING)
    if SCORING == "softmax":
        shares = tl.exp(logits - tl.max(logits, axis=0))
        if HAS_BIAS:
            score = shares / tl.sum(shares, axis=0)
    else:
        shares = score
    if HAS_BIAS:
        score += tl.load(bias_ptr + experts, mask=inside, other=float("-inf")).to(tl.float32)

    # Axis 0 is the slot, axis 1 the expert.
    here = (mine[:, None] == experts[None, :]) & valid[:, None]
    slot_score = tl.sum(tl.where(here, tl.maximum(score, -3.4e38)[None, :], 0.0), axis=1)
    slot_active = tl.max(tl.where(here, active[None, :], -1), axis=1) >= 0
    this, other = slot_score[:, None], slot_score[None, :]
    ahead = ((other > this) | ((other == this) & (slots[None, :] < slots[:, None]))) & valid[None, :]
    rank = tl.sum(ahead.to(tl.int32), axis=1)

    routed = tl.where(valid, weights, 0.0)
    heaviest = tl.max(routed, axis=0)
    reference = tl.min(tl.where(valid & (routed == heaviest), slots, SLOTS), axis=0)
    base = tl.sum(tl.where((slots == reference)[:, None] & here, shares[None, :], 0.0))
    ratio = shares / tl.maximum(base, _TINY_MASS)

    may = slot_active & ((rank < na) | (routed >= min_share * heaviest))
    eligible = valid & ((rank < k0) | may)
    before = tl.sum((eligible[None, :] & (rank[None, :] < rank[:, None])).to(tl.int32), axis=1)
    keep = valid & ((k0 <= 0) | (eligible & (before < na)))
    free = valid & (keep == 0)
    room = tl.where(joins, na - tl.sum(keep.to(tl.int32), axis=0), 0)
    place = tl.sum((free[None, :] & (slots[None, :] < slots[:, None])).to(tl.int32), axis=1)

    taken = tl.max(here.to(tl.int32), axis=0) > 0
    open_ = inside & (active >= 0) & (taken == 0) & (score > float("-inf")) & (ratio >= min_share)
    if HAS_GROUPS:
        chosen = valid[:, None] & ((mine // group_size)[:, None] == (experts // group_size)[None, :])
        open_ = open_ & (tl.max(chosen.to(tl.int32), axis=0) > 0)

    new_ids = tl.where(keep, mine, -1)  # logical ids, for the counters
    new_physical = tl.where(keep, ids, -1)
    new_weights = tl.where(keep, weights, 0.0)
    filled = slots < 0
    for number in tl.static_range(NUM_SLOTS):
        best = tl.max(tl.where(open_, score, float("-inf")), axis=0)
        expert = tl.min(tl.where(open_ & (score == best), experts, EXPERTS), axis=0)
        takes = free & (place == number) & (number < room) & (expert < EXPERTS)
        picked = experts == expert
        new_ids = tl.where(takes, expert, new_ids)
        new_physical = tl.where(takes, tl.max(tl.where(picked, active, -1), axis=0).to(ids.dtype), new_physical)
        new_weights = tl.where(takes, heaviest * tl.sum(tl.where(picked, ratio, 0.0), axis=0), new_weights)
        filled = filled | takes
        open_ = open_ & (picked == 0)

    mass = tl.sum(routed, axis=0)
    kept_mass = tl.sum(new_weights, axis=0)
    factor = tl.where(rescale < 0.0, mass / tl.maximum(kept_mass, _TINY_MASS), rescale)
    changed = (tl.max(free.to(tl.int32), axis=0) > 0) & joins

    # The same cell may have been loaded by several warps; none may store before all have loaded.
    tl.debug_barrier()
    # Only what changes is stored: a token whose experts all stay keeps every bit.
    tl.store(weights_ptrs, new_weights * factor, mask=valid & changed)
    tl.store(ids_ptrs, new_physical, mask=free & changed)
    if HAS_STATS:
        kept = keep | filled
        tl.store(kept_ptr + token, tl.load(kept_ptr + token) + tl.sum(kept.to(tl.int32), axis=0))
        tl.store(filled_ptr + token, tl.load(filled_ptr + token) + tl.sum(filled.to(tl.int32), axis=0))
        ones = tl.full([SLOTS], 1, tl.int32)
        tl.store(touched_ptr + layer * num_experts + new_ids, ones, mask=kept)
