"""Write a pruned model as a Hugging Face checkpoint: streamed, atomic, resumable. Pure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, Final

from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PLAN_FILE, PrunePlan
from sglang_moe_opt.progress import Advance
from sglang_moe_opt.pruning.checkpoint import INDEX, SINGLE, Checkpoint
from sglang_moe_opt.pruning.export_card import model_card
from sglang_moe_opt.pruning.pruned_layout import Form, PrunedLayout
from sglang_moe_opt.pruning.staging import Staging
from sglang_moe_opt.pruning.tensor_file import TensorCopy, write_tensors

MAX_SHARD_BYTES: Final = 5 * 10**9

_COPIED: Final = (
    "tokenizer*",
    "*tiktoken*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "generation_config.json",
    "*processor_config.json",
    "*.py",  # code that config.json's auto_map names
    "LICENSE*",
    "NOTICE*",
)
_MTP_NOTE: Final = (
    "The layers of multi-token prediction are left out (`num_nextn_predict_layers` is 0): they share the expert count\n"
    "in config.json, and the plan does not say which of their experts to keep."
)


class ExportError(RuntimeError):
    """An export that stopped half-way; nothing is at the target."""


@dataclass(frozen=True)
class Export:
    """One export, checked and ready to be written.

    layout: the plan on the model. shards: file name -> tensors to write. command: for the model card.
    """

    layout: PrunedLayout
    staging: Staging
    shards: dict[str, list[TensorCopy]]
    source: str
    command: tuple[str, ...]

    @classmethod
    def prepare(
        cls,
        model: Path,
        plan_file: Path,
        out: Path,
        *,
        max_shard_bytes: int = MAX_SHARD_BYTES,
        source: str | None = None,
        command: Sequence[str] = (),
    ) -> Export:
        """Check everything that can be checked before anything is written.

        Args:
            model: folder of the full model.
            plan_file: of a PrunePlan for it, sidecar beside it.
            out: a new or empty folder, or that of an interrupted export with the same arguments.
            max_shard_bytes: size of a shard; a tensor larger than that has a shard of its own.
            source: what the model card calls the full model; default: the plan's name, else the folder's.

        Raises:
            ValueError: a broken checkpoint, a plan for another model, an `out` in use, too little disk space.
        """
        plan, checkpoint = PrunePlan.load(plan_file), Checkpoint.open(model)
        shape = MoEShape.from_config(checkpoint.config)
        plan.check(shape, _fingerprint(plan, checkpoint))
        if sidecar := plan.weights_path(plan_file):
            checkpoint = checkpoint.replaced(sidecar)
        layout = PrunedLayout(plan, shape, checkpoint)
        layout.check()
        out = out.expanduser().absolute()
        identity = {"model": plan.model, "plan": plan.digest, "max_shard_size": max_shard_bytes, "format": 1}
        export = cls(
            layout,
            Staging(out, identity),
            split_shards(layout.tensors(), max_shard_bytes),
            source or plan.name or model.absolute().name,
            tuple(command),
        )
        export.staging.check()
        export._check_space()
        return export

    @property
    def form(self) -> Form:
        return self.layout.form

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors to write."""
        return sum(tensor.nbytes for tensors in self.shards.values() for tensor in tensors)

    @property
    def notes(self) -> list[str]:
        return [_MTP_NOTE] if self.layout.drops_mtp else []

    def write(self, advance: Advance = lambda _: None) -> None:
        """Write or go on; `advance` is called with the bytes of tensors done. Raises ExportError, ValueError."""
        staging = self.staging
        try:
            with staging.open():
                for name, tensors in self.shards.items():
                    if name in staging.finished:
                        advance(sum(tensor.nbytes for tensor in tensors))
                    else:
                        staging.add(name, partial(write_tensors, tensors=tensors, advance=advance))
                self._write_small_files(staging.folder)
                staging.publish()
        except OSError as error:
            done = f"{len(staging.finished)} of {len(self.shards)} shards are kept in {staging.folder}"
            raise ExportError(
                f"{error.filename or staging.folder}: {error.strerror or error}; nothing is at {staging.target}"
                + (f", {done}: the same command goes on from there" if staging.finished else "")
            ) from None

    def _write_small_files(self, folder: Path) -> None:
        """Everything but the shards, the index last."""
        plan, source = self.layout.plan, self.layout.checkpoint.folder
        for file in _copied_files(source):
            shutil.copyfile(file, folder / file.name)
        _write_json(folder / "config.json", self.layout.config())
        self._applied_plan().save(folder / PLAN_FILE)
        card = model_card(
            plan,
            self.form,
            title=self.staging.target.name,
            source=self.source,
            source_card=source / "README.md",
            command=self.command,
            notes=self.notes,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        if len(self.shards) > 1:
            weight_map = {tensor.name: name for name, tensors in self.shards.items() for tensor in tensors}
            _write_json(folder / INDEX, {"metadata": {"total_size": self.nbytes}, "weight_map": weight_map})

    def _applied_plan(self) -> PrunePlan:
        """The plan as it lies in the folder: its replaced weights are in the shards."""
        plan = self.layout.plan
        exported = {"plan": plan.digest, "weights": plan.weights and plan.weights.sha256, "form": self.form}
        return plan.model_copy(update={"weights": None, "provenance": plan.provenance | {"exported": exported}})

    def _check_space(self) -> None:
        staging = self.staging
        open_shards = [tensors for name, tensors in self.shards.items() if name not in staging.finished]
        copied = sum(file.stat().st_size for file in _copied_files(self.layout.checkpoint.folder))
        needed = copied + sum(tensor.nbytes for tensors in open_shards for tensor in tensors)
        disk = next(folder for folder in staging.folder.parents if folder.exists())
        if needed > (free := shutil.disk_usage(disk).free):
            raise ValueError(f"{disk}: {free / 1e9:.3f} GB free, the export needs {needed / 1e9:.3f} GB")


def split_shards(tensors: Sequence[TensorCopy], max_bytes: int) -> dict[str, list[TensorCopy]]:
    """Tensors in their order, packed into files of at most `max_bytes`, named as transformers names them."""
    shards: list[list[TensorCopy]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{index:05d}-of-{len(shards):05d}.safetensors": shard for index, shard in enumerate(shards, 1)}


def _fingerprint(plan: PrunePlan, checkpoint: Checkpoint) -> str:
    """The model's fingerprint; that of its config alone where the plan was made from a model on a hub."""
    without_weights = fingerprint(checkpoint.config, None)
    return without_weights if plan.model == without_weights else fingerprint(checkpoint.config, checkpoint.folder)


def _copied_files(folder: Path) -> list[Path]:
    files = (file for file in sorted(folder.iterdir()) if file.is_file())
    return [file for file in files if any(fnmatch(file.name, pattern) for pattern in _COPIED)]


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
