"""Server flags and kernels that a feature does not work with: refused by name, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

RUNNER_BACKENDS = ("auto", "triton", "deep_gemm")
"""Expert backends that honour the id -1 of a dropped slot. Others route in their own kernel, or read it as an index."""

Refusal = tuple[str, Callable[[Any], Any], str]
"""A field of the server's arguments, whether its value is refused, and what to do instead."""

ServerFields = tuple[str, ...]
"""Names of fields of the server's arguments. `moe-opt doctor --compat` finds them by this annotation: a field that is
gone upstream would read as None, and what it switches on would no longer be refused."""

OTHER_BACKENDS: Refusal = (
    "moe_runner_backend",
    lambda v: v is not None and str(v) not in RUNNER_BACKENDS,
    "it routes in its own kernel or does not skip dropped experts; set --moe-runner-backend triton",
)


class UnsupportedError(ValueError):
    """A server flag with which a feature would be wrong or would silently do nothing."""


def refuse(server_args: Any, feature: str, refusals: Iterable[Refusal]) -> None:
    """Check the engine's flags against what the hooks can reach.

    Raises:
        UnsupportedError: naming the flag, its value and what to set instead.
    """
    for name, bad, instead in refusals:
        value = getattr(server_args, name, None)
        if bad(value):
            flag = "--" + name.replace("_", "-")
            raise UnsupportedError(f"{feature} does not work with {flag} {value}: {instead}")


def check_standard_output(topk_config: Any) -> None:
    """Refuse experts whose kernel does the routing itself.

    Raises:
        RuntimeError: naming the backend.
    """
    from sglang.srt.layers.moe.topk import TopKOutputFormat

    backend = getattr(topk_config.runner_backend, "value", topk_config.runner_backend)
    routes_itself = topk_config.output_format not in (None, TopKOutputFormat.STANDARD)
    if routes_itself or (backend is not None and backend not in RUNNER_BACKENDS):
        raise RuntimeError(
            f"sglang-moe-opt: MoE runner backend {backend} routes in its own kernel or does not skip dropped experts; "
            "start the server with --moe-runner-backend triton"
        )
