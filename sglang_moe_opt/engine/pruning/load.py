"""Read a checkpoint as a pruned model takes it: kept experts renumbered, gates cut or masked, sidecar tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from sglang_moe_opt.engine.pruning.active import Pruning, get_pruning
from sglang_moe_opt.engine.pruning.names import EXPERT, GATE, SHARED, Layers, get_layer, is_kept, missing_tensors
from sglang_moe_opt.plan import GateMode

Weights = Iterable[tuple[str, Tensor]]

_COMPLETE = "_moe_opt_complete"


def safetensors_weights(
    original: Callable[..., Iterator[tuple[str, Tensor]]], hf_weights_files: Sequence[str], *args: Any, **kwargs: Any
) -> Iterator[tuple[str, Tensor]]:
    """AROUND the iterators over safetensors files: removed experts are not read.

    Where the files are to be read whole (``disable_mmap``, ``prefetch``), upstream does so.
    """
    pruning = get_pruning()
    if pruning is None or args or kwargs.get("disable_mmap") or kwargs.get("prefetch"):
        return original(hf_weights_files, *args, **kwargs)
    workers, drop_cache = kwargs.get("max_workers", 1), kwargs.get("drop_cache_after_load", False)
    return _kept_tensors(pruning.plan.layers, hf_weights_files, workers=workers, drop_cache=drop_cache)


def _kept_tensors(
    layers: Layers, files: Sequence[str], *, workers: int, drop_cache: bool
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of one file after the other, mapped into memory until they are copied; the next files are read ahead."""
    from sglang.srt.model_loader.weight_utils import _drop_file_cache_after_load
    from tqdm import tqdm  # type: ignore[import-untyped]

    quiet = torch.distributed.is_initialized() and torch.distributed.get_rank() != 0
    waiting = iter(files)
    with ThreadPoolExecutor(workers) as pool:
        reads = deque(pool.submit(_read_kept, layers, file) for file in islice(waiting, workers + 1))
        for file in tqdm(files, desc="Loading kept experts", disable=quiet):
            tensors = reads.popleft().result()
            reads.extend(pool.submit(_read_kept, layers, following) for following in islice(waiting, 1))
            yield from tensors.items()
            del tensors
            if drop_cache:
                _drop_file_cache_after_load(file)


def _read_kept(layers: Layers, file: str) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(file, framework="pt", device="cpu") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys() if is_kept(layers, name)}  # noqa: SIM118


def do_load_weights(model: Any, weights: Weights, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict]:
    """BEFORE ``do_load_weights`` of DeepSeek models.

    The first load must bring every kept expert: upstream would leave what it does not find as it was allocated.
    """
    pruning = get_pruning()
    if pruning is None:
        return (model, weights, *args), kwargs
    if not getattr(model, _COMPLETE, False):
        setattr(model, _COMPLETE, True)
        weights = complete(pruning, weights)
    selected = select(pruning, weights, pruning.gate_mode(model.config), model.num_fused_shared_experts)
    return (model, selected, *args), kwargs


def select(
    pruning: Pruning, weights: Weights, mode: GateMode, num_fused_shared: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """The pruned model's tensors out of the whole model's, by the names that the loader knows them under.

    Args:
        pruning: the plan.
        weights: (name, tensor) of the checkpoint, of all its layers or of some.
        mode: ``shrink`` keeps the kept experts' rows of a gate, ``mask`` all rows with a bias of -inf for the others.
        num_fused_shared: shared experts that are computed as routed ones, and follow them.
    """
    sidecar = Sidecar(pruning)
    for name, tensor in weights:
        if not is_kept(pruning.plan.layers, name):
            continue
        tensor = sidecar.get(name, tensor)
        if (layer := get_layer(name)) is not None and (kept := pruning.kept(layer)) is not None:
            if match := EXPERT.fullmatch(name):
                name = f"{match[1]}{kept.index(int(match[3]))}{match[4]}"
            elif match := GATE.fullmatch(name):
                tensor = _gate(tensor, kept, pruning.plan.num_experts, mode, is_bias=match[2] != "weight")
            elif num_fused_shared and (match := SHARED.fullmatch(name)):
                name = f"{match[1]}experts.{len(kept)}{match[2]}"
        yield name, tensor


def _gate(tensor: Tensor, kept: Sequence[int], num_experts: int, mode: GateMode, *, is_bias: bool) -> Tensor:
    """A gate or its bias as the router wants it; a checkpoint written under the plan has the kept rows alone."""
    rows = torch.tensor(kept, device=tensor.device)
    if mode == "mask" and len(tensor) == num_experts and not is_bias:
        return tensor
    own = tensor if len(tensor) == len(kept) else tensor[rows]
    if mode == "shrink":
        return own
    whole = tensor.new_full((num_experts, *tensor.shape[1:]), float("-inf") if is_bias else 0.0)
    return whole.index_copy_(0, rows, own)


def complete(pruning: Pruning, weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Pass on a checkpoint's tensors.

    Raises:
        ValueError: at the end, where a part of a kept expert or a gate did not come.
    """
    names = []
    for name, tensor in weights:
        names.append(name)
        yield name, tensor
    if missing := list(missing_tensors(pruning.plan.layers, names)):
        raise ValueError(
            f"the checkpoint is not complete: it has no {missing[0]}, which {pruning.file} keeps"
            f" ({len(missing)} such tensors)"
        )


class Sidecar:
    """Replaced tensors, mapped into memory from the plan's file, one layer's at a time.

    Closing the file behind each layer lets go of the pages that were read.
    """

    def __init__(self, pruning: Pruning) -> None:
        self._file = pruning.sidecar
        self._names: frozenset[str] = frozenset()
        self._layer: int | None = None
        self._tensors: Any = None
        if self._file is not None:
            with self._open() as tensors:
                self._names = frozenset(tensors.keys())

    def get(self, name: str, tensor: Tensor) -> Tensor:
        """The sidecar's tensor of that name, else ``tensor``."""
        if name not in self._names:
            return tensor
        if (layer := get_layer(name)) != self._layer or self._tensors is None:
            self._layer, self._tensors = layer, self._open()
        result: Tensor = self._tensors.get_tensor(name)
        return result

    def _open(self) -> Any:
        from safetensors import safe_open

        return safe_open(self._file, framework="pt", device="cpu")
