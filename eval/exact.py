"""Log-probabilities of a text as Hugging Face transformers has them, in fp32 on the CPU: of whole and pruned models."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sglang_moe_opt.plan import PrunePlan


@torch.inference_mode()
def whole_logprobs(folder: Path, ids: list[int]) -> list[float]:
    """Log-probabilities of the ids after the first, by the checkpoint in `folder`."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor([ids])
    return _chosen(model(tokens, use_cache=False).logits[0, :-1].float(), ids)


@torch.inference_mode()
def pruned_logprobs(folder: Path, plan: PrunePlan, sidecar: Path | None, ids: list[int]) -> list[float]:
    """The same by the whole model in `folder` with the logits of the plan's removed experts at -inf.

    One layer is in memory at a time; `sidecar` has the plan's tensors in place of the checkpoint's.

    Raises:
        ValueError: another architecture than DeepSeek V2 and V3, or weights that are not stored as plain numbers.
    """
    from sglang_moe_opt.pruning.decoder import Decoder, Pieces
    from sglang_moe_opt.pruning.moe_layer import MoELayer, Tensors

    text = Pieces.of([ids])
    with Tensors(folder, sidecar) as tensors:
        decoder = Decoder(tensors)
        x = decoder.embed(text)
        for layer_id in range(tensors.shape.num_layers):
            x = x + decoder.attention(layer_id, text)(x)
            inputs = decoder.mlp_input(layer_id)(x)
            if layer_id in tensors.shape.moe_layer_ids:
                x = x + MoELayer.read(tensors, layer_id).keeping(plan.kept(layer_id))(inputs)
            else:
                x = x + decoder.dense(layer_id)(inputs)
        head = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
        return _chosen(decoder.norm("model.norm")(x)[:-1] @ tensors[head].t(), ids)


def _chosen(logits: Tensor, ids: list[int]) -> list[float]:
    """Log-probability of each id under the logits [T - 1, V] of the position before it."""
    values: list[float] = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return values
