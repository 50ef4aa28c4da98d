"""How a server is started on this machine."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_moe_opt.launch import CPU_ENV, CPU_FLAGS, TOKENIZER_FILES, plan_launch
from sglang_moe_opt.shapes import SHAPES, ShapeSpec


def value(argv: tuple[str, ...], flag: str) -> str:
    """What an argument parser takes: the last one given."""
    return argv[len(argv) - 1 - argv[::-1].index(flag) + 1]


def test_a_gpu_keeps_upstreams_own_choices() -> None:
    plan = plan_launch("org/model", on_cpu=False)
    assert plan.argv == ("--model-path", "org/model", "--enable-metrics")
    assert plan.env == {} and plan.notes == ()


def test_a_cpu_gets_what_it_needs() -> None:
    plan = plan_launch("org/model", on_cpu=True)
    for flag, expected in CPU_FLAGS.items():
        assert flag in plan.argv
        assert expected is None or value(plan.argv, flag) == expected
    assert plan.env == CPU_ENV
    assert any("no accelerator" in note for note in plan.notes)


def test_processes_of_a_cpu_server_import_what_they_need() -> None:
    """As a spawned process does: the top of the command, then SGLang's models; our architectures are among them."""
    code = (
        "import sys, sglang_moe_opt.cli.sglang_serve; from sglang.srt.models.registry import ModelRegistry; "
        "left_out = {'sglang.srt.models.llama', 'flashinfer', 'sklearn', 'cutlass', 'torch._inductor.lowering'}; "
        "found = sorted(name for name in left_out if sys.modules.get(name)); "
        "sys.exit(repr((sorted(ModelRegistry.models), found)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **CPU_ENV}, capture_output=True, text=True)
    models, found = ast.literal_eval(done.stderr.splitlines()[-1])
    assert {ShapeSpec.parse(name).config()["architectures"][0] for name in SHAPES} <= set(models)
    assert found == []


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("flag", [flag for flag, default in CPU_FLAGS.items() if default is not None])
def test_the_users_flags_win(flag: str, joined: bool) -> None:
    extra = [f"{flag}=mine"] if joined else [flag, "mine"]
    plan = plan_launch("org/model", on_cpu=True, extra=extra)
    assert plan.argv[-len(extra) :] == tuple(extra)
    assert sum(argument.split("=")[0] == flag for argument in plan.argv) == 1
    assert set(CPU_FLAGS) <= {argument.split("=")[0] for argument in plan.argv}


def test_switches_are_not_repeated() -> None:
    plan = plan_launch("org/model", on_cpu=True, extra=["--enable-metrics", "--sleep-on-idle"])
    assert plan.argv.count("--enable-metrics") == plan.argv.count("--sleep-on-idle") == 1


def test_the_policy_is_named_where_there_is_one() -> None:
    argv = plan_launch("org/model", on_cpu=False, policy="builtin", extra=["--moe-opt-config", "mine.yaml"]).argv
    assert argv.index("--moe-opt-config") < argv.index("builtin")
    assert value(argv, "--moe-opt-config") == "mine.yaml"
    assert "--moe-opt-config" not in plan_launch("org/model", on_cpu=False).argv


def test_a_checkpoint_without_a_tokenizer(tmp_path: Path) -> None:
    plan = plan_launch(str(tmp_path), on_cpu=False)
    assert "--skip-tokenizer-init" in plan.argv
    assert any("input_ids" in note for note in plan.notes)
    for extra in (["--skip-tokenizer-init"], ["--tokenizer-path", "other"], ["--tokenizer-path=other"]):
        plan = plan_launch(str(tmp_path), on_cpu=False, extra=extra)
        assert plan.argv.count("--skip-tokenizer-init") == extra.count("--skip-tokenizer-init")
        assert plan.notes == ()


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_a_checkpoint_with_a_tokenizer(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert "--skip-tokenizer-init" not in plan_launch(str(tmp_path), on_cpu=False).argv
