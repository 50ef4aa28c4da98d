"""A Hugging Face checkpoint's config and where its tensors lie, whole or refused. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from sglang_moe_opt.model_shape import read_config
from sglang_moe_opt.pruning.tensor_file import StoredTensor, TensorFileError, read_header

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` are in the order of files and of the bytes within; `config` is the content of config.json."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read config, index and every file's header. Raises ValueError naming what is missing or broken."""
        config = read_config(folder)
        if (folder / INDEX).exists():
            return cls(folder, config, _indexed(folder))
        if (folder / SINGLE).exists():
            return cls(folder, config, read_header(folder / SINGLE))
        raise ValueError(f"{folder}: neither {SINGLE} nor {INDEX} there; only safetensors checkpoints can be exported")

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def replaced(self, file: Path) -> Checkpoint:
        """The same with the tensors of a plan's sidecar in place of its own.

        Raises ValueError for a tensor that is not here in the same shape and dtype.
        """
        sidecar = read_header(file)
        for name, tensor in sidecar.items():
            own = self.tensors.get(name)
            if own is None:
                raise ValueError(f"{file}: {name} is not in the checkpoint {self.folder}")
            if (own.dtype, own.shape) != (tensor.dtype, tensor.shape):
                found, allowed = (f"{one.dtype} {list(one.shape)}" for one in (tensor, own))
                raise ValueError(f"{file}: {name}: got {found}, allowed: {allowed}, as in the checkpoint")
        return replace(self, tensors=self.tensors | sidecar)


def _indexed(folder: Path) -> dict[str, StoredTensor]:
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except OSError as error:
        raise ValueError(f"{folder / INDEX}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        weight_map = None
    if not isinstance(weight_map, Mapping) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{folder / INDEX}: no weight_map of tensor names to files in it")
    files = sorted(set(weight_map.values()))
    if missing := [file for file in files if not (folder / file).exists()]:
        raise ValueError(f"{folder}: {len(missing)} of {len(files)} shards missing: {', '.join(missing[:3])}")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors |= {name: tensor for name, tensor in read_header(folder / file).items() if weight_map.get(name) == file}
    if absent := next((name for name in weight_map if name not in tensors), None):
        raise TensorFileError(f"{folder / weight_map[absent]}: no {absent} in it, though {INDEX} says so")
    return tensors
