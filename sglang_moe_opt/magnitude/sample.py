"""Router weights and factors from a checkpoint and the inputs that `moe-opt calibrate` sampled: no server needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.layer_table import LayerTable
from sglang_moe_opt.magnitude.weights import RouterWeights
from sglang_moe_opt.pruning.criteria import Evidence
from sglang_moe_opt.pruning.moe_layer import MoELayer, Tensors
from sglang_moe_opt.pruning.planner import check_statistics
from sglang_moe_opt.pruning.sample import sampled_inputs
from sglang_moe_opt.pruning.statistics import ExpertStatistics
from sglang_moe_opt.schedule_limits import MAX_RESCALE, MIN_RESCALE

Rows = NDArray[np.int64] | None
"""Which of the sampled tokens to use, ascending; None is all."""


def check_folder(model: Path, statistics: Path) -> ExpertStatistics:
    """The statistics of a calibration of this model. Raises ValueError, also where they are of another model."""
    found = ExpertStatistics.load(statistics)
    with Tensors(model) as tensors:
        evidence = Evidence(tensors.shape, 0, found, statistics, model)
        check_statistics(evidence, fingerprint(tensors.checkpoint.config, model))
    return found


def draw_rows(model: Path, statistics: Path, count: int | None, seed: int) -> Rows:
    """`count` of the sampled tokens, drawn with `seed`; None, all, where count is None or there are no more."""
    with Tensors(model) as tensors:
        available = len(sampled_inputs(statistics, tensors.shape.moe_layer_ids[0]))
    if count is None or count >= available:
        return None
    return np.sort(np.random.default_rng((seed, 2)).choice(available, count, replace=False)).astype(np.int64)


def router_weights(model: Path, statistics: Path, rows: Rows = None) -> RouterWeights:
    """What each layer's router makes of its sampled inputs, in float32.

    Args:
        model: folder of a DeepSeek V2 or V3, unquantised.
        statistics: folder of its calibration.
        rows: which of the sampled tokens.

    Raises:
        ValueError: a broken checkpoint, no sampled inputs.
    """
    with Tensors(model) as tensors, torch.inference_mode():
        ids = tensors.shape.moe_layer_ids
        # the router's top-k is sorted: slots come by choice score
        routers = {one: replace(MoELayer.read(tensors, one).router, scale=1.0) for one in ids}
        found = [router(_inputs(statistics, one, rows))[0].numpy() for one, router in routers.items()]
    return RouterWeights(ids, np.stack(found).astype(np.float32))


def fit_factors(
    model: Path, statistics: Path, weights: RouterWeights, table: LayerTable, rows: Rows = None
) -> tuple[float, ...]:
    """For each layer the factor on kept weights that brings the routed output nearest to the full model's.

    Least squares over the sampled tokens: f = <y, z> / <z, z>, y the weighted sum of all of a token's experts, z that
    of the kept ones with the weights that they have among all. 1 would be right if experts' outputs were unrelated,
    the renormalising factor if they were all the same.

    Args:
        model: folder of the model.
        statistics: folder of its calibration.
        weights: of the same rows, as `router_weights` gives them.
        table: what is kept; its rescale does not matter.
        rows: which of the sampled tokens.

    Raises:
        ValueError: a broken checkpoint, no sampled inputs.
    """
    keep = torch.from_numpy(weights.kept(table))
    factors = []
    with Tensors(model) as tensors, torch.inference_mode():
        for index, layer_id in enumerate(weights.layer_ids):
            x = _inputs(statistics, layer_id, rows)
            whole, kept = _routed(MoELayer.read(tensors, layer_id), x, keep[index])
            squares = float((kept.double() ** 2).sum())
            factor = float((whole.double() * kept.double()).sum()) / squares if squares > 0 else 1.0
            factors.append(float(f"{min(max(factor, MIN_RESCALE), MAX_RESCALE):.4g}"))
    return tuple(factors)


def _inputs(statistics: Path, layer_id: int, rows: Rows) -> Tensor:
    x = sampled_inputs(statistics, layer_id)
    return x if rows is None else x[torch.from_numpy(rows)]


def _routed(layer: MoELayer, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The routed experts' sum [T, H] over all slots, and over those of `keep` [T, K]."""
    weights, ids = layer.router(x)
    whole, kept = torch.zeros_like(x), torch.zeros_like(x)
    for expert in ids.unique().tolist():
        tokens, slots = (ids == expert).nonzero(as_tuple=True)
        out = layer.expert(expert)(x[tokens]) * weights[tokens, slots].unsqueeze(1)
        whole.index_add_(0, tokens, out)
        kept.index_add_(0, tokens, out * keep[tokens, slots].unsqueeze(1))
    return whole, kept
