"""Compile the kernels for this machine's processor once, with the system's C++ compiler, and load them."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from sglang_moe_opt.shape_checkpoint import cache_root

FLAGS = ("-O3", "-march=native", "-std=c++20", "-fopenmp", "-shared", "-fPIC")
COMPILERS = ("g++", "clang++")


class BuildError(RuntimeError):
    """The kernels cannot be built here; the message says why in one line."""


def compiler() -> str:
    """The C++ compiler: ``$CXX``, g++ or clang++.

    Raises:
        BuildError: there is none.
    """
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else COMPILERS:
        if found := shutil.which(name):
            return found
    raise BuildError(f"no C++ compiler: {wanted or ' or '.join(COMPILERS)} is not on the PATH")


def sources() -> list[Path]:
    """The kernels' C++ files, headers included."""
    folder = Path(__file__).parent
    return sorted([*folder.glob("*.cpp"), *folder.glob("*.h")])


def library_path(flags: tuple[str, ...] = FLAGS) -> Path:
    """Where the library of these sources, flags, compiler and processor lies once it is built."""
    digest = hashlib.sha256(repr((compiler(), flags, _processor())).encode())
    for source in sources():
        digest.update(source.read_bytes())
    return cache_root() / "native" / f"kernels-{digest.hexdigest()[:16]}.so"


def build(flags: tuple[str, ...] = FLAGS) -> Path:
    """Compile unless it is there already; takes about six seconds.

    Raises:
        BuildError: no compiler, or it fails.
    """
    target = library_path(flags)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        out = Path(folder) / target.name
        files = [str(source) for source in sources() if source.suffix == ".cpp"]
        done = subprocess.run([compiler(), *flags, *files, "-o", str(out)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{compiler()} failed: {(done.stderr.strip() or 'no message').splitlines()[0]}")
        out.replace(target)  # ranks may build at the same time: the last one wins, all are alike
    return target


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded kernels.

    Import torch first: they share its OpenMP threads, because libgomp is then in the process already.
    """
    return ctypes.CDLL(str(build()))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
