"""Prune plans in a load test: the same model with fewer experts, served beside the whole one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.served import read_model_config
from loadtest.folder import PlanEntry
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PrunePlan

OPTION = "--prune-plan"


@dataclass(frozen=True)
class PlanFile:
    """A plan that was checked against its model, the file that servers read it from, and what reports say of it."""

    file: Path
    entry: PlanEntry


def parse_plans(texts: Sequence[str]) -> dict[str, Path]:
    """`NAME=FILE`, or FILE with its stem as the name, in their order.

    Raises:
        FieldError: no name or no file, or a name that is there twice.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, sign, file = text.partition("=")
        if not sign or "/" in name:
            name, file = Path(text).stem, text
        if not name or not file:
            raise FieldError(OPTION, text, "NAME=FILE such as half=half.json, or a file whose name is the plan's")
        if name in found:
            raise FieldError(OPTION, text, f"every name once; {name} is {found[name]} already")
        found[name] = Path(file)
    return found


def check_plans(named: Mapping[str, Path], model: str, policy: str) -> dict[str, PlanFile]:
    """Read the plans and check them against the model, its checkpoint where that is local.

    Args:
        named: files by the plans' names.
        model: folder or hub id.
        policy: the servers' policy file, or `builtin`.

    Raises:
        ValueError: a plan that cannot be read or is for another model, or a model that is pruned by itself.
    """
    from sglang_moe_opt.engine.pruning import Pruning, stored_plan
    from sglang_moe_opt.engine.pruning.check import check_plan
    from sglang_moe_opt.engine.settings import Settings

    if not named:
        return {}
    if own := Settings(policy, None).plan_file() or stored_plan(Path(model)):
        raise FieldError(OPTION, ", ".join(named), f"plans beside the whole model; {own} prunes it already")
    shape = MoEShape.from_config(read_model_config(model))
    found = {}
    for name, file in named.items():
        plan = PrunePlan.load(file, verify=False)
        check_plan(Pruning(plan, file), shape, model)
        found[name] = PlanFile(file.resolve(), _entry(name, plan, shape))
    return found


def _entry(name: str, plan: PrunePlan, shape: MoEShape) -> PlanEntry:
    kept = tuple(len(plan.kept(layer)) for layer in shape.moe_layer_ids)
    return PlanEntry(
        name=name,
        digest=plan.digest,
        kept=kept,
        num_experts=shape.num_experts,
        kept_bytes=sum(kept) * shape.expert_bytes,
        full_bytes=shape.num_moe_layers * shape.num_experts * shape.expert_bytes,
    )
