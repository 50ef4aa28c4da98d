"""A transformers model that runs under a plan, its kept experts trainable, all the rest shared with the full model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglang_moe_opt.model_shape import read_config
from sglang_moe_opt.pruning.decoder import known_architecture
from sglang_moe_opt.pruning.moe_layer import PROJECTIONS, MoELayer, SwiGLU, Tensors, gate_name, projection_name


class KeptExperts(nn.Module):
    """The K kept experts of a layer, trainable: gate_up float32 [K, 2 I, H], down float32 [K, H, I]."""

    def __init__(self, layer: MoELayer, kept: Sequence[int]) -> None:
        super().__init__()
        experts = [layer.expert(expert) for expert in kept]
        self.gate_up = nn.Parameter(torch.stack([torch.cat([expert.gate, expert.up]) for expert in experts]))
        self.down = nn.Parameter(torch.stack([expert.down for expert in experts]))

    def forward(self, x: Tensor, weights: Tensor, positions: Tensor) -> Tensor:
        """Inputs [T, H], the router's weights [T, k] and chosen experts' positions int64 [T, k] to float32 [T, H]."""
        order = positions.flatten().argsort(stable=True)
        tokens = order // positions.shape[1]
        counts = positions.flatten().bincount(minlength=len(self.down)).tolist()
        outputs = []
        # unbind, not indexing: the gradient of an index is as large as the whole stack.
        for part, gate_up, down in zip(x[tokens].split(counts), self.gate_up.unbind(), self.down.unbind(), strict=True):
            gate, up = F.linear(part, gate_up).chunk(2, dim=-1)
            outputs.append(F.linear(F.silu(gate) * up, down))
        weighted = torch.cat(outputs).float() * weights.flatten()[order].unsqueeze(1)
        return torch.zeros(x.shape, dtype=torch.float32, device=x.device).index_add(0, tokens, weighted)


class PrunedMoE(nn.Module):
    """A layer's MoE under a plan: stands in for that of transformers' DeepSeek V2 and V3."""

    def __init__(self, layer: MoELayer, kept: Sequence[int]) -> None:
        super().__init__()
        pruned = layer.keeping(tuple(kept))
        self.kept = tuple(kept)
        self.layer_id = layer.layer_id
        self.gate = nn.Parameter(layer.router.weight.clone())
        self.experts = KeptExperts(layer, kept)
        shared = layer.shared
        self.shared = None if shared is None else nn.ParameterList(nn.Parameter(matrix.clone()) for matrix in shared)
        self._router = pruned.router
        positions = torch.zeros(layer.router.shape.num_experts, dtype=torch.int64)
        positions[list(kept)] = torch.arange(len(kept))
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., H] to the same shape."""
        x = hidden_states.flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.gate)
            self._router = self._router.to(x.device)
            weights, ids = self._router.choose(logits)
        out = self.experts(x, weights, self.positions[ids])
        if self.shared is not None:
            out = out + SwiGLU(*self.shared)(x)
        return out.view(hidden_states.shape).to(hidden_states.dtype)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What was trained, by the names in the checkpoint, float32."""
        yield gate_name(self.layer_id), self.gate.detach()
        for place, expert in enumerate(self.kept):
            gate, up = self.experts.gate_up[place].detach().chunk(2)
            for projection, matrix in zip(PROJECTIONS, (gate, up, self.experts.down[place].detach()), strict=True):
                yield projection_name(self.layer_id, expert, projection), matrix
        for projection, shared in zip(PROJECTIONS, self.shared or (), strict=False):
            yield projection_name(self.layer_id, None, projection), shared.detach()


def load_teacher(model: Path, dtype: torch.dtype, device: str) -> Any:
    """The full model in transformers, frozen. Raises ValueError for one that is not DeepSeek V2 or V3."""
    from transformers import AutoModelForCausalLM

    known_architecture(read_config(model))
    teacher = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="sdpa")
    return teacher.to(device).eval().requires_grad_(False)


def make_student(teacher: Any, model: Path, plan: Mapping[int, Sequence[int]], replaced: Path | None) -> Any:
    """A copy of the teacher under the plan; what is not trained is the teacher's own memory.

    Args:
        teacher: from `load_teacher`.
        model: the folder that it was loaded from.
        plan: layer id -> kept expert ids, of every MoE layer.
        replaced: the plan's sidecar, whose tensors the student begins with.
    """
    own = {id(tensor): tensor for tensor in (*teacher.parameters(), *teacher.buffers())}
    student = copy.deepcopy(teacher, own)
    with Tensors(model, replaced) as tensors:
        for layer_id, kept in plan.items():
            moe = PrunedMoE(MoELayer.read(tensors, layer_id), kept)
            student.model.layers[layer_id].mlp = moe.to(teacher.device)
    return student


def pruned_layers(student: Any) -> Iterator[PrunedMoE]:
    """The student's MoE layers, first to last."""
    for layer in student.model.layers:
        if isinstance(layer.mlp, PrunedMoE):
            yield layer.mlp
