"""Least-squares compensation: the down projections of kept and shared experts take over for the removed experts.

Closed form, layer by layer from the first. Calibration text runs through two copies of the model, the full one and the
pruned one with the layers before already compensated. At every MoE layer the down projections are refitted so that the
pruned stream comes out as near to the full one as it can: each layer also corrects what those before it left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sglang_moe_opt.pruning.decoder import Decoder, Pieces
from sglang_moe_opt.pruning.moe_layer import MoELayer, Tensors
from sglang_moe_opt.pruning.ridge import Block, combine, refit

CHUNK = 8192
"""Tokens that go through a layer at a time."""


@dataclass(frozen=True)
class LayerFit:
    """How far the pruned stream is from the full one after a layer, before and after the layer's refit.

    Squared distances, each token's relative to its full stream's length, as a share of what the full layer's experts
    add, measured alike: 0 is perfect, 1 is what leaving all its experts out would cost. `heldout_error` is the error
    after the refit on tokens that it did not see; NaN where there are none.
    """

    layer_id: int
    error_before: float
    error_after: float
    heldout_error: float


@torch.no_grad()
def compensate(
    model: Path,
    kept: Mapping[int, Sequence[int]],
    pieces: Sequence[Any],
    *,
    replaced: Path | None = None,
    ridge: float = 1e-3,
    max_features: int = 8192,
    heldout: float = 0.05,
    report: Callable[[LayerFit], None] = lambda fit: None,
) -> dict[str, Tensor]:
    """Refitted down projections of a pruned model, by their names in the checkpoint and in its dtype.

    One layer's weights are in memory at a time, and three activations of all calibration tokens.

    Args:
        model: folder of the full model, DeepSeek V2 or V3.
        kept: layer id -> expert ids of every MoE layer.
        pieces: calibration texts as token ids, begin token included.
        replaced: sidecar of the plan so far, such as merged experts; the pruned copy runs with it.
        ridge: weight of staying near the weights as they are, relative to the features' squares.
        max_features: expert widths that are solved for at once; memory grows with the square, 1 GB at 8192.
        heldout: share of the pieces, the last ones, on which errors are measured only.
        report: called after every MoE layer.

    Raises:
        ValueError: a broken or quantised checkpoint, another architecture, or no text.
    """
    if not pieces:
        raise ValueError("pieces: none, and compensation needs calibration text")
    changed: dict[str, Tensor] = {}
    with Tensors(model) as own, Tensors(model, replaced) as pruned_weights:
        decoder, text = Decoder(own), Pieces.of(pieces)
        seen = sum(map(len, pieces[: len(pieces) - int(len(pieces) * heldout)]))
        full = decoder.embed(text)
        pruned = full
        for layer_id in range(own.shape.num_layers):
            attention, norm = decoder.attention(layer_id, text), decoder.mlp_input(layer_id)
            same = pruned is full
            full = full + attention(full)
            pruned = full if same else pruned + attention(pruned)
            if layer_id not in own.shape.moe_layer_ids:
                mlp = decoder.dense(layer_id).__call__
                full = full + in_chunks(mlp, norm(full))
                pruned = full if same else pruned + in_chunks(mlp, norm(pruned))
                continue
            added = in_chunks(MoELayer.read(own, layer_id), norm(full))
            full = full + added
            layer = MoELayer.read(pruned_weights, layer_id).keeping(tuple(kept[layer_id]))
            scale = full.norm(dim=1, keepdim=True).reciprocal()
            target = (full - pruned) * scale
            blocks = expert_blocks(layer, norm(pruned), scale)
            before = combine(blocks.values(), len(target))
            weights = refit([block.first(seen) for block in blocks.values()], target[:seen], ridge, max_features)
            new = {
                name: weight.t().contiguous().to(pruned_weights.dtype(name))
                for name, weight in zip(blocks, weights, strict=True)
            }
            rounded = (replace(block, weights=new[name].float().t()) for name, block in blocks.items())
            after = combine(rounded, len(target))
            pruned = pruned + after / scale
            changed |= new
            report(_layer_fit(layer_id, target - before, target - after, added * scale, seen))
    return changed


def expert_blocks(layer: MoELayer, x: Tensor, scale: Tensor) -> dict[str, Block]:
    """Down projections by name with what they read: of every expert that inputs [T, H] reach, and the shared experts.

    Features carry the router's weight and the tokens' `scale` [T, 1].
    """
    blocks = {}
    for expert, rows, factors in layer.served(x):
        matrices = layer.expert(expert)
        features = matrices.hidden(x[rows]) * (factors.unsqueeze(1) * scale[rows])
        blocks[layer.name(expert, "down_proj")] = Block(rows, features, matrices.down.t())
    if layer.shared is not None:
        features = in_chunks(layer.shared.hidden, x) * scale
        blocks[layer.name(None, "down_proj")] = Block(torch.arange(len(x)), features, layer.shared.down.t())
    return blocks


def in_chunks(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`layer` of inputs [T, H], a few thousand at a time."""
    return torch.cat([layer(chunk) for chunk in x.split(CHUNK)])


def _layer_fit(layer_id: int, before: Tensor, after: Tensor, added: Tensor, seen: int) -> LayerFit:
    """Errors from residuals and the full layer's output, all [T, H] and scaled; the first `seen` tokens were fitted."""

    def share(residual: Tensor, tokens: slice) -> float:
        return float(residual[tokens].square().sum() / added[tokens].square().sum())

    fitted, rest = slice(seen), slice(seen, None)
    return LayerFit(layer_id, share(before, fitted), share(after, fitted), share(after, rest))
