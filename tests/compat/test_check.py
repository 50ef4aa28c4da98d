"""Every state of every kind, on a small SGLang that is changed piece by piece."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import pytest

from sglang_moe_opt.compat import Item, Report, Source, compare
from sglang_moe_opt.compat.calls import misfit
from sglang_moe_opt.compat.pinned import Pinned, record
from sglang_moe_opt.compat.reliance import AttributeUse, HookUse, Reliance, read_hooks, read_reliance
from sglang_moe_opt.patches import PatchSet
from tests.compat import small_sglang as small

# A function of ours that takes what _post_process_topk_ids does, so that the report can say whether it fits.
HOOK = HookUse("sglang.srt.m.route", "AROUND", "topk:post_process_topk_ids", "skip")
PARAMETERS = "topk_ids, topk_weights, topk_config, router_logits, layer_id"
MODULE = f"""
ON = 1
def route({PARAMETERS}):
    return topk_ids
class Kind:
    def check(self, a): return a
    def other(self): return 1
"""
ARGUMENTS = """
import argparse
from typing import Annotated as A
class ServerArgs:
    dp_size: A[int, "help"] = 1
    lora: bool = False
    def add_cli_args(parser):
        parser.add_argument("--tokenizer-path")
        environ["SGLANG_SWITCH"]
"""
RELIANCE = Reliance(
    hooks=(HOOK,),
    imports=("sglang.srt.m.Kind", "sglang.srt.m.ON"),
    attributes=(AttributeUse("check", None), AttributeUse("nobodys", None)),
    fields=("dp_size", "lora"),
    flags=("--dp-size", "--tokenizer-path"),
    environment=("SGLANG_SWITCH",),
)
BASE = {"__init__.py": "", "srt/__init__.py": "", "srt/m.py": MODULE, "srt/server_args.py": ARGUMENTS}


def report(tmp_path: Path, *edits: tuple[str, str], moved: bool = False, patches: PatchSet | None = None) -> Report:
    """What a changed SGLang gives against the record of the unchanged one."""
    pinned = record(RELIANCE, Source(small.write(tmp_path / "old", BASE)))
    assert "nobodys" not in pinned.attributes
    files = dict(BASE)
    for old, new in edits:
        assert any(old in text for text in files.values())
        files = {name: text.replace(old, new) for name, text in files.items()}
    if moved:
        files["srt/n.py"] = files.pop("srt/m.py")
    return compare(Source(small.write(tmp_path / "new", files, "2.0")), RELIANCE, pinned, patches or PatchSet.load())


def changes(found: Report) -> dict[str, Item]:
    return {item.name: item for item in found.items if item.state != "unchanged"}


def test_nothing_changed(tmp_path: Path) -> None:
    found = report(tmp_path, ("return topk_ids", "# a remark\n    return topk_ids"), ('"help"', '"another help"'))
    assert found.unchanged
    assert (found.sglang, found.pinned, found.supported) == ("2.0", "1.0", False)
    assert {kind: sum(states.values()) for kind, states in found.counts().items()} == {
        "hook": 1,
        "import": 2,
        "attribute": 1,
        "field": 2,
        "flag": 2,
        "variable": 1,
    }


@pytest.mark.parametrize(
    ("edit", "name", "state", "detail"),
    [
        (("return topk_ids", "return 1"), HOOK.target, "changed", "body; our hook can be called as before"),
        (
            ("router_logits, layer_id", "layer_id, router_logits"),
            HOOK.target,
            "changed",
            "our hook cannot be called: our 'router_logits' would get 'layer_id'",
        ),
        (
            ("topk_ids, topk_weights", "*, topk_ids, topk_weights"),
            HOOK.target,
            "changed",
            "signature (topk_ids, topk_weights, topk_config, router_logits, layer_id) -> (*, topk_ids, ",
        ),
        (("def route", "def direct"), HOOK.target, "gone", "no route in any module"),
        (("return 1", "return 2"), "sglang.srt.m.Kind", "changed", "members changed: other"),
        (("ON = 1", "ON = 2"), "sglang.srt.m.ON", "changed", "value"),
        (("ON = 1", "OFF = 1"), "sglang.srt.m.ON", "gone", "no ON in any module"),
        (("check(self, a)", "check(self)"), "check", "changed", "signature in sglang.srt.m.Kind (self, a) -> (self)"),
        (("def check", "def checked"), "check", "gone", "not in sglang.srt.m.Kind"),
        (("lora: bool", "loras: bool"), "lora", "gone", "no such server argument"),
        (("bool = False", "bool = True"), "lora", "changed", "bool = False -> bool = True"),
        (("dp_size", "dp_width"), "--dp-size", "gone", "no such flag"),
        (("--tokenizer-path", "--tokenizer"), "--tokenizer-path", "gone", "no such flag"),
        (("SGLANG_SWITCH", "OTHER"), "SGLANG_SWITCH", "gone", "read by no module"),
    ],
)
def test_each_change_is_named(tmp_path: Path, edit: tuple[str, str], name: str, state: str, detail: str) -> None:
    item = changes(report(tmp_path, edit))[name]
    assert item.state == state
    assert detail in item.detail


def test_moved_says_where_to_and_what_else_changed(tmp_path: Path) -> None:
    found = changes(report(tmp_path, ("return topk_ids", "return 1"), moved=True))
    item = found[HOOK.target]
    assert (item.state, item.detail) == ("moved", "to sglang.srt.n.route (body)")
    assert found["sglang.srt.m.Kind"].detail == "to sglang.srt.n.Kind (the same)"


def test_a_namesake_is_not_taken_for_what_moved(tmp_path: Path) -> None:
    item = changes(report(tmp_path, (PARAMETERS, "x"), ("return topk_ids", "return 1"), moved=True))[HOOK.target]
    assert item.state == "gone"
    assert item.detail.startswith("another route in sglang.srt.n.route (signature")


def test_a_record_older_than_the_code_is_refused(tmp_path: Path) -> None:
    source = Source(small.write(tmp_path, BASE))
    old = record(Reliance((), (), (), (), (), ()), source)
    with pytest.raises(ValueError, match=r"the record does not know sglang\.srt\.m\.route yet: .*--record"):
        compare(source, RELIANCE, old, PatchSet.load())


def test_recording_refuses_what_is_not_there(tmp_path: Path) -> None:
    files = {**BASE, "srt/m.py": MODULE.replace("def route", "def direct")}
    with pytest.raises(ValueError, match=r"sglang 1\.0 has no sglang\.srt\.m\.route"):
        record(RELIANCE, Source(small.write(tmp_path, files)))


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    pinned = record(RELIANCE, Source(small.write(tmp_path / "s", BASE)))
    pinned.save(tmp_path / "pinned.json")
    assert Pinned.load(tmp_path / "pinned.json") == pinned
    with pytest.raises(ValueError, match=r"none\.json: No such file"):
        Pinned.load(tmp_path / "none.json")


PATCH = "--- a/sglang/srt/m.py\n+++ b/sglang/srt/m.py\n@@ -2,1 +2,1 @@\n-ON = 1\n+ON = 3\n"


@pytest.mark.parametrize(
    ("edit", "state", "detail"),
    [
        (("# none", "# none"), "unchanged", ""),
        (("return 1", "return 2"), "changed", "the series still applies"),
        (("ON = 1", "ON = 2"), "changed", "does not apply: sglang/srt/m.py: line 2 is not what the patch expects"),
        (("ON = 1", "ON = 3"), "unchanged", "applied"),
    ],
)
def test_patches(tmp_path: Path, edit: tuple[str, str], state: str, detail: str) -> None:
    folder = tmp_path / "patches"
    folder.mkdir()
    (folder / "0001.patch").write_text(PATCH)
    (folder / "series").write_text("0001.patch\n")
    text = MODULE + "# none\n"
    sums = {when: hashlib.sha256(text.replace("ON = 1", on).encode()).hexdigest() for when, on in SUMS}
    (folder / "checksums.json").write_text(json.dumps({"version": 1, "sglang": "1.0", "files": {FILE: sums}}))
    pinned = record(RELIANCE, Source(small.write(tmp_path / "old", BASE)))
    new = small.write(tmp_path / "new", {**BASE, "srt/m.py": text.replace(*edit)})
    found = compare(Source(new), RELIANCE, pinned, PatchSet.load(folder))
    (item,) = [item for item in found.items if item.kind == "patch"]
    assert (item.name, item.state, item.reason) == (FILE, state, "0001.patch")
    assert detail in item.detail


FILE = "sglang/srt/m.py"
SUMS = (("before", "ON = 1"), ("after", "ON = 3"))


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "fits"),
    [
        ("AROUND", "(original, a, **kw)", "(a, b=1)", False),  # b by position
        ("AROUND", "(original, a, *args, **kw)", "(a, b=1)", True),
        ("AROUND", "(original, me, a, *args, **kw)", "(self, a)", True),
        ("AROUND", "(original, me, x, *args, **kw)", "(self, a)", False),  # a by name
        ("AFTER", "(result, me, *args, **kw)", "(self, a, *, c)", True),
        ("AFTER", "(me, *args)", "(self, *, c)", False),
        ("BEFORE", "(me, *args, up_to, **kw)", "(self, *, up_to)", True),
        ("BEFORE", "(me, *args, up_to, **kw)", "(self, up_to)", False),
    ],
)
def test_whether_a_hook_can_be_called(kind: str, ours: str, theirs: str, fits: bool) -> None:
    ours_node, theirs_node = (ast.parse(f"def f{text}: ...").body[0] for text in (ours, theirs))
    assert isinstance(ours_node, ast.FunctionDef) and isinstance(theirs_node, ast.FunctionDef)
    assert (misfit(kind, ours_node, theirs_node) is None) == fits


# --- what we rely on, of our own code ---


def test_every_registered_hook_is_found_in_the_source() -> None:
    from sglang_moe_opt.engine.calibration.hooks import HOOKS as CALIBRATION
    from sglang_moe_opt.engine.cpu.hooks import HOOKS as CPU
    from sglang_moe_opt.engine.hooks import HOOKS

    written = {(hook.target, hook.kind, hook.function) for hook in (*HOOKS, *CALIBRATION, *CPU)}
    assert {(hook.target, hook.kind, hook.function) for hook in read_hooks()} == written


def test_no_hook_is_registered_past_the_tables(project_root: Path) -> None:
    calls = [
        file.name
        for file in (project_root / "sglang_moe_opt").rglob("*.py")
        if "HookRegistry.register(" in file.read_text()
    ]
    assert calls == ["hooks.py"]


def test_our_own_code_is_read(project_root: Path) -> None:
    found = read_reliance(project_root)
    from sglang_moe_opt.engine.cpu.decoder import _ONE_OR_OFF
    from sglang_moe_opt.engine.flags import _REFUSED
    from sglang_moe_opt.engine.pruning.check import REFUSED
    from sglang_moe_opt.launch import CPU_FLAGS

    assert {*_ONE_OR_OFF, *(row[0] for row in (*_REFUSED, *REFUSED))} <= set(found.fields)
    assert set(CPU_FLAGS) - {"--device"} <= set(found.flags)
    assert not any("moe-opt" in flag for flag in found.flags)
    assert "sglang.srt.layers.rotary_embedding.base._is_cpu" in found.imports
    uses = {(use.name, (use.owner or "").rpartition(".")[2]) for use in found.attributes}
    assert {("extra_key", "Req"), ("residual_stream", ""), ("q_lora_rank", "DeepseekMLAForwardMixin")} <= uses
    assert "SGLANG_PLUGINS" in found.environment
