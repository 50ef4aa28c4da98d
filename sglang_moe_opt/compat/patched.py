"""Would the patch series apply to an SGLang? Tried on its files' bytes, nothing is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from sglang_moe_opt.compat.item import Item
from sglang_moe_opt.compat.source import Source
from sglang_moe_opt.patches import PatchSet
from sglang_moe_opt.unified_diff import FileDiff, PatchError, parse_diff


def patch_items(source: Source, patches: PatchSet) -> Iterator[Item]:
    """One item for each file that the series changes; none where it is empty."""
    for path, sums in patches.manifest.files.items():
        content = source.read(path)
        names = ", ".join(dict.fromkeys(name for name in patches.names if _changes(patches, name, path)))
        if content is None:
            same = [p for p in source.paths if PurePosixPath(p).name == PurePosixPath(path).name]
            told = f"perhaps to {', '.join(same[:3])}" if same else "no such file"
            yield Item("patch", path, "moved" if same else "gone", told, names)
            continue
        digest = hashlib.sha256(content).hexdigest()
        if digest in (sums.before, sums.after):
            applied = "applied" if digest == sums.after else ""
            yield Item("patch", path, "unchanged", applied, names)
        else:
            yield Item("patch", path, "changed", _attempt(patches, path, content), names)


def _changes(patches: PatchSet, name: str, path: str) -> bool:
    return any(diff.path == path for diff in parse_diff((patches.folder / name).read_bytes(), name))


def _attempt(patches: PatchSet, path: str, content: bytes) -> str:
    diffs: list[FileDiff] = [diff for diff in patches.diffs if diff.path == path]
    try:
        for diff in diffs:
            content = diff.apply(content)
    except PatchError as error:
        return f"the file is another one and the series does not apply: {error}"
    return "the file is another one; the series still applies (moe-opt patch record)"
