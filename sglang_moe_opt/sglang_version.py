"""Which SGLang this version works with: said once, enforced where a server starts, and by doctor and the patches."""

from __future__ import annotations

import importlib.metadata
from typing import Final

SUPPORTED: Final = "==0.5.23"
"""A PEP 440 specifier: versions for which `moe-opt doctor --compat` and all tests are green.

pyproject.toml says the same; `compat/pinned.json` and `patches/checksums.json` are recorded against it
(docs/upgrading.md).
"""


def is_supported(version: str) -> bool:
    """Whether a version of SGLang is in the range; False where it is no version at all."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion

    try:
        return SpecifierSet(SUPPORTED).contains(version, prereleases=True)
    except InvalidVersion:
        return False


def installed_version() -> str | None:
    """The version of SGLang in this environment, without importing it; None where there is none."""
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return None


def refusal() -> str | None:
    """Why this environment's SGLang cannot be used, in one line; None where it can."""
    found = installed_version()
    if found is not None and is_supported(found):
        return None
    from sglang_moe_opt import __version__

    has = "none is installed" if found is None else f"found {found}"
    return (
        f"sglang-moe-opt {__version__} works with sglang {SUPPORTED}, {has}: pip install 'sglang{SUPPORTED}' "
        "(`moe-opt doctor --compat` says what differs)"
    )
