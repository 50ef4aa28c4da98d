"""Narrow the routed columns after skipping, so that eager backends do no work for dropped slots."""

from __future__ import annotations

import torch
from torch import Tensor


def compact(weights: Tensor, ids: Tensor, width: int, num_shared: int) -> tuple[Tensor, Tensor]:
    """Move kept slots first, in their order, and cut the routed columns to ``width``.

    Reads the data on the host, so it is for eager CPU runs only, never under CUDA graphs.

    Args:
        weights: float32 [n, K].
        ids: int32 or int64 [n, K], -1 = dropped.
        width: routed columns of the result, at least the largest number of slots a row keeps.
        num_shared: fused shared-expert columns at the end, carried over as they are.

    Returns:
        New weights and ids, [n, width + num_shared].
    """
    num_slots = ids.shape[1] - num_shared
    if not 0 <= width <= num_slots:
        raise ValueError(f"width {width} is not within the {num_slots} routed columns")
    dropped = ids[:, :num_slots] < 0
    most_kept = num_slots - int(dropped.sum(-1).min()) if len(ids) else 0
    if most_kept > width:
        raise ValueError(f"width {width} would lose experts: a row keeps {most_kept}")
    order = dropped.to(torch.uint8).argsort(dim=-1, stable=True)[:, :width]
    shared = torch.arange(num_slots, ids.shape[1], device=ids.device).expand(len(ids), num_shared)
    columns = torch.cat((order, shared), dim=1)
    return weights.gather(1, columns), ids.gather(1, columns)
