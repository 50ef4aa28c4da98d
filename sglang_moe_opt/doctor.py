"""What `moe-opt doctor` looks at: one small function per question, each answering with rows of ok, warn or fail.

Nothing here imports SGLang, and torch only where a GPU may be: versions come from the packages' metadata and hook
targets are looked up in the source, so that the answer takes a second.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from sglang_moe_opt.compat.reliance import read_hooks
from sglang_moe_opt.compat.source import Source, SourceError
from sglang_moe_opt.compat.symbols import find
from sglang_moe_opt.patches import PatchSet, SourceTree
from sglang_moe_opt.sglang_version import SUPPORTED, is_supported
from sglang_moe_opt.unified_diff import PatchError

State = Literal["ok", "warn", "fail"]

PLUGIN_GROUP: Final = "sglang.srt.plugins"
PLUGIN: Final = "moe_opt"
# A server of a small model; see the design, "Models used here".
SERVER_GB: Final = 4.2
PYTHONS: Final = ((3, 11), (3, 13))

# Tested versions of what may also work with another one. Another SGLang is refused (sglang_version.py).
PINS: Final[dict[str, str]] = {"lm-eval": "0.4.13", "locust": "2.47.0"}
REQUIRED: Final = ("sglang", "torch", "transformers", "pydantic", "typer")
GPU_ONLY: Final = ("triton", "flashinfer-python", "sglang-kernel")
OPTIONAL: Final[dict[str, str]] = {"lm-eval": "moe-opt eval", "locust": "moe-opt loadtest"}


@dataclass(frozen=True)
class Check:
    """One row of the report. `fix` says what to do, and is empty where there is nothing to do."""

    topic: str
    name: str
    state: State
    detail: str
    fix: str = ""


def diagnose() -> list[Check]:
    """Every check, in the order in which a reader would ask."""
    return [row for question in QUESTIONS for row in question()]


def check_platform() -> Iterator[Check]:
    system, machine = platform.system(), platform.machine()
    fits = system == "Linux" and machine in ("x86_64", "aarch64")
    yield Check(
        "machine",
        "platform",
        ("ok" if machine == "x86_64" else "warn") if fits else "fail",
        f"{system} {machine}",
        "" if fits and machine == "x86_64" else "tested on Linux x86_64 only",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = cpu_flags()
    have = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "sve") if flag in flags]
    yield Check("machine", "cpu", "ok", f"{cores} cores; {' '.join(have) or 'no vector extension that we look for'}")
    memory = memory_gb()
    if memory is not None:
        total, available = memory
        enough = available >= SERVER_GB
        yield Check(
            "machine",
            "memory",
            "ok" if enough else "warn",
            f"{available:.1f} GB available of {total:.1f}",
            "" if enough else f"a server of a small model takes about {SERVER_GB} GB: stop something first",
        )
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Check(
        "machine",
        "disk",
        "ok" if free >= 2 else "warn",
        f"{free:.0f} GB free in {Path.cwd()}",
        "" if free >= 2 else "results and shape models need a few GB",
    )
    yield Check("machine", "gpu", "ok", gpu_description() or "none: serving on the CPU")


def check_packages() -> Iterator[Check]:
    low, high = PYTHONS
    fits = low <= sys.version_info[:2] <= high
    yield Check(
        "packages",
        "python",
        "ok" if fits else "fail",
        platform.python_version(),
        "" if fits else f"needs Python {low[0]}.{low[1]} to {high[0]}.{high[1]}",
    )
    on_gpu = gpu_description() is not None
    for name in dict.fromkeys((*REQUIRED, *GPU_ONLY, *OPTIONAL)):
        yield _check_package(name, required=name in REQUIRED or (on_gpu and name in GPU_ONLY))


def check_patches() -> Iterator[Check]:
    try:
        patch_set = PatchSet.load()
        status = patch_set.status(SourceTree.installed())
    except PatchError as error:
        yield Check("sglang", "patches", "fail", str(error), "make install")
        return
    if not status.version_fits:
        fix = f"pip install sglang=={status.expected_version}"
        yield Check("sglang", "patches", "fail", f"made for sglang {status.expected_version}", fix)
        return
    odd = [path for path, state in status.files.items() if state == "unexpected"]
    details = {
        "none": "none needed",
        "applied": f"{len(status.patches)} applied",
        "not applied": "not applied",
        "mixed": "applied in part",
        "unexpected": f"edited by hand: {', '.join(odd)}",
    }
    fix = f"pip install --force-reinstall --no-deps sglang=={status.expected_version}" if odd else "moe-opt patch apply"
    yield Check(
        "sglang",
        "patches",
        "ok" if status.ready else "fail",
        details[status.state],
        "" if status.ready else fix,
    )


def check_plugin() -> Iterator[Check]:
    found = [point for point in importlib.metadata.entry_points(group=PLUGIN_GROUP) if point.name == PLUGIN]
    if not found:
        yield Check("sglang", "plugin", "fail", f"no {PLUGIN_GROUP} entry point {PLUGIN!r}", "make install")
        return
    allowed = os.environ.get("SGLANG_PLUGINS")
    if allowed is not None and PLUGIN not in [name.strip() for name in allowed.split(",")]:
        fix = f"unset SGLANG_PLUGINS, or add {PLUGIN} to it"
        yield Check("sglang", "plugin", "fail", f"SGLANG_PLUGINS={allowed} leaves {PLUGIN} out", fix)
        return
    yield Check("sglang", "plugin", "ok", f"{PLUGIN} = {found[0].value}")


def check_hook_targets() -> Iterator[Check]:
    try:
        hooks, source = read_hooks(), Source.installed()
    except SourceError as error:
        yield Check("sglang", "hook targets", "fail", str(error), "make install")
        return
    targets = {hook.target: hook.reason for hook in hooks}
    missing = {target: reason for target, reason in targets.items() if find(source, target) is None}
    for target, reason in missing.items():
        fix = f"pip install 'sglang{SUPPORTED}'; `moe-opt doctor --compat` says what else differs"
        yield Check("sglang", "hook targets", "fail", f"{target} is not there: cannot {reason}", fix)
    if not missing:
        yield Check("sglang", "hook targets", "ok", f"{len(targets)} found")


def check_serving() -> Iterator[Check]:
    from sglang_moe_opt.launch import CPU_FLAGS

    if has_accelerator():
        yield Check("serving", "device", "ok", "GPU; attention and MoE backend are SGLang's own choice")
        return
    backend = CPU_FLAGS["--attention-backend"]
    yield Check("serving", "device", "ok", f"CPU; attention backend {backend}, absorbed MLA; plain torch kernels")
    if gpu_description() is not None:
        yield Check("serving", "gpu", "warn", "a GPU is there and torch cannot use it", "check the driver: nvidia-smi")
    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        detail = "SGLANG_USE_CPU_ENGINE=1 asks for a kernel library that is not on the registry"
        yield Check("serving", "environment", "fail", detail, "unset SGLANG_USE_CPU_ENGINE")
    yield Check(
        "serving", "not on this machine", "ok", "CUDA graphs, Triton fused MoE, FP8, `make gpu-check` (all need a GPU)"
    )


def check_prune_plan() -> Iterator[Check]:
    """The plan that the environment asks for; nothing where it asks for none."""
    from sglang_moe_opt.engine.settings import PRUNE_ENV

    try:
        from sglang_moe_opt.engine.pruning import get_pruning

        pruning = get_pruning()
        if pruning is None:
            return
        pruning.plan.check_weights(pruning.file)
    except ValueError as error:
        yield Check("serving", "prune plan", "fail", str(error), f"mend the plan, or unset {PRUNE_ENV}")
        return
    yield Check("serving", "prune plan", "ok", pruning.describe())


def check_model() -> Iterator[Check]:
    from sglang_moe_opt.cli.serve import REFERENCE_MODELS, reference_model

    try:
        folder = reference_model(REFERENCE_MODELS[0])
    except (ValueError, ModuleNotFoundError):
        fix = "use a clone, or set SGLANG_MOE_OPT_MODELS to its checkpoints, or `moe-opt serve --model FOLDER`"
        yield Check("serving", "mini model", "warn", "not here (wheels carry no weights)", fix)
        return
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        yield Check("serving", "mini model", "warn", f"{folder}: no *.safetensors", "fetch the clone's large files")
        return
    size = sum(file.stat().st_size for file in weights) / 1e6
    yield Check("serving", "mini model", "ok", f"{folder} ({size:.0f} MB)")


QUESTIONS: Final[tuple[Callable[[], Iterator[Check]], ...]] = (
    check_platform,
    check_packages,
    check_patches,
    check_plugin,
    check_hook_targets,
    check_serving,
    check_prune_plan,
    check_model,
)


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction set extensions of the first core; empty where the system does not say."""
    if not cpuinfo.is_file():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def memory_gb(meminfo: Path = Path("/proc/meminfo")) -> tuple[float, float] | None:
    """Total and available memory in GB."""
    if not meminfo.is_file():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    total, available = (int(fields[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    return total, available


def gpu_description(dev: Path = Path("/dev"), proc: Path = Path("/proc/driver/nvidia/gpus")) -> str | None:
    """The GPUs whose device nodes are there; does not ask the driver."""
    nvidia = [node for node in dev.glob("nvidia*") if node.name[len("nvidia") :].isdigit()]
    if nvidia:
        models = {
            line.split(":", 1)[1].strip()
            for file in proc.glob("*/information")
            for line in file.read_text().splitlines()
            if line.startswith("Model:")
        }
        return f"{len(nvidia)} x {' / '.join(sorted(models)) or 'NVIDIA GPU'}"
    return "AMD GPU" if (dev / "kfd").exists() else None


def has_accelerator() -> bool:
    """Whether `moe-opt serve` would use a GPU; torch is asked only where a device node is there."""
    if gpu_description() is None:
        return False
    from sglang_moe_opt.cli.serve import has_accelerator as torch_sees_one

    return torch_sees_one()


def _check_package(name: str, *, required: bool) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        use = OPTIONAL.get(name)
        what = "not installed" + (f": no {use}" if use else "")
        return Check("packages", name, "fail" if required else "warn", what, "make install")
    if name == "sglang" and not is_supported(version):
        return Check(
            "packages", name, "fail", f"{version}, supported is {SUPPORTED}", f"pip install 'sglang{SUPPORTED}'"
        )
    pin = PINS.get(name)
    if pin is None or version == pin:
        return Check("packages", name, "ok", version)
    return Check("packages", name, "warn", f"{version}, tested with {pin}", f"pip install {name}=={pin}")
