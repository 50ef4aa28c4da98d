"""The report against real versions of SGLang: the supported one, the one before it, and an old one.

Others than the installed one are wheels: from $SGLANG_MOE_OPT_WHEELS or the cache, else from the registry.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sglang_moe_opt.cli.main import run
from sglang_moe_opt.compat.pinned import Pinned, record
from sglang_moe_opt.compat.reliance import read_reliance
from sglang_moe_opt.compat.source import Source

pytestmark = pytest.mark.slow


def wheel(version: str) -> Path:
    """The wheel of a version; skips where it is not in the cache and the registry cannot be reached."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sglang-moe-opt" / "wheels"
    folder = Path(os.environ.get("SGLANG_MOE_OPT_WHEELS", cache))
    if not (found := sorted(folder.glob(f"sglang-{version}-*.whl"))):
        folder.mkdir(parents=True, exist_ok=True)
        # Only read, so that one Python version's wheel serves all.
        options = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.11", "--dest", str(folder)]
        options += [f"--platform={name}" for name in ("manylinux_2_34_x86_64", "manylinux2014_x86_64", "any")]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *options]
        try:
            done = subprocess.run([*command, f"sglang=={version}"], capture_output=True, text=True, timeout=240)
            reason = (done.stderr.strip().splitlines() or ["no error"])[-1]
        except subprocess.TimeoutExpired:
            reason = "it took more than 240 s"
        if not (found := sorted(folder.glob(f"sglang-{version}-*.whl"))):
            pytest.skip(f"no wheel of sglang {version} in {folder}, and it cannot be downloaded: {reason}")
    return found[0]


def report(capsys: pytest.CaptureFixture[str], place: Path | None) -> tuple[int, dict[str, Any]]:
    code = run(["doctor", "--compat", "--json", *([] if place is None else ["--sglang", str(place)])])
    return code, json.loads(capsys.readouterr().out)


def states(found: dict[str, Any]) -> dict[str, str]:
    return {f"{item['kind']} {item['name'].removeprefix('sglang.srt.')}": item["state"] for item in found["items"]}


def detail(found: dict[str, Any], name: str) -> str:
    (item,) = [item for item in found["items"] if item["name"] == name]
    return str(item["detail"])


def test_the_record_is_of_this_code_and_the_installed_sglang() -> None:
    """Fails when something new is relied on: `moe-opt doctor --compat --record`."""
    assert record(read_reliance(), Source.installed()) == Pinned.load()


def test_the_installed_one_is_all_green(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = report(capsys, None)
    assert [item for item in found["items"] if item["state"] != "unchanged"] == []
    assert (code, found["unchanged"], found["is_supported"]) == (0, True, True)
    assert len(found["items"]) > 200


def test_the_version_before(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = report(capsys, wheel("0.5.22"))
    of = states(found)
    assert (code, found["sglang"], found["is_supported"], found["unchanged"]) == (1, "0.5.22", False, False)
    # Read in both wheels' source by hand.
    assert of["hook layers.moe.topk.TopK.bind_runner_backend"] == "gone"
    assert of["attribute num_shared_topk_slots"] == "gone"
    assert of["field enable_paged_experts"] == "gone"
    assert of["hook layers.moe.topk.select_experts"] == "changed"
    assert of["hook models.deepseek_v2.MoEGate.__init__"] == "unchanged"
    assert of["import plugins.hook_registry.HookRegistry.register"] == "unchanged"
    lm_head = detail(found, "sglang.srt.layers.logits_processor.LogitsProcessor._compute_lm_head")
    assert lm_head.startswith("signature (self, hidden_states, lm_head, embedding_bias=None, *, out=None) -> (self, ")
    assert lm_head.endswith("our hook can be called as before")


def test_an_old_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = report(capsys, wheel("0.5.10"))
    of = states(found)
    assert (code, found["sglang"]) == (1, "0.5.10")
    # No plugin framework yet, other caches, and the communicator not yet split.
    assert of["import plugins.hook_registry.HookRegistry"] == "gone"
    assert of["hook mem_cache.unified_radix_cache.UnifiedRadixCache.checkpoint"] == "gone"
    assert of["import layers.layer_boundary.get_attn_tp_context"] == "moved"
    moved = detail(found, "sglang.srt.layers.layer_boundary.get_attn_tp_context")
    assert moved == "to sglang.srt.layers.communicator.get_attn_tp_context (the same)"
    assert of["import model_executor.forward_context.get_attn_backend"] == "gone"
    assert of["hook layers.moe.topk._post_process_topk_ids"] == "changed"
    assert of["flag --attention-backend"] == "unchanged"
    assert of["flag --cuda-graph-backend-decode"] == "gone"
    assert of["variable SGLANG_PLUGINS"] == "gone"
    assert Counter(of.values())["gone"] > 20


def test_the_report_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--compat"]) == 0
    out = capsys.readouterr().out
    assert "everything that we rely on is unchanged; sglang" in out
    assert "patches     none in the series" in out


def test_bad_places_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--compat", "--sglang", str(tmp_path)]) == 2
    assert run(["doctor", "--record"]) == 2
    assert run(["doctor", "--sglang", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.startswith("moe-opt: error: --") for line in errors)
