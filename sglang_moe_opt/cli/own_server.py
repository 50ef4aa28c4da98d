"""A server for the time of one command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from sglang_moe_opt.cli.serve import check_policy, has_accelerator, resolve_model


@contextmanager
def own_server(
    model: str, config: Path | None, extra: Sequence[str], console: Console, title: str | None = None
) -> Iterator[str]:
    """Serve a model on a free port; its URL.

    Args:
        model: folder, hub id, shape, or a mini model's name.
        config: policy file; None is the built-in policy.
        extra: further arguments of `sglang serve`.
        console: shows that it starts.
        title: what it shows instead of the model.
    """
    from loadtest.servers import free_port, server

    path = resolve_model(model)
    policy = str(config.resolve()) if config else "builtin"
    check_policy(path, policy, None)
    own = server(path, on_cpu=not has_accelerator(), policy=policy, port=free_port(), extra=extra)
    with ExitStack() as stack:
        with console.status(f"starting a server for {title or model}"):
            running = stack.enter_context(own)
        yield running.url
