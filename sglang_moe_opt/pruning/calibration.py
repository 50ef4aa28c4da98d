"""A calibration as a folder: groups of pieces are recorded one after the other, and added up when all are there.

job.json            what is calibrated: model, corpus, tokens; only the same can be gone on with
recorded/           one file a group, complete or absent; a group is recorded by one server at one go
statistics.*, inputs.safetensors, corpus.safetensors    when all groups are there; the rest is removed then
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.files import replace_atomically, write_atomically
from sglang_moe_opt.pruning.corpus import Corpus
from sglang_moe_opt.pruning.statistics import CORPUS_FILE, INPUTS_FILE, PROVENANCE_FILE, ExpertStatistics

JOB_FILE: Final = "job.json"
RECORDED: Final = "recorded"
NAMES: Final = ("model_name", "corpus")
"""Of a job: what its model and its text are called may change, what they are may not."""
MAX_GROUPS: Final = 64
"""Of large models a group's co-activations take tens of megabytes."""

_PACKAGES: Final = ("sglang-moe-opt", "sglang", "torch", "transformers")


@dataclass(frozen=True)
class Calibration:
    """A corpus, a model and the folder for what is recorded.

    Attributes:
        folder: of the results.
        corpus: what goes through the model.
        sample: ascending numbers of the tokens whose inputs are kept.
        job: what decides the result, as JSON: all of it must be the same for a run to be gone on with.
        save_every: tokens of a group, about.
    """

    folder: Path
    corpus: Corpus
    sample: NDArray[np.int64]
    job: dict[str, Any]
    save_every: int

    @property
    def groups(self) -> list[range]:
        """Numbers of the pieces of each group."""
        size = max(self.save_every, -(-self.corpus.tokens // MAX_GROUPS))
        return self.corpus.runs(range(len(self.corpus.pieces)), size)

    def tokens_of(self, group: range) -> int:
        starts = self.corpus.starts
        return int(starts[group.stop] - starts[group.start])

    @property
    def is_finished(self) -> bool:
        return (self.folder / PROVENANCE_FILE).exists()

    def group_file(self, index: int) -> Path:
        return self.folder / RECORDED / f"{index:05}.safetensors"

    def missing(self) -> list[int]:
        """Indices of the groups that are still to be recorded."""
        return [index for index in range(len(self.groups)) if not self.group_file(index).exists()]

    def open(self) -> None:
        """Begin in a new folder, or go on in one of the same job.

        Raises:
            ValueError: the folder holds another calibration, or something else.
        """
        before = self._job_before()
        if before is None:
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise ValueError(f"--out: {self.folder} holds something else, allowed: a new or empty folder")
            write_atomically(self.folder / JOB_FILE, json.dumps(self.job, indent=2) + "\n")
            return
        for key, value in self.job.items():
            if before.get(key) != value and key not in NAMES:
                raise ValueError(
                    f"--out: {self.folder} was begun with {key} {before.get(key)}, not {value}; "
                    "repeat that command, or choose another folder"
                )
        if self.is_finished:
            self._remove_groups()  # of a run that ended in between

    def _job_before(self) -> dict[str, Any] | None:
        if self.is_finished:
            found = ExpertStatistics.load(self.folder).provenance.get("job")
        elif (self.folder / JOB_FILE).exists():
            try:
                found = json.loads((self.folder / JOB_FILE).read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{self.folder / JOB_FILE}: {error}") from None
        else:
            return None
        return found if isinstance(found, dict) else {}

    def keep(self, index: int, dump: Path) -> None:
        """Take a group as recorded.

        Args:
            index: of the group.
            dump: what the server wrote; it is moved away.

        Raises:
            RuntimeError: it does not cover the group's tokens, each once.
        """
        from safetensors import safe_open

        with safe_open(dump, "np") as tensors:
            recorded = int(tensors.get_tensor("tokens")[0])
        expected = self.tokens_of(self.groups[index])
        if recorded != expected:
            raise RuntimeError(f"the server recorded {recorded} of the {expected} tokens it was sent")
        dump.replace(self.group_file(index))

    def finish(self, command: list[str]) -> ExpertStatistics:
        """Add the groups up, write the results, remove the groups.

        Raises:
            RuntimeError: the sample is not complete.
        """
        files = [self.group_file(index) for index in range(len(self.groups))]
        self._write_inputs(files)
        self.corpus.save(self.folder / CORPUS_FILE)
        total = _add_up(files)
        total["provenance"] = {
            "job": self.job,
            "pieces": len(self.corpus.pieces),
            "sampled_inputs": len(self.sample),
            "versions": {name: found for name in _PACKAGES if (found := _version(name))},
            "command": command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        statistics = ExpertStatistics(**total)
        statistics.save(self.folder)
        self._remove_groups()
        return statistics

    def _remove_groups(self) -> None:
        shutil.rmtree(self.folder / RECORDED, ignore_errors=True)
        (self.folder / JOB_FILE).unlink(missing_ok=True)

    def _write_inputs(self, files: list[Path]) -> None:
        import torch
        from safetensors import safe_open
        from safetensors.torch import save_file

        parts: dict[str, list[torch.Tensor]] = {}
        for file in files:
            with safe_open(file, "pt") as tensors:
                names = tensors.keys()
                for name in (one for one in names if one == "sampled" or one.endswith(".input")):
                    parts.setdefault(name, []).append(tensors.get_tensor(name))
        inputs = {name: torch.cat(found) for name, found in parts.items()}
        if not np.array_equal(inputs.pop("sampled").numpy(), self.sample):
            raise RuntimeError(f"{self.folder}: the inputs recorded are not those of the sample")
        replace_atomically(self.folder / INPUTS_FILE, lambda path: save_file(inputs, path))


def _add_up(files: list[Path]) -> dict[str, Any]:
    from safetensors import safe_open

    total: dict[str, Any] = {}
    for file in files:
        with safe_open(file, "np") as tensors:
            names = tensors.keys()
            for name in (one for one in names if one != "sampled" and not one.endswith(".input")):
                value = tensors.get_tensor(name)
                total[name] = value if name not in total or name == "layer_ids" else total[name] + value
    return {**total, "layer_ids": tuple(total["layer_ids"].tolist()), "tokens": int(total["tokens"][0])}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
