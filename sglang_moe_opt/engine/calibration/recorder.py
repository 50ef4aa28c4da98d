"""The scheduler's part of a calibration: knows which tokens count, records them layer by layer, writes what it has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sglang_moe_opt.engine.calibration import DUMP_FILE, JOB_FILE, piece_of
from sglang_moe_opt.engine.calibration.sums import ExpertSums, change, run_experts
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.pruning.statistics import input_name


@dataclass(frozen=True)
class Step:
    """A forward pass: which of its rows count, and which of those are sampled.

    Attributes:
        rows: int64, rows of the batch that are prompt tokens of the corpus.
        sampled_rows: int64, those of them whose inputs are kept.
        sampled: int64, the same as numbers of tokens in the corpus.
    """

    rows: Tensor
    sampled_rows: Tensor
    sampled: Tensor


@dataclass(frozen=True)
class Job:
    """The corpus as the scheduler must know it.

    Attributes:
        starts: int64 [pieces + 1], number of each piece's first token in the corpus.
        sample: int64 [N], ascending numbers of the tokens whose inputs are kept.
    """

    starts: Tensor
    sample: Tensor

    @classmethod
    def load(cls, folder: Path) -> Job:
        tensors = load_file(folder / JOB_FILE)
        return cls(tensors["starts"], tensors["sample"])

    def step(self, rids: list[str], prefix_lens: list[int], extend_lens: list[int]) -> Step:
        """The step that computes ``extend_lens`` tokens of each request behind ``prefix_lens``.

        Tokens behind a piece's end were generated: they do not count, nor do requests that carry no piece.
        """
        rows, numbers, first = [], [], 0
        for rid, prefix, length in zip(rids, prefix_lens, extend_lens, strict=True):
            piece = piece_of(rid)
            if piece is not None:
                start, end = self.starts[piece].item(), self.starts[piece + 1].item()
                count = min(length, end - start - prefix)
                if count > 0:
                    rows.append(torch.arange(first, first + count))
                    numbers.append(torch.arange(start + prefix, start + prefix + count))
            first += length
        none = torch.empty(0, dtype=torch.int64)
        counted, number = (torch.cat([none, *parts]) for parts in (rows, numbers))
        kept = torch.isin(number, self.sample)
        return Step(counted, counted[kept], number[kept])


class Recorder:
    """Sums and sampled inputs since the last dump.

    Args:
        folder: where the job is read and dumps are written.
        shape: of the model.
        device: of its layers.
    """

    def __init__(self, folder: Path, shape: MoEShape, device: torch.device | str) -> None:
        self._folder = folder
        self._shape = shape
        self._device = device
        self._job = Job.load(folder)
        self._index = {layer_id: index for index, layer_id in enumerate(shape.moe_layer_ids)}
        self._batch: Any = None
        self._step: Step | None = None
        self._clear()

    def _clear(self) -> None:
        self._sums = ExpertSums(self._shape.num_moe_layers, self._shape.num_experts, self._device)
        self._tokens = [0] * self._shape.num_moe_layers
        self._inputs: list[list[Tensor]] = [[] for _ in self._index]
        self._sampled: list[Tensor] = []

    def record(self, moe: Any, forward_batch: Any, x: Tensor, ids: Tensor, weights: Tensor) -> None:
        """One MoE layer in one step, before its experts run.

        EASY-EP (arXiv 2504.06792) weighs a token by how far the routed experts turn its hidden state. Taken is the
        residual stream behind attention, without a norm, before and after the routed experts' weighted and scaled
        sum is added to it; the shared experts' part is left out of both, as in the authors' code. The stream is the
        state that the layer changes: against the layer's own input, which is normed, nearly every token would turn
        by a right angle.

        Args:
            moe: SGLang's ``DeepseekV2MoE``.
            forward_batch: the step; its residual stream is the hidden state that the layer's output is added to.
            x: [tokens, hidden], the layer's input behind the norm.
            ids, weights: [tokens, slots], as the router gives them; slots of fused shared experts come last.
        """
        layer = self._index[moe.layer_id]
        if forward_batch is not self._batch:
            self._batch, self._step = forward_batch, self._begin(forward_batch)
        step = self._step
        if step is None or not len(step.rows):
            return
        slots = moe.top_k
        x_counted, ids, weights = x[step.rows], ids[step.rows, :slots].long(), weights[step.rows, :slots].float()
        if moe.routed_scaling_factor_fused_in_topk:
            weights = weights / moe.routed_scaling_factor
        experts = moe.experts
        norms, routed = run_experts(x_counted, ids, weights, experts.w13_weight, experts.w2_weight)
        before = forward_batch.residual_stream.residual[step.rows]
        self._sums.add(layer, ids, weights, norms, change(before, routed * moe.routed_scaling_factor))
        self._tokens[layer] += len(step.rows)
        self._inputs[layer].append(x[step.sampled_rows].to("cpu", copy=True))
        if layer == 0:
            self._sampled.append(step.sampled.cpu())

    def _begin(self, forward_batch: Any) -> Step | None:
        if not forward_batch.forward_mode.is_extend():
            return None
        step = self._job.step(
            forward_batch.rids, forward_batch.extend_prefix_lens_cpu, forward_batch.extend_seq_lens_cpu
        )
        return Step(step.rows.to(self._device), step.sampled_rows.to(self._device), step.sampled)

    def dump(self) -> None:
        """Write what was recorded since the last dump, whole or not at all, and begin anew.

        Raises:
            RuntimeError: the layers saw different numbers of tokens.
        """
        if len(set(self._tokens)) != 1:
            raise RuntimeError(f"calibration: the MoE layers saw {self._tokens} tokens")
        sampled = torch.cat([torch.empty(0, dtype=torch.int64), *self._sampled])
        order = sampled.argsort()
        tensors = {name: tensor.cpu() for name, tensor in self._sums.tensors.items()}
        tensors["layer_ids"] = torch.tensor(self._shape.moe_layer_ids)
        tensors["tokens"] = torch.tensor(self._tokens[:1])
        tensors["sampled"] = sampled[order]
        for layer_id, parts in zip(self._shape.moe_layer_ids, self._inputs, strict=True):
            if parts:
                tensors[input_name(layer_id)] = torch.cat(parts)[order]
        temporary = self._folder / f".{DUMP_FILE}"
        save_file(tensors, temporary)
        temporary.replace(self._folder / DUMP_FILE)
        self._clear()
