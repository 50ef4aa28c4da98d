"""Expert ids of a pruned layer: as the whole model numbers them, and as its experts lie in memory (slots).

A layer's table is a tensor on the model's device, found through its ``TopKConfig``, and is read by index alone: no
synchronisation, and a fixed address under CUDA graphs. Its last entry is -1, so that the id -1 of a dropped slot or of
a padded row stays -1. Ids of fused shared experts follow the routed ones in both numberings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sglang_moe_opt.plan import GateMode

_SLOTS = "_moe_opt_slots"
_ORIGINALS = "_moe_opt_originals"


def attach(topk_config: Any, kept: Sequence[int], num_experts: int, num_shared: int, mode: GateMode) -> None:
    """Give a layer its table, on the current default device.

    In mask mode the router names original ids, and the experts need slots (-1 = removed); in shrink mode the router
    names slots, and whoever records routing wants original ids.
    """
    shared = range(num_shared)
    if mode == "shrink":
        table = [*kept, *(num_experts + i for i in shared), -1]
        setattr(topk_config, _ORIGINALS, torch.tensor(table, dtype=torch.int32))
        return
    slot_of = {expert: slot for slot, expert in enumerate(kept)}
    table = [*(slot_of.get(expert, -1) for expert in range(num_experts)), *(len(kept) + i for i in shared), -1]
    setattr(topk_config, _SLOTS, torch.tensor(table, dtype=torch.int32))


def slots_of(topk_config: Any) -> Tensor | None:
    """int32 [experts + shared + 1]: the slot of each original id; None where the router names slots itself."""
    table: Tensor | None = getattr(topk_config, _SLOTS, None)
    return table


def to_slots(topk_config: Any, ids: Tensor) -> Tensor:
    """What the router chose, as the experts lie in memory."""
    return _mapped(slots_of(topk_config), ids)


def to_originals(topk_config: Any, ids: Tensor) -> Tensor:
    """What the router chose, as the whole model numbers its experts."""
    return _mapped(getattr(topk_config, _ORIGINALS, None), ids)


def capture_routed_experts(topk_config: Any, layer_id: int | None, topk_ids: Tensor) -> tuple[tuple[Any, ...], dict]:
    """BEFORE ``topk.capture_routed_experts_if_allowed``: ``return_routed_experts`` reports original ids."""
    return (topk_config, layer_id, to_originals(topk_config, topk_ids)), {}


def _mapped(table: Tensor | None, ids: Tensor) -> Tensor:
    return ids if table is None else table[ids].to(ids.dtype)
