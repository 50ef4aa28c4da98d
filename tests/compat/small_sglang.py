"""A small package by the name of sglang, in a folder or a wheel."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

FILES = {
    "__init__.py": "",
    "srt/__init__.py": "",
    "srt/a.py": (
        "import nonsense_that_is_not_installed\n"
        "from outside.thing import Foreign\n"
        "from sglang.srt.base import Base as Parent\n"
        "class A(Parent):\n"
        "    x: int = 1\n"
        "    def __init__(self, n):\n        self.set_in_init = n\n"
        "    def method(self, a, b=1): return a\n"
        "    class B:\n        def inner(self): ...\n"
        "if nonsense_that_is_not_installed:\n    def under_if(): ...\n"
        "try:\n    import z\nexcept ImportError:\n    z = None\n"
        "def plain(a, *, c): return a + c\n"
        "renamed = plain\n"
        "z.attribute = A\n"  # binds no name
    ),
    "srt/base.py": "class Base:\n    def inherited(self): return 1\n",
    "srt/sub/__init__.py": "from .common import *\nfrom ..a import A as Again\n",
    "srt/sub/common.py": "def starred(): ...\n",
}


def write(root: Path, files: Mapping[str, str] = FILES, version: str = "1.0") -> Path:
    """A site-packages folder."""
    for name, text in files.items():
        file = root / "sglang" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    info = root / f"sglang-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
    return root


def pack(root: Path, wheel: Path) -> Path:
    """The same as a wheel."""
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root))
    return wheel
