"""The schedules that are compared: the full model, plain skipping, and consolidation with and without a cap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_moe_opt.routing import FillRule


@dataclass(frozen=True)
class Arm:
    """One schedule of the decode steps; prompts run in full.

    Attributes:
        na: experts per token at most.
        k0: own experts of a token that consolidates; 0 is plain skipping to `na`.
        max_experts, min_share: see `FillRule`.
        in_groups: fills only come from groups that the token's router chose from.
    """

    na: int
    k0: int = 0
    max_experts: int = 0
    min_share: float = 0.0
    in_groups: bool = False

    @property
    def name(self) -> str:
        """Short and unique: na=3, own 2, own 1 cap 24, ..."""
        if not self.k0:
            return f"na={self.na}"
        parts = [f"own {self.k0}"]
        parts += [f"cap {self.max_experts}"] if self.max_experts else []
        parts += [f"share {self.min_share:g}"] if self.min_share else []
        parts += ["in groups"] if self.in_groups else []
        return " ".join(parts)

    def rule(self, num_groups: int) -> FillRule:
        return FillRule(self.max_experts, self.min_share, num_groups if self.in_groups else 1)


def standard_arms(top_k: int, num_experts: int, num_groups: int) -> tuple[list[Arm], list[Arm]]:
    """Plain skipping from the whole model down, and the consolidating arms."""
    plain = [Arm(na) for na in range(top_k, 0, -1)]
    own = [Arm(top_k, k0) for k0 in (1, 2, 3, 4)]
    capped = [Arm(top_k, k0, num_experts * eighths // 8) for k0, eighths in ((1, 3), (1, 4), (1, 5), (2, 4), (2, 5))]
    share = [Arm(top_k, 2, min_share=0.1)]
    groups = [Arm(top_k, k0, in_groups=True) for k0 in (1, 2)] if num_groups > 1 else []
    return plain, [*own, *capped, *share, *groups]


def cloze_arms(plain: Sequence[Arm], joint: Sequence[Arm]) -> list[Arm]:
    """The few that are worth the cloze task: it has less to tell two schedules apart by."""
    return [*plain, *(arm for arm in joint if arm.k0 <= 3 and not arm.min_share and not arm.in_groups)]
