"""One MoE layer of a DeepSeek checkpoint in torch and float32, its experts read as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.pruning.checkpoint import Checkpoint
from sglang_moe_opt.pruning.router import Router, routed_scale

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class Tensors(AbstractContextManager["Tensors"]):
    """A checkpoint's tensors by name, read one at a time; `replaced` ones come from a plan's sidecar."""

    def __init__(self, folder: Path, replaced: Path | None = None) -> None:
        checkpoint = Checkpoint.open(folder)
        self.checkpoint = checkpoint if replaced is None else checkpoint.replaced(replaced)
        self.shape = MoEShape.from_config(checkpoint.config)
        self._files = ExitStack()
        self._open: dict[Path, Any] = {}

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._files.close()

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint.tensors

    def dtype(self, name: str) -> torch.dtype:
        return self._read(name).dtype

    def __getitem__(self, name: str) -> Tensor:
        """The tensor in float32. Raises ValueError where it is missing or quantised to blocks."""
        tensor = self._read(name)
        if tensor.dtype.itemsize < 2 or not tensor.dtype.is_floating_point:
            raise ValueError(f"{name}: {tensor.dtype} values with scales cannot be refined; give a bfloat16 checkpoint")
        return tensor.float()

    def _read(self, name: str) -> Tensor:
        if name not in self.checkpoint.tensors:
            raise ValueError(f"{self.checkpoint.folder}: no {name} in the checkpoint")
        file = self.checkpoint.tensors[name].file
        if file not in self._open:
            self._open[file] = self._files.enter_context(safe_open(file, framework="pt"))
        tensor: Tensor = self._open[file].get_tensor(name)
        return tensor


class SwiGLU(NamedTuple):
    """An expert's matrices: gate and up [I, H], down [H, I]."""

    gate: Tensor
    up: Tensor
    down: Tensor

    def hidden(self, x: Tensor) -> Tensor:
        """Inputs [T, H] to what the down projection reads, [T, I]."""
        return F.silu(x @ self.gate.t()) * (x @ self.up.t())

    def __call__(self, x: Tensor) -> Tensor:
        """Inputs [T, H] to outputs [T, H]."""
        return self.hidden(x) @ self.down.t()


def projection_name(layer_id: int, expert: int | None, projection: str) -> str:
    """A projection's name in the checkpoint; `expert` None means the shared experts."""
    owner = "shared_experts" if expert is None else f"experts.{expert}"
    return f"model.layers.{layer_id}.mlp.{owner}.{projection}.weight"


def gate_name(layer_id: int) -> str:
    """Name of the router's matrix in the checkpoint."""
    return f"model.layers.{layer_id}.mlp.gate.weight"


@dataclass(frozen=True)
class MoELayer:
    """A layer's router, and its experts by id."""

    layer_id: int
    router: Router
    tensors: Tensors

    @classmethod
    def read(cls, tensors: Tensors, layer_id: int) -> MoELayer:
        """The full layer."""
        bias = f"model.layers.{layer_id}.mlp.gate.e_score_correction_bias"
        router = Router(
            tensors.shape,
            routed_scale(tensors.checkpoint.config),
            tensors[gate_name(layer_id)],
            tensors[bias] if bias in tensors else None,  # noqa: SIM401 (not a dict)
        )
        return cls(layer_id, router, tensors)

    def keeping(self, kept: tuple[int, ...]) -> MoELayer:
        """The layer with all but the `kept` experts' logits at -inf."""
        mask = torch.zeros(self.router.shape.num_experts, dtype=torch.bool)
        mask[list(kept)] = True
        return replace(self, router=replace(self.router, kept=mask))

    def name(self, expert: int | None, projection: str) -> str:
        """A projection's name in the checkpoint; `expert` None means the shared experts."""
        return projection_name(self.layer_id, expert, projection)

    def expert(self, expert: int) -> SwiGLU:
        """A routed expert's matrices."""
        return SwiGLU(*(self.tensors[self.name(expert, projection)] for projection in PROJECTIONS))

    @cached_property
    def shared(self) -> SwiGLU | None:
        """The shared experts as one of their summed width; None where the model has none."""
        if self.name(None, "down_proj") not in self.tensors:
            return None
        return SwiGLU(*(self.tensors[self.name(None, projection)] for projection in PROJECTIONS))

    def served(self, x: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Every expert that inputs [T, H] are routed to: its id, the tokens' rows int64 [n], their weights [n]."""
        weights, ids = self.router(x)
        order = ids.flatten().argsort(stable=True)
        rows, weights = order // ids.shape[1], weights.flatten()[order]
        counts = torch.bincount(ids.flatten(), minlength=self.router.shape.num_experts).tolist()
        for expert, (tokens, factors) in enumerate(zip(rows.split(counts), weights.split(counts), strict=True)):
            if len(tokens):
                yield expert, tokens, factors

    def __call__(self, x: Tensor) -> Tensor:
        """Inputs [T, H] to the layer's output [T, H], shared experts included."""
        out = torch.zeros_like(x) if self.shared is None else self.shared(x)
        for expert, tokens, factors in self.served(x):
            out.index_add_(0, tokens, self.expert(expert)(x[tokens]) * factors.unsqueeze(1))
        return out
