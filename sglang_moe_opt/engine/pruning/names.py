"""The tensors of a DeepSeek checkpoint that a plan is about, by their names. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

EXPERT: Final = re.compile(r"(model\.layers\.(\d+)\.mlp\.experts\.)(\d+)(\..+)")
"""A routed expert's tensor: what comes before its number, the layer, the number, what comes behind."""
GATE: Final = re.compile(r"model\.layers\.(\d+)\.mlp\.gate\.(weight|e_score_correction_bias)")
SHARED: Final = re.compile(r"(model\.layers\.\d+\.mlp\.)shared_experts(\..+)")
_LAYER: Final = re.compile(r"model\.layers\.(\d+)\.")

Layers = Mapping[int, Sequence[int]]
"""Layer id -> kept expert ids."""


def get_layer(name: str) -> int | None:
    """The layer that a tensor belongs to."""
    match = _LAYER.match(name)
    return None if match is None else int(match[1])


def is_kept(layers: Layers, name: str) -> bool:
    """Whether the pruned model has the checkpoint's tensor ``name``; layers that the plan does not name stay whole."""
    if (match := EXPERT.fullmatch(name)) is None:
        return True
    kept = layers.get(int(match[2]))
    return kept is None or int(match[3]) in kept


def missing_tensors(layers: Layers, names: Iterable[str]) -> Iterator[str]:
    """What the pruned model needs and a checkpoint of these ``names`` lacks: a part of a kept expert, or a gate."""
    found: dict[tuple[int, int], set[str]] = defaultdict(set)
    gates = set()
    for name in names:
        if match := EXPERT.fullmatch(name):
            found[int(match[2]), int(match[3])].add(match[4])
        elif match := GATE.fullmatch(name):
            gates.add((int(match[1]), match[2]))
    for layer, kept in layers.items():
        parts = set[str]().union(*(found[layer, expert] for expert in kept))
        for expert in kept:
            lacking = sorted(parts - found[layer, expert]) if parts else [""]
            yield from (f"model.layers.{layer}.mlp.experts.{expert}{part}" for part in lacking)
        if (layer, "weight") not in gates:
            yield f"model.layers.{layer}.mlp.gate.weight"
