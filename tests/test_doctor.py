"""`moe-opt doctor` and the command's own manners: versions, exit codes, speed of `--help`."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

import sglang_moe_opt.doctor as doctor
from sglang_moe_opt import __version__
from sglang_moe_opt.cli.main import run
from sglang_moe_opt.compat.reliance import HookUse
from sglang_moe_opt.doctor import Check, State, cpu_flags, diagnose, gpu_description, memory_gb
from sglang_moe_opt.plan import PrunePlan
from sglang_moe_opt.sglang_version import SUPPORTED


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid")
    topic: str
    name: str
    state: State
    detail: str
    fix: str


class Report(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: str
    summary: dict[State, int]
    checks: list[Row]


def by_name(rows: Any) -> dict[str, Check]:
    return {row.name: row for row in rows}


def test_json_report_has_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor", "--json"])
    report = Report.model_validate_json(capsys.readouterr().out)
    assert report.version == __version__
    assert sum(report.summary.values()) == len(report.checks)
    assert code == (1 if report.summary["fail"] else 0)
    names = {row.name for row in report.checks}
    assert {"platform", "gpu", "python", "sglang", "patches", "plugin", "hook targets", "device", "mini model"} <= names
    assert all(row.fix for row in report.checks if row.state == "fail")


def test_this_environment_can_serve() -> None:
    assert [row for row in diagnose() if row.state == "fail"] == []


def test_a_failed_check_exits_with_1_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        doctor, "QUESTIONS", (lambda: iter([Check("sglang", "patches", "fail", "not applied", "do it")]),)
    )
    assert run(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "not applied" in out
    assert "-> do it" in out
    assert "0 ok, 0 warn, 1 fail" in out
    assert run(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["summary"] == {"ok": 0, "warn": 0, "fail": 1}


@pytest.mark.parametrize(
    ("name", "version", "state"),
    [
        ("sglang", "0.5.24", "fail"),
        ("sglang", None, "fail"),
        ("lm-eval", "0.4.12", "warn"),
        ("locust", None, "warn"),
        ("triton", None, "warn"),
        ("torch", None, "fail"),
    ],
)
def test_versions_against_pins(name: str, version: str | None, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def fake(asked: str) -> str:
        if asked != name:
            return real(asked)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(asked)
        return version

    monkeypatch.setattr(importlib.metadata, "version", fake)
    monkeypatch.setattr(doctor, "gpu_description", lambda: None)
    row = by_name(doctor.check_packages())[name]
    assert row.state == state
    assert row.fix


def test_pins_are_those_of_the_project(project_root: Path) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]
    groups = project["optional-dependencies"]
    extras = [entry for name, entries in groups.items() if name != "bench" for entry in entries]  # built on demand
    requirements = [entry.replace("[api]", "") for entry in project["dependencies"] + extras]
    pinned = {f"{name}=={version}" for name, version in doctor.PINS.items()} | {f"sglang{SUPPORTED}"}
    assert pinned == {r for r in requirements if "==" in r}
    locked = (project_root / "requirements.lock").read_text().splitlines()
    assert pinned <= set(locked)
    assert project["version"] == __version__


def test_plugin_left_out_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("moe_opt", "sglang_moe_opt.engine.plugin:register", doctor.PLUGIN_GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    monkeypatch.setenv("SGLANG_PLUGINS", "another, moe_opt")
    assert by_name(doctor.check_plugin())["plugin"].state == "ok"
    monkeypatch.setenv("SGLANG_PLUGINS", "another")
    row = by_name(doctor.check_plugin())["plugin"]
    assert (row.state, row.fix) == ("fail", "unset SGLANG_PLUGINS, or add moe_opt to it")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    assert by_name(doctor.check_plugin())["plugin"].state == "fail"


def test_missing_hook_target_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = HookUse("sglang.srt.nowhere.f", "AROUND", "topk:f", "skip experts")
    monkeypatch.setattr(doctor, "read_hooks", lambda: (hook,))
    row = by_name(doctor.check_hook_targets())["hook targets"]
    assert row.state == "fail"
    assert "sglang.srt.nowhere.f is not there: cannot skip experts" in row.detail


def test_cpu_engine_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_description", lambda: None)
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    rows = by_name(doctor.check_serving())
    assert rows["environment"].state == "fail"
    assert "torch_native" in rows["device"].detail


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_description", lambda: "1 x NVIDIA GPU")
    monkeypatch.setattr("sglang_moe_opt.cli.serve.has_accelerator", lambda: False)
    assert by_name(doctor.check_serving())["gpu"].state == "warn"
    monkeypatch.setattr("sglang_moe_opt.cli.serve.has_accelerator", lambda: True)
    assert "SGLang's own choice" in by_name(doctor.check_serving())["device"].detail


def test_machine_facts_from_system_files(tmp_path: Path) -> None:
    cpuinfo, meminfo = tmp_path / "cpuinfo", tmp_path / "meminfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: avx2 amx_tile\n")
    meminfo.write_text("MemTotal:       25165824 kB\nMemFree: 1 kB\nMemAvailable:   12582912 kB\n")
    assert cpu_flags(cpuinfo) == {"avx2", "amx_tile"}
    assert memory_gb(meminfo) == (24.0, 12.0)
    assert cpu_flags(tmp_path / "none") == frozenset()
    assert memory_gb(tmp_path / "none") is None
    assert gpu_description(tmp_path, tmp_path) is None
    for node in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / node).touch()
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t NVIDIA H200\nIRQ: 1\n")
    assert gpu_description(tmp_path, tmp_path) == "2 x NVIDIA H200"


def test_version_and_help_need_neither_torch_nor_sglang() -> None:
    code = (
        "import sys; from sglang_moe_opt.cli.main import run; "
        "codes = [run(['--help']), run(['--version']), run(['patch', 'status', '--help'])]; "
        "sys.exit(repr((codes, {'torch', 'sglang', 'transformers'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "([0, 0, 0], set())"
    assert f"moe-opt {__version__}" in done.stdout
    assert all(command in done.stdout for command in ("serve", "doctor", "patch", "schedule", "shape-model"))


def test_bad_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["no-such-command"]) == 2
    assert capsys.readouterr().err.startswith("moe-opt: error: No such command 'no-such-command'")
    assert run(["patch"]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_the_plan_of_the_environment_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(doctor.check_prune_plan()) == []
    file = tmp_path / "plan.json"
    PrunePlan(model="0" * 32, name="mini", num_experts=8, layers={1: (0, 3), 2: (1, 2, 5)}).save(file)
    monkeypatch.setenv("SGLANG_MOE_OPT_PRUNE_PLAN", str(file))
    (row,) = doctor.check_prune_plan()
    assert (row.state, row.detail) == ("ok", "plan.json (mini): 5 of 16 experts in 2 layers")
    monkeypatch.setenv("SGLANG_MOE_OPT_PRUNE_PLAN", str(tmp_path / "absent.json"))
    (row,) = doctor.check_prune_plan()
    assert row.state == "fail" and str(tmp_path / "absent.json") in row.detail
