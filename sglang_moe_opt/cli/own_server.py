"""Servers for the time of one command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sglang_moe_opt.cli.serve import check_policy, has_accelerator, resolve_model

if TYPE_CHECKING:
    from loadtest.servers import Running


@contextmanager
def own_server(model: str, config: Path | None, extra: Sequence[str], console: Console) -> Iterator[str]:
    """Serve a model on a free port; its URL. Arguments as for :func:`own_servers`."""
    with own_servers(model, config, extra, console) as servers:
        yield servers[""].url


@contextmanager
def own_servers(
    model: str, config: Path | None, extra: Sequence[str], console: Console, plans: Mapping[str, Path] | None = None
) -> Iterator[dict[str, Running]]:
    """Serve a model, and the same under each plan beside it, on free ports.

    Args:
        model: folder, hub id, shape, or a mini model's name.
        config: policy file; None is the built-in policy.
        extra: further arguments of `sglang serve`.
        console: shows what starts.
        plans: files by name.

    Yields:
        The servers by the names of their plans, the whole model's as "".
    """
    from loadtest.servers import free_port, server

    path = resolve_model(model)
    policy = policy_of(config)
    check_policy(path, policy, None)
    flags = {"": [], **{name: ["--moe-prune-plan", str(file)] for name, file in (plans or {}).items()}}
    found: dict[str, Running] = {}
    with ExitStack() as stack:
        for name, more in flags.items():
            own = server(path, on_cpu=not has_accelerator(), policy=policy, port=free_port(), extra=[*extra, *more])
            with console.status(f"starting a server for {model}{f' under {name}' if name else ''}"):
                found[name] = stack.enter_context(own)
        yield found


def policy_of(config: Path | None) -> str:
    """What servers are told of their policy."""
    return str(config.resolve()) if config else "builtin"
