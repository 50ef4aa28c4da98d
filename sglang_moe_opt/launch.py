"""Which device, attention backend and environment a server is started with: what ``moe-opt serve`` decides. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sglang_moe_opt.quick_imports import LEFT_OUT_ENV

CPU_FLAGS: dict[str, str | None] = {
    "--device": "cpu",
    "--attention-backend": "torch_native",
    "--max-total-tokens": "65536",
    # Weights and cache together; the cache itself is bounded by --max-total-tokens.
    "--mem-fraction-static": "0.9",
    # Without it an idle scheduler spins on one of the cores that requests need.
    "--sleep-on-idle": None,
    # Nothing overlaps where scheduling and computing share the cores; it costs a step at the end of each request.
    "--disable-overlap-schedule": None,
}
"""Flags of a server on a plain CPU, each left out where the user gives it."""

CPU_ENV = {
    # torch.compile of the small routing functions costs seconds for each new shape and gains nothing on a CPU.
    "TORCHDYNAMO_DISABLE": "1",
    # Huge pages for weights and for Python's objects: a step streams all weights past the TLB, and what runs between
    # the layers' kernels would miss in it at every turn. Python's own allocator does not ask for them.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "PYTHONMALLOC": "malloc",
    # The copy is for CUDA graphs.
    "SGLANG_EAGER_INPUT_NO_COPY": "1",
    # DeepSeek's classes without all the other models'.
    "SGLANG_EXTERNAL_MODEL_PACKAGE": "sglang_moe_opt.engine.served_models",
    # Each takes a second of every process: the one has kernels for CUDA only, the other is for assisted generation
    # in transformers.
    LEFT_OUT_ENV: "flashinfer,sklearn",
}
"""Environment of a server on a plain CPU, each left alone where the user sets it."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True)
class LaunchPlan:
    """How the server is started.

    Attributes:
        argv: arguments of ``sglang serve``.
        env: environment variables to set where the user has not.
        notes: what was decided and why, a line each.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def plan_launch(model: str, *, on_cpu: bool, extra: Sequence[str] = (), policy: str | None = None) -> LaunchPlan:
    """Complete the user's arguments for this machine.

    Args:
        model: a folder or a Hugging Face id.
        on_cpu: there is no accelerator; otherwise upstream's own choices are left alone.
        extra: the user's own ``sglang serve`` arguments; they win over ours.
        policy: path of the policy file or ``builtin``; None where the environment already names one.
    """
    given = {argument.split("=", 1)[0] for argument in extra}
    argv = ["--model-path", model]
    notes = []
    if policy is not None:
        argv += ["--moe-opt-config", policy]
    if "--enable-metrics" not in given:
        argv.append("--enable-metrics")
    if not given & {"--skip-tokenizer-init", "--tokenizer-path"} and lacks_tokenizer(Path(model)):
        argv.append("--skip-tokenizer-init")
        notes.append("the checkpoint has no tokenizer: send input_ids to /generate")
    if on_cpu:
        for flag, value in CPU_FLAGS.items():
            if flag not in given:
                argv += [flag] if value is None else [flag, value]
        notes.append("no accelerator: plain CPU, torch_native attention with absorbed MLA")
    return LaunchPlan((*argv, *extra), dict(CPU_ENV) if on_cpu else {}, tuple(notes))


def lacks_tokenizer(model: Path) -> bool:
    """Whether the folder has no tokenizer; a hub id is taken to have one."""
    return model.is_dir() and not any((model / name).exists() for name in TOKENIZER_FILES)
