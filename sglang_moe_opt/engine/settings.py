"""How the policy reaches every process of the engine: flags become environment variables, which children inherit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.policy import Policy

CONFIG_ENV = "SGLANG_MOE_OPT_CONFIG"
DEFAULT_ENV = "SGLANG_MOE_OPT_SKIP_DEFAULT"
PRUNE_ENV = "SGLANG_MOE_OPT_PRUNE_PLAN"
ISOLATION_ENV = "SGLANG_MOE_OPT_CACHE_ISOLATION"
LOG_ENV = "SGLANG_MOE_OPT_LOG"
BUILTIN = "builtin"
JSON_LOG = "json"
LOGS = ("text", JSON_LOG)


@dataclass(frozen=True)
class Settings:
    """What was asked for on the command line or in the environment.

    Attributes:
        config: path of the policy file, or ``"builtin"`` for the packaged one; ``None`` leaves SGLang as it is.
        default_profile: overrides the policy's ``default``.
        prune_plan: path of the plan of the experts that are served; overrides the policy's ``prune_plan``.
        log: how events are reported: ``text`` in SGLang's log, or ``json`` lines on stderr.
        cache_isolation: one radix-cache namespace per schedule. Off only to show in a test what would go wrong.
    """

    config: str | None
    default_profile: str | None
    prune_plan: str | None = None
    cache_isolation: bool = True
    log: str = LOGS[0]

    @classmethod
    def from_env(cls) -> Settings:
        return cls(
            config=os.environ.get(CONFIG_ENV) or None,
            default_profile=os.environ.get(DEFAULT_ENV) or None,
            prune_plan=os.environ.get(PRUNE_ENV) or None,
            cache_isolation=os.environ.get(ISOLATION_ENV, "1") != "0",
            log=os.environ.get(LOG_ENV) or LOGS[0],
        )

    @property
    def enabled(self) -> bool:
        """Whether skipping is configured; a plan alone prunes the model and leaves requests as they are."""
        return self.config is not None or self.default_profile is not None

    def check(self) -> None:
        """Raise FieldError where a variable that is no policy or plan says what it cannot."""
        if self.log not in LOGS:
            raise FieldError(f"--moe-opt-log ({LOG_ENV})", self.log, " or ".join(LOGS))

    def load_policy(self) -> Policy:
        """The policy in force.

        Raises:
            PolicyError: the file is missing or malformed, or ``default_profile`` names no profile.
        """
        policy = Policy.builtin() if self.config in (None, BUILTIN) else Policy.load(self.config)
        return policy if self.default_profile is None else policy.with_default(self.default_profile)

    @property
    def policy_name(self) -> str:
        """The policy file's name without its folder, for clients; ``builtin`` for the packaged one."""
        return BUILTIN if self.config in (None, BUILTIN) else Path(self.config).name

    def plan_file(self) -> Path | None:
        """The plan to serve under; None without one. A relative path in a policy starts from the policy's folder.

        Raises:
            PolicyError: as :meth:`load_policy`.
        """
        if self.prune_plan is not None:
            return Path(self.prune_plan)
        if self.config in (None, BUILTIN):
            return None
        written = self.load_policy().prune_plan
        return None if written is None else Path(self.config).absolute().parent / written
