"""Paths that every test may need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: threads that wait by spinning take a busy machine's time from those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The shared data (SGLANG_MOE_OPT_DATA, else ../shared/data); skips where there is none."""
    folder = Path(os.environ.get("SGLANG_MOE_OPT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}")
    return folder
