"""The plan in force in this process."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_moe_opt.engine.settings import PRUNE_ENV, Settings
from sglang_moe_opt.model_shape import MoEShape, read_config
from sglang_moe_opt.plan import PLAN_KEY, GateMode, PlanError, PrunePlan


@dataclass(frozen=True, eq=False)
class Pruning:
    """A plan and the file that it came from, which its sidecar lies beside."""

    plan: PrunePlan
    file: Path

    @property
    def sidecar(self) -> Path | None:
        """File of the tensors that replace the checkpoint's."""
        return self.plan.weights_path(self.file)

    @property
    def is_stored(self) -> bool:
        """Whether the plan lies in a checkpoint that was written under it, without the removed experts."""
        return stored_plan(self.file.parent) == self.file

    def kept(self, layer_id: int) -> tuple[int, ...] | None:
        """Experts that a layer keeps, ascending; None where the plan does not name it."""
        return self.plan.layers.get(layer_id)

    def gate_mode(self, config: Any) -> GateMode:
        """How the routers of the model with this Hugging Face config are pruned."""
        fields: Mapping[str, Any] = config.to_dict()
        return self.plan.gate_mode(MoEShape.from_config(fields))

    def describe(self) -> str:
        """The plan in a few words, such as ``half.json (reap): 160 of 320 experts in 5 layers``."""
        kept = sum(len(experts) for experts in self.plan.layers.values())
        whole = self.plan.num_experts * len(self.plan.layers)
        name = f" ({self.plan.name})" if self.plan.name else ""
        return f"{self.file.name}{name}: {kept} of {whole} experts in {len(self.plan.layers)} layers"


def get_pruning() -> Pruning | None:
    """The plan of the flag, the environment or the policy; None where all experts are served.

    Raises:
        PolicyError, PlanError: the policy or the plan cannot be read.
    """
    return load_pruning(Settings.from_env())


def stored_plan(model: Path) -> Path | None:
    """The plan that a checkpoint's folder was written under; None where it was not, or is no folder.

    Raises:
        PlanError: the config names a file outside the folder: a checkpoint may come from anywhere.
    """
    if not (model / "config.json").is_file():
        return None
    name = read_config(model).get(PLAN_KEY)
    if name is None:
        return None
    if not isinstance(name, str) or name in ("", ".", "..") or name != Path(name).name or "\0" in name:
        raise PlanError(PLAN_KEY, name, "the name of a file beside config.json", str(model / "config.json"))
    return model / name


def adopt_stored_plan(model: str) -> None:
    """Serve a checkpoint under the plan that it was written under, in this process and its children.

    Raises:
        ValueError: another plan is asked for.
    """
    file = stored_plan(Path(model).absolute())
    if file is None:
        return
    pruning = get_pruning()
    if pruning is not None and pruning.file.absolute() != file:
        raise ValueError(f"{model}: stored under a plan of its own; leave out {pruning.file}")
    os.environ[PRUNE_ENV] = str(file)


@functools.cache
def load_pruning(settings: Settings) -> Pruning | None:
    """Read the plan once for each setting; its sidecar is hashed where the server is checked."""
    file = settings.plan_file()
    return None if file is None else Pruning(PrunePlan.load(file, verify=False), file)
