"""The prune plans that a run compares: named, checked before any server starts, and what results record of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eval.results import PlanEntry, ScheduleEntry
from sglang_moe_opt.engine.pruning import Pruning, stored_plan
from sglang_moe_opt.engine.pruning.check import check_plan
from sglang_moe_opt.engine.settings import Settings
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PLAN_FILE, PrunePlan
from sglang_moe_opt.schedule import FULL

OPTION: Final = "--prune-plan"
_NAME: Final = re.compile(r"[\w.+-]{1,60}")


@dataclass(frozen=True, eq=False)
class NamedPlan:
    """A plan, the file that it was read from, and what results call it.

    `is_exported`: the checkpoint was written under it; `plan.model` is then not the checkpoint, but what it was made
    from.
    """

    name: str
    file: Path
    plan: PrunePlan
    is_exported: bool = False

    @property
    def sidecar(self) -> Path | None:
        """File of the tensors that replace the checkpoint's."""
        return self.plan.weights_path(self.file)

    def entry(self, shape: MoEShape, checkpoint: str | None = None) -> PlanEntry:
        """What results record; `shape` gives the size of an expert, `checkpoint` is an exported one's fingerprint."""
        kept = [len(experts) for experts in self.plan.layers.values()]
        return PlanEntry(
            name=self.name,
            digest=self.plan.digest,
            num_experts=self.plan.num_experts,
            kept=kept,
            expert_bytes=sum(kept) * shape.expert_bytes,
            whole_expert_bytes=len(kept) * self.plan.num_experts * shape.expert_bytes,
            method=self.plan.method,
            checkpoint=checkpoint,
        )


def load_plans(options: Sequence[str], model: str, shape: MoEShape, policy: str = "builtin") -> tuple[NamedPlan, ...]:
    """Read `NAME=FILE` or `FILE`, whose stem is then the name, and check each plan against the model.

    Args:
        options: in order.
        model: folder or hub id of the whole model.
        shape: of the whole model.
        policy: the servers' policy file, or `builtin`.

    Raises:
        ValueError: a plan that cannot be read or does not fit the model, a name that is there twice, or no whole model
            to compare with.
    """
    if options and (own := _own_plan(Path(model), policy)):
        raise FieldError(OPTION, ", ".join(options), f"plans beside the whole model; {own} prunes it already")
    found: dict[str, NamedPlan] = {}
    for option in options:
        name, file = _split(option)
        if not _NAME.fullmatch(name) or name == FULL:
            raise FieldError(OPTION, name, f"a name of letters, digits and .+-_ other than {FULL}: NAME=FILE")
        if name in found:
            raise FieldError(OPTION, name, "each name once: NAME=FILE")
        plan = PrunePlan.load(file, verify=False)
        check_plan(Pruning(plan, file), shape, model)
        found[name] = NamedPlan(name, file, plan)
    return tuple(found.values())


def under(plan: PlanEntry, schedules: Sequence[ScheduleEntry]) -> list[ScheduleEntry]:
    """The same schedules on the model that the plan leaves: `full` is called NAME, others NAME/LABEL."""
    return [
        entry.model_copy(
            update={"label": plan.name if entry.label == FULL else f"{plan.name}/{entry.label}", "plan": plan}
        )
        for entry in schedules
    ]


def _own_plan(model: Path, policy: str) -> Path | None:
    """The plan of the policy or of the checkpoint, also where that was written as a smaller model."""
    exported = model / PLAN_FILE
    return Settings(policy, None).plan_file() or stored_plan(model) or (exported if exported.exists() else None)


def _split(option: str) -> tuple[str, Path]:
    """Name and absolute path. A file whose own name has a `=` is one without a name."""
    name, equals, file = option.partition("=")
    if not equals or "/" in name or Path(option).exists():
        return Path(option).stem, Path(option).absolute()
    return name, Path(file).absolute()
