"""Servers for the time of one command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sglang_moe_opt.cli.serve import check_policy, has_accelerator, resolve_model

if TYPE_CHECKING:
    from eval.plans import NamedPlan
    from loadtest.servers import Running

Named = tuple[str, Path]
"""A plan's name and its file."""


@contextmanager
def own_server(
    model: str, config: Path | None, extra: Sequence[str], console: Console, plan: Named | None = None
) -> Iterator[str]:
    """Serve a model on a free port; its URL.

    Args:
        model: folder, hub id, shape, or a mini model's name.
        config: policy file; None is the built-in policy.
        extra: further arguments of `sglang serve`.
        console: shows that it starts.
        plan: what it is served under; None is the whole model, unless the policy names a plan.
    """
    with _running(model, config, extra, console, plan) as running:
        yield running.url


@contextmanager
def own_servers(
    model: str, config: Path | None, extra: Sequence[str], console: Console, plans: Mapping[str, Path]
) -> Iterator[dict[str, Running]]:
    """Serve a model, and the same under each plan beside it. Arguments as for :func:`own_server`.

    Yields:
        The servers by the names of their plans, the whole model's as "".
    """
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(_running(model, config, extra, console, plan))
            for name, plan in {"": None, **{name: (name, file) for name, file in plans.items()}}.items()
        }


def load_plans(options: Sequence[str], model: str, config: Path | None) -> tuple[NamedPlan, ...]:
    """The plans of --prune-plan, checked before any server starts.

    Args:
        options: each NAME=FILE or FILE.
        model: folder or hub id.
        config: policy file; None is the built-in policy.

    Raises:
        ValueError: see `eval.plans.load_plans`.
    """
    from eval import plans
    from eval.served import read_model_config
    from sglang_moe_opt.model_shape import MoEShape

    return plans.load_plans(options, model, MoEShape.from_config(read_model_config(model)), policy_of(config))


def policy_of(config: Path | None) -> str:
    """What servers are told of their policy."""
    return str(config.resolve()) if config else "builtin"


@contextmanager
def _running(
    model: str, config: Path | None, extra: Sequence[str], console: Console, plan: Named | None
) -> Iterator[Running]:
    from loadtest.servers import free_port, server

    path = resolve_model(model)
    policy = policy_of(config)
    check_policy(path, policy, None)
    flags, under = (["--moe-prune-plan", str(plan[1])], f" under {plan[0]}") if plan else ([], "")
    own = server(path, on_cpu=not has_accelerator(), policy=policy, port=free_port(), extra=[*extra, *flags])
    with ExitStack() as stack:
        with console.status(f"starting a server for {model}{under}"):
            running = stack.enter_context(own)
        yield running
