"""Apply, revert and check the patches that SGLang needs where no plugin hook can do the job."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sglang_moe_opt.unified_diff import FileDiff, PatchError, parse_diff

_HERE: Final = Path(__file__).parent
# In a wheel the series is a part of the package (setup.py); in a checkout it is the top-level folder.
PACKAGED: Final = _HERE / "patch_files" if (_HERE / "patch_files").is_dir() else _HERE.parent / "patches"
CHECKSUMS: Final = "checksums.json"

FileState = Literal["original", "patched", "unexpected"]
TreeState = Literal["none", "applied", "not applied", "mixed", "unexpected"]


class Checksums(BaseModel):
    """SHA-256 of one file before and after the whole series."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    before: str
    after: str


class Manifest(BaseModel):
    """`checksums.json`: the SGLang version that the series is made for and the files that it changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1]
    sglang: str
    files: dict[str, Checksums]


@dataclass(frozen=True)
class SourceTree:
    """A site-packages folder with SGLang in it."""

    root: Path
    version: str

    @classmethod
    def installed(cls) -> SourceTree:
        """The SGLang of this interpreter, found without importing it.

        Raises:
            PatchError: it is not installed.
        """
        spec = importlib.util.find_spec("sglang")
        if spec is None or not spec.submodule_search_locations:
            raise PatchError("sglang is not installed in this environment (run `make install`)")
        return cls(Path(spec.submodule_search_locations[0]).parent, importlib.metadata.version("sglang"))

    @classmethod
    def at(cls, root: Path) -> SourceTree:
        """The SGLang in another site-packages folder.

        Raises:
            PatchError: there is none.
        """
        found = next(iter(importlib.metadata.distributions(name="sglang", path=[str(root)])), None)
        if found is None:
            raise PatchError(f"{root}: no sglang-*.dist-info there; expected a site-packages folder with sglang")
        return cls(root, found.version)

    def read(self, path: str) -> bytes | None:
        file = self.root / path
        return file.read_bytes() if file.is_file() else None


@dataclass(frozen=True)
class Status:
    """What of the series is in a tree."""

    tree: SourceTree
    expected_version: str
    patches: tuple[str, ...]
    files: Mapping[str, FileState]

    @property
    def version_fits(self) -> bool:
        return self.tree.version == self.expected_version

    @property
    def state(self) -> TreeState:
        states = set(self.files.values())
        if "unexpected" in states:
            return "unexpected"
        if not states:
            return "none"
        if len(states) > 1:
            return "mixed"
        return "applied" if states == {"patched"} else "not applied"

    @property
    def ready(self) -> bool:
        """The tree is as the package needs it."""
        return self.version_fits and self.state in ("applied", "none")


@dataclass(frozen=True)
class PatchSet:
    """A `series` of unified diffs with the checksums of the files they change."""

    folder: Path
    names: tuple[str, ...]
    diffs: tuple[FileDiff, ...]
    manifest: Manifest

    @classmethod
    def load(cls, folder: Path = PACKAGED) -> PatchSet:
        """Read `series`, the patches it names and `checksums.json`.

        Raises:
            PatchError: one of them is missing or malformed, or the checksums are not those of the series' files.
        """
        patch_set = cls.load_unrecorded(folder)
        changed = {diff.path for diff in patch_set.diffs}
        recorded = set(patch_set.manifest.files)
        if changed != recorded:
            odd = ", ".join(sorted(changed ^ recorded))
            raise PatchError(
                f"{folder / CHECKSUMS}: out of step with the series for {odd} (run `moe-opt patch record`)"
            )
        return patch_set

    @classmethod
    def load_unrecorded(cls, folder: Path = PACKAGED) -> PatchSet:
        """Like :meth:`load`, for a series whose checksums are still to be recorded."""
        try:
            names = tuple(_series_names((folder / "series").read_text(encoding="utf-8")))
            diffs = tuple(diff for name in names for diff in parse_diff((folder / name).read_bytes(), name))
            manifest = Manifest.model_validate_json((folder / CHECKSUMS).read_bytes())
        except OSError as error:
            raise PatchError(f"{error.filename}: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise PatchError(f"{folder / CHECKSUMS}: {field}: {first['msg']}") from error
        return cls(folder, names, diffs, manifest)

    def status(self, tree: SourceTree) -> Status:
        states = {path: self._file_state(path, tree.read(path)) for path in self.manifest.files}
        return Status(tree, self.manifest.sglang, self.names, states)

    def apply(self, tree: SourceTree) -> list[str]:
        """Patch every file that is still original, all or none; returns the files changed.

        Raises:
            PatchError: another SGLang version, or a file that is neither original nor patched.
        """
        return self._move(tree, "original", self.diffs, lambda sums: sums.after)

    def revert(self, tree: SourceTree) -> list[str]:
        """Restore the original bytes of every patched file, all or none; returns the files changed.

        Raises:
            PatchError: as for :meth:`apply`.
        """
        backwards = tuple(diff.reversed() for diff in reversed(self.diffs))
        return self._move(tree, "patched", backwards, lambda sums: sums.before)

    def record(self, tree: SourceTree) -> Manifest:
        """Write the checksums of the series on an unpatched tree, and return them.

        Raises:
            PatchError: a patch does not apply to the tree's files.
        """
        files = {}
        for path in sorted({diff.path for diff in self.diffs}):
            before = tree.read(path)
            if before is None:
                raise PatchError(f"{tree.root / path}: no such file")
            files[path] = Checksums(before=_sha256(before), after=_sha256(_apply_all(self.diffs, path, before)))
        manifest = Manifest(version=1, sglang=tree.version, files=files)
        _replace(self.folder / CHECKSUMS, manifest.model_dump_json(indent=2).encode() + b"\n")
        return manifest

    def _move(
        self,
        tree: SourceTree,
        source: FileState,
        diffs: tuple[FileDiff, ...],
        expected: Callable[[Checksums], str],
    ) -> list[str]:
        if tree.version != self.manifest.sglang:
            raise PatchError(
                f"the patches are for sglang {self.manifest.sglang}; found {tree.version} in {tree.root} (unchanged)"
            )
        contents: dict[str, tuple[bytes, bytes]] = {}
        for path, sums in self.manifest.files.items():
            content = tree.read(path)
            state = self._file_state(path, content)
            if content is None or state == "unexpected":
                found = "no such file" if content is None else f"sha256 {_sha256(content)}"
                raise PatchError(
                    f"{tree.root / path}: expected sha256 {sums.before} (original) or {sums.after} (patched); "
                    f"found {found} (nothing was changed; reinstall sglang=={self.manifest.sglang})"
                )
            if state == source:
                result = _apply_all(diffs, path, content)
                if _sha256(result) != expected(sums):
                    raise PatchError(
                        f"{tree.root / path}: the series gives sha256 {_sha256(result)}, {CHECKSUMS} expects "
                        f"{expected(sums)} (nothing was changed)"
                    )
                contents[path] = (content, result)
        _replace_all(tree.root, contents)
        return list(contents)

    def _file_state(self, path: str, content: bytes | None) -> FileState:
        if content is None:
            return "unexpected"
        sums = self.manifest.files[path]
        states: dict[str, FileState] = {sums.after: "patched", sums.before: "original"}
        return states.get(_sha256(content), "unexpected")


def _series_names(series: str) -> Iterator[str]:
    for line in series.splitlines():
        name = line.split("#")[0].strip()
        if name:
            yield name


def _apply_all(diffs: tuple[FileDiff, ...], path: str, content: bytes) -> bytes:
    for diff in diffs:
        if diff.path == path:
            content = diff.apply(content)
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _replace_all(root: Path, contents: Mapping[str, tuple[bytes, bytes]]) -> None:
    """Write every new content; where one cannot be written, put the old ones back."""
    written: list[str] = []
    try:
        for path, (_, after) in contents.items():
            _replace(root / path, after)
            written.append(path)
    except BaseException as error:
        for path in written:
            _replace(root / path, contents[path][0])
        if isinstance(error, OSError):
            raise PatchError(f"{error.filename}: {error.strerror} (nothing was changed)") from error
        raise


def _replace(path: Path, content: bytes) -> None:
    """Put a new file in the old one's place in one step.

    Never in place: uv and pip hard-link installed files from their cache, and other environments share them.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, path.stat().st_mode & 0o7777)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
