"""SGLang's source as text and syntax trees: from a folder or a wheel, and never imported."""

from __future__ import annotations

import ast
import importlib.util
import re
import zipfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Final

PACKAGE: Final = "sglang"
_VERSION_LINE: Final = re.compile(r"^Version:\s*(\S+)", re.MULTILINE)
_NAMED: Final = re.compile(r"^sglang-(?P<version>[^-]+)-.*\.whl$")
_DEFINED: Final = re.compile(rb"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)", re.MULTILINE)


class SourceError(ValueError):
    """There is no SGLang in the place that was named."""


class Source:
    """One SGLang.

    Args:
        place: folder that holds the package (site-packages, an unpacked wheel), the package's own folder, or a wheel.

    Raises:
        SourceError: there is no SGLang.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._trees: dict[str, ast.Module | None] = {}
        self._archive: zipfile.ZipFile | None = None
        if place.is_file():
            try:
                self._archive = zipfile.ZipFile(place)
            except (OSError, zipfile.BadZipFile):
                raise SourceError(f"--sglang: got {str(place)!r}, allowed: a wheel or a folder with sglang") from None
        elif place.name == PACKAGE and (place / "__init__.py").is_file():
            self.place = place.parent
        if self.read(f"{PACKAGE}/__init__.py") is None:
            raise SourceError(f"--sglang: got {str(place)!r}, allowed: a wheel or a folder with sglang")

    @classmethod
    def installed(cls) -> Source:
        """The SGLang of this interpreter. Raises SourceError where there is none."""
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise SourceError("sglang is not installed in this environment; name one with --sglang")
        return cls(Path(spec.submodule_search_locations[0]).parent)

    @cached_property
    def version(self) -> str:
        """As its metadata says; "unknown" for a folder without any."""
        if self._archive is None:
            files = sorted(self.place.glob(f"{PACKAGE}-*.dist-info/METADATA"))
            texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
        else:
            names = [name for name in self._archive.namelist() if re.fullmatch(r"sglang-[^/]+/METADATA", name)]
            texts = [self._archive.read(name).decode(errors="replace") for name in names]
        found = [match[1] for text in texts if (match := _VERSION_LINE.search(text))]
        if not found and (match := _NAMED.match(self.place.name)):
            found = [match["version"]]
        return found[0] if found else "unknown"

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Every Python file, such as ``sglang/srt/server_args.py``, in order."""
        if self._archive is not None:
            names = (n for n in self._archive.namelist() if n.startswith(f"{PACKAGE}/"))
        else:
            names = (p.relative_to(self.place).as_posix() for p in (self.place / PACKAGE).rglob("*.py"))
        return tuple(sorted(name for name in names if name.endswith(".py")))

    def read(self, path: str) -> bytes | None:
        """The bytes of a file; None where there is none."""
        if self._archive is not None:
            try:
                return self._archive.read(path)
            except KeyError:
                return None
        file = self.place / path
        return file.read_bytes() if file.is_file() else None

    def path_of(self, module: str) -> str | None:
        """The file of a dotted module of SGLang's; packages beside it are not looked at."""
        if module.split(".")[0] != PACKAGE:
            return None
        base = module.replace(".", "/")
        for path in (f"{base}.py", f"{base}/__init__.py"):
            if self._has(path):
                return path
        return None

    def tree(self, module: str) -> ast.Module | None:
        """The syntax tree of a dotted module; None where there is none, or it is no Python of this version."""
        if module not in self._trees:
            path = self.path_of(module)
            content = None if path is None else self.read(path)
            try:
                self._trees[module] = None if content is None else ast.parse(content)
            except (SyntaxError, ValueError):
                self._trees[module] = None
        return self._trees[module]

    def modules_defining(self, name: str) -> list[str]:
        """Dotted names of the modules with a function or class of that name, also inside another one."""
        return self._definitions.get(name, [])

    @cached_property
    def _definitions(self) -> dict[str, list[str]]:
        """All names in one pass over the texts: parsing thousands of files would take a minute."""
        found: dict[str, list[str]] = {}
        for path in self.paths:
            module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for name in {match.decode() for match in _DEFINED.findall(self.read(path) or b"")}:
                found.setdefault(name, []).append(module)
        return found

    def mentions(self, texts: Iterable[str]) -> set[str]:
        """Those of the texts that some module holds."""
        waiting = {text: text.encode() for text in texts}
        found: set[str] = set()
        for path in self.paths:
            content = (self.read(path) if waiting else None) or b""
            found |= {text for text, wanted in waiting.items() if wanted in content}
            waiting = {text: wanted for text, wanted in waiting.items() if text not in found}
        return found

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset() if self._archive is None else frozenset(self._archive.namelist())

    def _has(self, path: str) -> bool:
        return path in self._names if self._archive is not None else (self.place / path).is_file()
