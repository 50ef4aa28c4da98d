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
MOST_OUTPUT_BYTES = 1 << 30
"""Of experts' outputs that are held at a time: a larger sample goes through a layer in parts."""
Products = NDArray[np.float32]
"""Scalar products of the weighted outputs of a token's experts, [L, N, K, K]: by layer, token, and pair of slots."""


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


def output_products(model: Path, statistics: Path, rows: Rows = None) -> Products:
    """What `fit_factors` needs of the experts, whatever is kept: one pass of the sample through all of them.

    Args:
        model: folder of the model.
        statistics: folder of its calibration.
        rows: which of the sampled tokens.

    Raises:
        ValueError: a broken checkpoint, no sampled inputs.
    """
    with Tensors(model) as tensors, torch.inference_mode():
        ids = tensors.shape.moe_layer_ids
        found = [_products(MoELayer.read(tensors, one), _inputs(statistics, one, rows)) for one in ids]
    return np.stack(found)


def fit_factors(weights: RouterWeights, products: Products, table: LayerTable) -> tuple[float, ...]:
    """For each layer the factor on kept weights that brings the routed output nearest to the full model's.

    Least squares over the sampled tokens: f = <y, z> / <z, z>, y the weighted sum of all of a token's experts, z that
    of the kept ones with the weights that they have among all. 1 would be right if experts' outputs were unrelated,
    the renormalising factor if they were all the same.

    Args:
        weights: of the same rows as the products.
        products: as `output_products` gives them.
        table: what is kept; its rescale does not matter.
    """
    factors = []
    for own, keep in zip(products, weights.kept(table), strict=True):
        with_kept = np.einsum("tij,tj->ti", own, keep, dtype=np.float64)  # of each expert with the sum z
        squares = float(with_kept[keep].sum())
        factor = float(with_kept.sum()) / squares if squares > 0 else 1.0
        factors.append(float(f"{min(max(factor, MIN_RESCALE), MAX_RESCALE):.4g}"))
    return tuple(factors)


def _inputs(statistics: Path, layer_id: int, rows: Rows) -> Tensor:
    x = sampled_inputs(statistics, layer_id)
    return x if rows is None else x[torch.from_numpy(rows)]


def _products(layer: MoELayer, x: Tensor) -> NDArray[np.float32]:
    """One layer of `output_products`, [T, K, K]."""
    weights, ids = layer.router(x)
    at_once = max(1, MOST_OUTPUT_BYTES // (x.element_size() * ids.shape[1] * x.shape[1]))
    parts = zip(x.split(at_once), weights.split(at_once), ids.split(at_once), strict=True)
    return np.concatenate([_products_of(layer, *part) for part in parts])


def _products_of(layer: MoELayer, x: Tensor, weights: Tensor, ids: Tensor) -> NDArray[np.float32]:
    outputs = x.new_empty(*ids.shape, x.shape[1])
    for expert in ids.unique().tolist():
        tokens, slots = (ids == expert).nonzero(as_tuple=True)
        outputs[tokens, slots] = layer.expert(expert)(x[tokens]) * weights[tokens, slots].unsqueeze(1)
    return np.asarray((outputs @ outputs.transpose(1, 2)).numpy(), np.float32)
