"""What becomes of every tensor and of config.json when a plan is written into a checkpoint. Pure.

Two forms. `stock`, for plans that leave every layer the same number of experts and every group of a layer its equal
share: kept experts are renumbered from 0, and the result is an ordinary, smaller model. `plugin`, for all others: the
full model's config and expert ids, without the removed experts' tensors and without their rows of the gate; since
gates then have fewer rows than config.json says, loaders that know nothing of plans stop at the first one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PLAN_FILE, PLAN_KEY, PrunePlan
from sglang_moe_opt.pruning.checkpoint import Checkpoint
from sglang_moe_opt.pruning.tensor_file import TensorCopy

Form = Literal["stock", "plugin"]

_COUNT_KEYS: Final = ("n_routed_experts", "num_experts", "num_local_experts")
_UNQUANTIZED_KEYS: Final = ("ignore", "ignored_layers", "modules_to_not_convert")  # of quantization_config
_LAYER: Final = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_EXPERT: Final = re.compile(r"(.*?(?:^|\.)layers\.\d+\..*?(?<=\.)experts\.)(\d+)(\..+|$)")
_FUSED: Final = re.compile(r"(?<=\.)experts\.\D")
_GATE: Final = re.compile(r"(?<=\.)gate\.[^.]+$")


@dataclass(frozen=True)
class PrunedLayout:
    """A plan on one model: `checkpoint` (sidecar applied), `shape` of the full model."""

    plan: PrunePlan
    shape: MoEShape
    checkpoint: Checkpoint

    @cached_property
    def form(self) -> Form:
        return "stock" if self.plan.is_uniform and self.plan.gate_mode(self.shape) == "shrink" else "plugin"

    @property
    def drops_mtp(self) -> bool:
        """Whether layers of multi-token prediction are left out.

        They share the main model's expert count in config.json, and a plan leaves them as they are.
        """
        return self.form == "stock" and any(self._is_mtp(name) for name in self.checkpoint.tensors)

    def check(self) -> None:
        """Raise ValueError unless the checkpoint has one tensor per expert and all that the plan keeps."""
        folder = self.checkpoint.folder
        if PLAN_KEY in self.checkpoint.config:
            raise ValueError(f"{folder}: pruned by a plan already; export from the full model")
        if not any(key in self.checkpoint.config for key in _COUNT_KEYS):
            raise ValueError(f"{folder}: config.json has none of {', '.join(_COUNT_KEYS)} at its top level")
        gates: set[int] = set()
        parts: dict[int, dict[int, set[str]]] = {layer: defaultdict(set) for layer in self.plan.layers}
        for name, tensor in self.checkpoint.tensors.items():
            if (layer := _layer_of(name)) not in self.plan.layers:
                continue
            if match := _EXPERT.match(name):
                parts[layer][int(match[2])].add(match[3])
            elif _FUSED.search(name):
                raise ValueError(
                    f"{folder}: {name} holds all experts in one tensor; allowed: one for each expert (experts.0...)"
                )
            elif _GATE.search(name):
                if not tensor.shape or tensor.shape[0] != self.shape.num_experts:
                    raise ValueError(f"{folder}: {name} of shape {list(tensor.shape)} has no row for each expert")
                gates.add(layer)
        for layer, kept in self.plan.layers.items():
            if layer not in gates:
                raise ValueError(f"{folder}: layer {layer} has no router gate among its tensors")
            wanted = set().union(*parts[layer].values())
            for expert in kept:
                if absent := sorted(wanted - parts[layer][expert]) or (not wanted and [".*"]):
                    raise ValueError(f"{folder}: layer {layer} lacks experts.{expert}{absent[0]}, which the plan keeps")

    def tensors(self) -> list[TensorCopy]:
        """Every tensor to write, in the checkpoint's order."""
        copies = []
        for name, tensor in self.checkpoint.tensors.items():
            kept_name = self._name(name)
            if kept_name is not None:
                copies.append(TensorCopy(kept_name, tensor, self._rows(name)))
        return copies

    def config(self) -> dict[str, Any]:
        """The new config.json."""
        config = dict(self.checkpoint.config)
        if self.form == "plugin":
            return config | {PLAN_KEY: PLAN_FILE}
        count = len(next(iter(self.plan.layers.values())))
        config |= {key: count for key in _COUNT_KEYS if config.get(key) is not None}
        if config.get("num_nextn_predict_layers"):
            config["num_nextn_predict_layers"] = 0
        if isinstance(quantization := config.get("quantization_config"), Mapping):
            config["quantization_config"] = {key: self._modules(key, value) for key, value in quantization.items()}
        return config

    def _modules(self, key: str, value: Any) -> Any:
        """An entry of quantization_config; where it lists modules, under their new names."""
        if key not in _UNQUANTIZED_KEYS or not isinstance(value, list):
            return value
        return [new for name in value if (new := self._name(name) if isinstance(name, str) else name) is not None]

    def _name(self, name: str) -> str | None:
        """A tensor's or module's new name; None if it is left out."""
        if self.form == "stock" and self._is_mtp(name):
            return None
        layer, match = _layer_of(name), _EXPERT.match(name)
        if layer not in self.plan.layers or match is None:
            return name
        kept, expert = self.plan.layers[layer], int(match[2])
        if expert not in kept:
            return None
        return f"{match[1]}{kept.index(expert)}{match[3]}" if self.form == "stock" else name

    def _rows(self, name: str) -> tuple[int, ...] | None:
        layer = _layer_of(name)
        is_gate = layer in self.plan.layers and _GATE.search(name) and not _EXPERT.match(name)
        return self.plan.layers[layer] if is_gate else None

    def _is_mtp(self, name: str) -> bool:
        return _layer_of(name) >= self.shape.num_layers and name.startswith("model.layers.")


def _layer_of(name: str) -> int:
    match = _LAYER.search(name)
    return int(match[1]) if match else -1
