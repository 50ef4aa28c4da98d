"""Would the patch series apply to an SGLang? Tried on its files' bytes, nothing is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from sglang_moe_opt.compat.item import Item
from sglang_moe_opt.compat.source import Source
from sglang_moe_opt.patches import PatchSet
from sglang_moe_opt.unified_diff import PatchError, parse_diff


def patch_items(source: Source, patches: PatchSet) -> Iterator[Item]:
    """One item for each file that the series changes; none where it is empty."""
    diffs = {name: parse_diff((patches.folder / name).read_bytes(), name) for name in patches.names}
    for path, sums in patches.manifest.files.items():
        content = source.read(path)
        names = ", ".join(name for name, own in diffs.items() if any(diff.path == path for diff in own))
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


def _attempt(patches: PatchSet, path: str, content: bytes) -> str:
    try:
        for diff in patches.diffs:
            if diff.path == path:
                content = diff.apply(content)
    except PatchError as error:
        return f"the file is another one and the series does not apply: {error}"
    return "the file is another one; the series still applies (moe-opt patch record)"
