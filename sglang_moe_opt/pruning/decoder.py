"""A DeepSeek model in float32 one layer at a time: transformers' attention and norms, with weights read as needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from sglang_moe_opt.pruning.moe_layer import PROJECTIONS, SwiGLU, Tensors

ARCHITECTURES = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")
BATCH_TOKENS = 8192
"""Tokens whose intermediate values exist at a time."""


@dataclass(frozen=True)
class Pieces:
    """Texts as token ids laid end to end; attention stays within each.

    Attributes:
        ids: int64 [N].
        batches: int64 [pieces, length] token numbers of pieces that run together, -1 where a piece has ended.
    """

    ids: Tensor
    batches: tuple[Tensor, ...]

    @classmethod
    def of(cls, pieces: Sequence[Any]) -> Pieces:
        """From arrays or lists of token ids."""
        lengths = [len(piece) for piece in pieces]
        starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
        rows = [torch.arange(start, start + length) for start, length in zip(starts[:-1], lengths, strict=True)]
        batches: list[list[Tensor]] = []
        for row in sorted(rows, key=len, reverse=True):
            if not batches or (len(batches[-1]) + 1) * len(batches[-1][0]) > BATCH_TOKENS:
                batches.append([])
            batches[-1].append(row)
        ids = torch.cat([torch.as_tensor(piece, dtype=torch.int64) for piece in pieces])
        padded = (nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-1) for batch in batches)
        return cls(ids, tuple(padded))


def known_architecture(config: Mapping[str, Any]) -> str:
    """Of a DeepSeek V2 or V3. Raises ValueError for others."""
    architecture = str((config.get("architectures") or ["none"])[0])
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: got {architecture}, allowed: {', '.join(ARCHITECTURES)}")
    return architecture


class Decoder:
    """The parts of a model that pruning leaves alone. Raises ValueError for a model that is not DeepSeek V2 or V3."""

    def __init__(self, tensors: Tensors) -> None:
        from transformers import AutoConfig

        self.tensors = tensors
        architecture = known_architecture(tensors.checkpoint.config)
        self._config = AutoConfig.from_pretrained(tensors.checkpoint.folder)
        self._config._attn_implementation = "sdpa"
        kind = self._config.model_type
        self._module = import_module(f"transformers.models.{kind}.modeling_{kind}")
        self._prefix = architecture.removesuffix("ForCausalLM")

    def embed(self, pieces: Pieces) -> Tensor:
        """The stream before the first layer, [N, H]."""
        return self.tensors["model.embed_tokens.weight"][pieces.ids]

    def norm(self, name: str) -> Callable[[Tensor], Tensor]:
        """The root-mean-square norm of that name, without `.weight`."""
        weight, eps = self.tensors[f"{name}.weight"], self._config.rms_norm_eps
        return lambda x: nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)

    def attention(self, layer_id: int, pieces: Pieces) -> Callable[[Tensor], Tensor]:
        """The layer's attention with the norm before it, of a stream [N, H] to what it adds, [N, H]."""
        stem = f"model.layers.{layer_id}"
        module = self._build("Attention", layer_idx=layer_id)
        names = module.state_dict().keys()
        module.load_state_dict({name: self.tensors[f"{stem}.self_attn.{name}"] for name in names}, assign=True)
        norm, rotary = self.norm(f"{stem}.input_layernorm"), self._build("RotaryEmbedding")

        def run(x: Tensor) -> Tensor:
            out = torch.empty_like(x)
            for rows in pieces.batches:
                inputs, there = norm(x[rows.clamp(min=0)]), rows >= 0
                positions = rotary(inputs, torch.arange(rows.shape[1]).unsqueeze(0))
                added = module(inputs, position_embeddings=positions, attention_mask=None)[0]
                out[rows[there]] = added[there]
            return out

        return run

    def mlp_input(self, layer_id: int) -> Callable[[Tensor], Tensor]:
        """The norm between a layer's attention and its MLP or experts."""
        return self.norm(f"model.layers.{layer_id}.post_attention_layernorm")

    def dense(self, layer_id: int) -> SwiGLU:
        """The MLP of a layer without experts."""
        return SwiGLU(*(self.tensors[f"model.layers.{layer_id}.mlp.{name}.weight"] for name in PROJECTIONS))

    def _build(self, part: str, **arguments: Any) -> nn.Module:
        module: nn.Module = getattr(self._module, self._prefix + part)(config=self._config, **arguments)
        return module.float().eval().requires_grad_(False)
