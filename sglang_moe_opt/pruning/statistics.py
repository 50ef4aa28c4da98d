"""What calibration records of every expert: a folder with the statistics, where they come from, a sample of inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.files import write_atomically

Array = NDArray[np.float64]

STATISTICS_FILE: Final = "statistics.safetensors"
PROVENANCE_FILE: Final = "statistics.json"
INPUTS_FILE: Final = "inputs.safetensors"
CORPUS_FILE: Final = "corpus.safetensors"
FORMAT: Final = 1

PER_EXPERT: Final = ("hard", "soft", "reap", "easy_ep", "norm")
"""Sums with one number per layer and expert."""


@dataclass(frozen=True)
class ExpertStatistics:
    """Sums over the calibration's tokens, for L MoE layers with E routed experts.

    The gate weight is the one that the router gives: renormalised where the model renormalises, before
    ``routed_scaling_factor``. Shared experts are never counted.

    Attributes:
        layer_ids: the model's 0-based index of each MoE layer, ascending.
        tokens: how many tokens went through every layer.
        hard: float64 [L, E], how often the expert was in a token's top-k.
        soft: float64 [L, E], sum of the gate weight.
        reap: float64 [L, E], sum of gate weight times the expert output's 2-norm (REAP, arXiv 2510.13999; its
            criterion is the mean over routed tokens, that is divided by ``hard``).
        easy_ep: float64 [L, E], the same with each token's term times 1 - cos(hidden state before, after the routed
            experts) (EASY-EP, arXiv 2504.06792).
        norm: float64 [L, E], sum of the expert output's 2-norm over routed tokens.
        coactivation: float64 [L, E, E], how often both were in one token's top-k; the diagonal is ``hard``.
        provenance: corpus, model, versions and command that they come from.

    Raises:
        ValueError: shapes that do not fit each other.
    """

    layer_ids: tuple[int, ...]
    tokens: int
    hard: Array
    soft: Array
    reap: Array
    easy_ep: Array
    norm: Array
    coactivation: Array
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.layer_ids), self.num_experts)
        for name in PER_EXPERT:
            if (got := getattr(self, name).shape) != shape:
                raise ValueError(f"{name}: shape {got}, expected {shape}")
        if self.coactivation.shape != (*shape, self.num_experts):
            raise ValueError(f"coactivation: shape {self.coactivation.shape}, expected {(*shape, self.num_experts)}")

    @property
    def num_experts(self) -> int:
        """E, routed experts in a layer."""
        return int(self.hard.shape[-1])

    def tensors(self) -> dict[str, Array]:
        """The arrays by name, as they are saved."""
        return {name: getattr(self, name) for name in (*PER_EXPERT, "coactivation")}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any], provenance: dict[str, Any] | None = None) -> ExpertStatistics:
        """The reverse of what :meth:`save` writes; ``layer_ids`` int64 [L] and ``tokens`` int64 [1] are among them.

        Raises:
            ValueError: an array is missing or has a wrong shape.
        """
        try:
            layer_ids, tokens = tensors["layer_ids"].tolist(), int(tensors["tokens"][0])
            sums = {name: np.asarray(tensors[name], np.float64) for name in (*PER_EXPERT, "coactivation")}
        except (KeyError, IndexError) as error:
            raise ValueError(f"no {error} among the statistics") from None
        return cls(tuple(layer_ids), tokens, **sums, provenance=provenance or {})

    def save(self, folder: str | Path) -> None:
        """Write both files, each whole or not at all; the provenance comes last, so that it stands for the rest."""
        from safetensors.numpy import save

        folder = Path(folder)
        tensors = {name: np.ascontiguousarray(array) for name, array in self.tensors().items()}
        tensors["layer_ids"] = np.array(self.layer_ids, np.int64)
        tensors["tokens"] = np.array([self.tokens], np.int64)
        write_atomically(folder / STATISTICS_FILE, save(tensors))
        text = json.dumps({"format": FORMAT, **self.provenance}, indent=2) + "\n"
        write_atomically(folder / PROVENANCE_FILE, text)

    @classmethod
    def load(cls, folder: str | Path) -> ExpertStatistics:
        """Read what :meth:`save` wrote. Raises ValueError, one line with the file's whole path."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        folder = Path(folder)
        file = folder / PROVENANCE_FILE
        try:
            provenance = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(provenance, dict) or provenance.pop("format", None) != FORMAT:
                raise ValueError(f"not statistics of format {FORMAT}")
            file = folder / STATISTICS_FILE
            return cls.from_tensors(load(file.read_bytes()), provenance)
        except OSError as error:
            raise ValueError(f"{file}: {error.strerror}; expected the folder of a finished calibration") from None
        except (ValueError, SafetensorError) as error:
            raise ValueError(f"{file}: {error}") from None


def input_name(layer_id: int) -> str:
    """Name of a layer's sampled inputs [N, H] in ``inputs.safetensors``; row n is the same token in every layer."""
    return f"model.layers.{layer_id}.mlp.input"
