"""The controllers of auto profiles in the scheduler: what they see of each batch, and which level they chose."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang_moe_opt.auto import AutoProfile, Controller
from sglang_moe_opt.hints import ResolvedHint, resolve
from sglang_moe_opt.layer_table import LayerTable
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy

_DECODED = "moe_opt_has_decoded"
"""Set on a request: its answer has begun, under whatever level it was."""


MAX_CONTROLLERS = 64
"""Definitions of auto profiles that are remembered; a policy that is reloaded may bring new ones again and again."""


@dataclass
class AutoLevel:
    """One auto profile as one policy defined it: its name, its controller, and its levels' names."""

    profile: str
    controller: Controller
    names: tuple[str, ...]
    _reported: int = 0

    def take_switches(self) -> int:
        """How often its level changed since the last call."""
        before, self._reported = self._reported, self.controller.switches
        return self._reported - before


@dataclass
class AutoLevels:
    """The auto profiles that requests ran under. Every rank has its own and sees the same batches, so that they agree.

    A request brings the definition that it was admitted under. After a reload of the policy, requests of the old
    definition and of the new one each have a controller of their own.

    Attributes:
        shape: of the model.
        by_key: by `ResolvedHint.key`, the one used last at the end.
        tokens: decoded since the last `take_tokens`, by profile and level.
    """

    shape: MoEShape
    by_key: OrderedDict[str, AutoLevel] = field(default_factory=OrderedDict)
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)

    @classmethod
    def of(cls, policy: Policy, shape: MoEShape) -> AutoLevels:
        """Controllers at their beginning."""
        levels = cls(shape)
        for name in policy.autos:
            levels.find(resolve(name, policy, shape))
        return levels

    def find(self, hint: ResolvedHint) -> AutoLevel:
        """The controller of this hint's profile, made where it is new. ValueError where that is no auto profile."""
        found = self.by_key.get(hint.key)
        if found is None:
            if not isinstance(hint.schedule, AutoProfile):
                raise ValueError(f"{hint.profile} is no auto profile")
            controller = hint.schedule.controller(self.shape, 0)  # the policy's floor is in the levels already
            found = self.by_key[hint.key] = AutoLevel(hint.profile, controller, hint.schedule.rule.levels)
            while len(self.by_key) > MAX_CONTROLLERS:
                self.by_key.popitem(last=False)
        else:
            self.by_key.move_to_end(hint.key)
        return found

    def see(self, reqs: Sequence[Any]) -> None:
        """Let the controllers choose for a decode step of these requests. A profile that is not among them rests."""
        if not self.by_key:  # no request of an auto profile ever came
            return
        opted: Counter[str] = Counter()
        hints: dict[str, ResolvedHint] = {}
        running: set[str] = set()
        for req in reqs:
            hint: ResolvedHint = req.moe_opt_hint
            if hint.levels:
                opted[hint.key] += 1
                hints[hint.key] = hint
                if getattr(req, _DECODED, False):
                    running.add(hint.key)
                else:
                    setattr(req, _DECODED, True)
        for key, tokens in opted.items():
            auto = self.find(hints[key])
            level = auto.controller.step(len(reqs), tokens, fresh=key not in running)
            self.tokens[auto.profile, auto.names[level]] += tokens

    def decode_table(self, hint: ResolvedHint) -> LayerTable:
        """What a generated token of this hint runs under now."""
        return hint.levels[self.find(hint).controller.level] if hint.levels else hint.decode

    def take_tokens(self) -> Counter[tuple[str, str]]:
        """What was decoded since the last call."""
        taken, self.tokens = self.tokens, Counter()
        return taken
