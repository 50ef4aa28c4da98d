"""The patches: exact, verified, all or nothing, and reversible to the byte."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

import sglang_moe_opt.patches as patches_module
from sglang_moe_opt.cli.main import run
from sglang_moe_opt.compat.pinned import Pinned
from sglang_moe_opt.patches import PatchSet, SourceTree
from sglang_moe_opt.sglang_version import is_supported
from sglang_moe_opt.unified_diff import PatchError
from tests.diffs import diff_of

VERSION = "0.5.23"
ROTARY = "sglang/srt/layers/rotary_embedding/base.py"
SMALL = "sglang/small.py"
SMALL_BEFORE = b"first\r\nsecond\nlast without an end"
SMALL_AFTER = b"first\r\nSECOND\ninserted\nlast without an end, changed"


def make_tree(root: Path, version: str = VERSION) -> SourceTree:
    """A site-packages folder with the installed SGLang's rotary embedding and a small file."""
    (root / f"sglang-{version}.dist-info").mkdir(parents=True)
    (root / f"sglang-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n"
    )
    (root / ROTARY).parent.mkdir(parents=True)
    shutil.copy(SourceTree.installed().root / ROTARY, root / ROTARY)
    (root / SMALL).write_bytes(SMALL_BEFORE)
    return SourceTree.at(root)


def make_series(folder: Path, tree: SourceTree) -> PatchSet:
    """Two patches, both changing the rotary embedding, recorded against the tree."""
    folder.mkdir()
    original = (tree.root / ROTARY).read_bytes()
    once = original.replace(b"and not (_is_cpu)", b"and not (_is_cpu or not torch.cuda.is_available())")
    twice = once + b"\nPATCHED = True\n"
    assert original != once
    (folder / "0001-rotary.patch").write_text("What it is for.\n\n" + diff_of(ROTARY, original, once))
    (folder / "0002-both.patch").write_text(diff_of(ROTARY, once, twice) + diff_of(SMALL, SMALL_BEFORE, SMALL_AFTER))
    (folder / "series").write_text("# comment\n0001-rotary.patch\n0002-both.patch  # another\n")
    (folder / "checksums.json").write_text(json.dumps({"version": 1, "sglang": VERSION, "files": {}}))
    PatchSet.load_unrecorded(folder).record(tree)
    return PatchSet.load(folder)


@pytest.fixture
def tree(tmp_path: Path) -> SourceTree:
    return make_tree(tmp_path / "site-packages")


@pytest.fixture
def series(tmp_path: Path, tree: SourceTree) -> PatchSet:
    return make_series(tmp_path / "patches", tree)


def digests(tree: SourceTree) -> dict[str, str]:
    return {
        str(file.relative_to(tree.root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(tree.root.rglob("*"))
        if file.is_file()
    }


def test_apply_and_revert_restore_every_byte(tree: SourceTree, series: PatchSet) -> None:
    before = digests(tree)
    assert series.status(tree).state == "not applied"
    assert sorted(series.apply(tree)) == [SMALL, ROTARY]
    assert series.status(tree).state == "applied"
    assert (tree.root / SMALL).read_bytes() == SMALL_AFTER
    assert b"PATCHED = True" in (tree.root / ROTARY).read_bytes()
    assert sorted(series.revert(tree)) == [SMALL, ROTARY]
    assert digests(tree) == before


def test_apply_and_revert_are_idempotent(tree: SourceTree, series: PatchSet) -> None:
    assert series.revert(tree) == []
    series.apply(tree)
    applied = digests(tree)
    assert series.apply(tree) == []
    assert digests(tree) == applied


def test_a_half_patched_tree_is_completed_and_reverted(tree: SourceTree, series: PatchSet) -> None:
    original = digests(tree)
    series.apply(tree)
    (tree.root / SMALL).write_bytes(SMALL_BEFORE)
    assert series.status(tree).state == "mixed"
    assert series.apply(tree) == [SMALL]
    (tree.root / SMALL).write_bytes(SMALL_BEFORE)
    assert series.revert(tree) == [ROTARY]
    assert digests(tree) == original


@pytest.mark.parametrize("action", ["apply", "revert"])
def test_an_edited_file_is_refused_and_nothing_changes(tree: SourceTree, series: PatchSet, action: str) -> None:
    if action == "revert":
        series.apply(tree)
    (tree.root / SMALL).write_bytes(b"edited by hand\n")
    before = digests(tree)
    with pytest.raises(PatchError) as caught:
        getattr(series, action)(tree)
    message = str(caught.value)
    assert str(tree.root / SMALL) in message
    assert "expected sha256" in message
    assert hashlib.sha256(b"edited by hand\n").hexdigest() in message
    assert "\n" not in message
    assert digests(tree) == before
    assert series.status(tree).state == "unexpected"


def test_a_missing_file_is_refused(tree: SourceTree, series: PatchSet) -> None:
    (tree.root / SMALL).unlink()
    with pytest.raises(PatchError, match=r"small\.py: expected sha256 .* found no such file"):
        series.apply(tree)


def test_another_version_is_refused(tmp_path: Path, tree: SourceTree, series: PatchSet) -> None:
    other = make_tree(tmp_path / "other", version="0.5.24")
    before = digests(other)
    with pytest.raises(PatchError, match=r"for sglang 0\.5\.23; found 0\.5\.24"):
        series.apply(other)
    assert digests(other) == before
    assert not series.status(other).ready


def test_a_failed_write_leaves_the_tree_as_it_was(
    tree: SourceTree, series: PatchSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(tree)
    real = os.replace
    calls = []

    def failing(source: str, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(patches_module.os, "replace", failing)
    with pytest.raises(PatchError, match=r"No space left on device \(nothing was changed\)"):
        series.apply(tree)
    assert len(calls) == 3  # the first file, the failing second, the first one put back
    assert digests(tree) == before


def test_hard_linked_copies_and_file_modes_are_left_alone(tmp_path: Path, tree: SourceTree, series: PatchSet) -> None:
    """uv links installed files from its cache: writing in place would patch every other environment."""
    cached = tmp_path / "cached.py"
    os.link(tree.root / SMALL, cached)
    (tree.root / SMALL).chmod(0o640)
    series.apply(tree)
    assert cached.read_bytes() == SMALL_BEFORE
    assert stat.S_IMODE((tree.root / SMALL).stat().st_mode) == 0o640


def test_a_series_out_of_step_with_its_checksums_is_refused(tree: SourceTree, series: PatchSet) -> None:
    (series.folder / "series").write_text("0001-rotary.patch\n")
    with pytest.raises(PatchError, match=r"out of step with the series for sglang/small\.py"):
        PatchSet.load(series.folder)
    (series.folder / "series").write_text("0003-missing.patch\n")
    with pytest.raises(PatchError, match=r"0003-missing\.patch: No such file"):
        PatchSet.load(series.folder)
    (series.folder / "series").write_text("")
    (series.folder / "checksums.json").write_text('{"version": 2, "sglang": "0.5.23", "files": {}}')
    with pytest.raises(PatchError, match=r"checksums\.json: version: Input should be 1"):
        PatchSet.load(series.folder)


def test_a_changed_patch_is_noticed(tree: SourceTree, series: PatchSet) -> None:
    patch = series.folder / "0002-both.patch"
    patch.write_bytes(patch.read_bytes().replace(b"+PATCHED = True", b"+PATCHED = None"))
    before = digests(tree)
    with pytest.raises(PatchError, match=r"the series gives sha256 .*, checksums\.json expects"):
        PatchSet.load(series.folder).apply(tree)
    assert digests(tree) == before


def test_the_packaged_series_is_what_the_installed_sglang_has() -> None:
    patch_set = PatchSet.load()
    assert is_supported(patch_set.manifest.sglang)
    assert patch_set.manifest.sglang == Pinned.load().sglang
    assert patch_set.status(SourceTree.installed()).ready


def test_the_readme_has_a_row_for_every_patch(project_root: Path) -> None:
    readme = (project_root / "patches" / "README.md").read_text()
    on_disk = {path.name for path in (project_root / "patches").glob("*.patch")}
    assert on_disk == set(PatchSet.load().names)
    assert all(name in readme for name in on_disk)


def test_the_command_applies_reports_and_reverts(
    tree: SourceTree, series: PatchSet, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--tree", str(tree.root), "--patches", str(series.folder), "--json"]

    def call(action: str) -> tuple[int, dict[str, object]]:
        code = run(["patch", action, *where])
        return code, json.loads(capsys.readouterr().out)

    assert call("status")[0] == 1
    assert call("apply") == (
        0,
        {"action": "apply", "changed": [SMALL, ROTARY], "state": "applied", "sglang": VERSION},
    )
    code, report = call("status")
    assert (code, report["state"], report["ready"]) == (0, "applied", True)
    assert report["files"] == {ROTARY: "patched", SMALL: "patched"}
    assert call("revert")[1]["state"] == "not applied"


def test_the_command_fails_in_one_line(
    tmp_path: Path, tree: SourceTree, series: PatchSet, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree.root / SMALL).write_bytes(b"edited")
    assert run(["patch", "apply", "--tree", str(tree.root), "--patches", str(series.folder)]) == 1
    assert run(["patch", "status", "--tree", str(tmp_path / "nowhere")]) == 1
    assert run(["patch", "unapply"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert all(line.startswith("moe-opt: error: ") for line in errors)
