"""The server's flags: what reaches the processes, and what is refused with one line before anything is loaded."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest

from sglang_moe_opt.engine import flags, unsupported
from sglang_moe_opt.engine.settings import CONFIG_ENV, DEFAULT_ENV, LOG_ENV, PRUNE_ENV, Settings

server_args = pytest.importorskip("sglang.srt.server_args")


def parse(*argv: str) -> Any:
    """SGLang's own parser on these arguments."""
    return server_args.prepare_server_args(["--model-path", "dummy", *argv])


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_ENV, "builtin")


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The line that a server with these flags ends with."""
    parsed = parse(*argv)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        flags.prepare_server_args(parsed, list(argv))
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


# --- parsing ---


def test_our_flags_stand_beside_sglangs() -> None:
    parser = argparse.ArgumentParser()
    server_args.ServerArgs.add_cli_args(parser)
    flags.add_cli_args(None, parser)
    parsed = parser.parse_args(["--model-path", "m", "--moe-opt-config", "builtin", "--moe-skip-default", "fast"])
    flags.from_cli_args(server_args.ServerArgs, parsed)
    assert (os.environ[CONFIG_ENV], os.environ[DEFAULT_ENV]) == ("builtin", "fast")
    assert Settings.from_env() == Settings("builtin", "fast")


def test_a_file_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags.from_cli_args(object, argparse.Namespace(moe_opt_config="policy.yaml", moe_prune_plan="plan.json"))
    assert os.environ[CONFIG_ENV] == str(tmp_path / "policy.yaml")
    assert os.environ[PRUNE_ENV] == str(tmp_path / "plan.json")


def test_the_environment_stays_where_a_flag_is_not_given(enabled: None) -> None:
    flags.from_cli_args(object, argparse.Namespace(moe_opt_config=None, moe_skip_default=None))
    flags.from_cli_args(object, argparse.Namespace())
    assert os.environ[CONFIG_ENV] == "builtin" and DEFAULT_ENV not in os.environ


# --- what works ---


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("--moe-runner-backend", "triton"),
        ("--moe-runner-backend", "deep_gemm"),
        ("--tokenizer-worker-num", "1"),
        ("--tp", "2"),
        ("--attn-dp-size", "1"),
        ("--enable-mixed-chunk",),
    ],
)
def test_flags_that_go_together_with_skipping(enabled: None, argv: tuple[str, ...]) -> None:
    flags.prepare_server_args(parse(*argv), [])


def test_nothing_is_refused_where_skipping_is_not_configured() -> None:
    flags.prepare_server_args(parse("--tokenizer-worker-num", "4"), [])


# --- what is refused ---

REFUSED = [
    *(
        ("--moe-runner-backend", name)
        for name in ("flashinfer_trtllm", "flashinfer_mxfp4", "triton_kernel", "flashinfer_cutlass", "marlin", "aiter")
    ),
    ("--tokenizer-worker-num", "2"),
    ("--speculative-algorithm", "EAGLE"),
    ("--enable-two-batch-overlap",),
    ("--attn-cp-size", "2"),
    ("--attn-dp-size", "2"),
    ("--enable-dp-attention",),
]


@pytest.mark.parametrize("argv", REFUSED, ids=" ".join)
def test_flags_that_are_refused(enabled: None, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    line = refusal(capsys, "--tp", "4", "--dp-size", "2", *argv)
    assert f"does not work with {argv[0]} " in line
    assert argv[-1] in line


def test_every_refused_name_is_a_field_of_the_servers_arguments() -> None:
    """A field that upstream renames would be None for ever, and never refused."""
    parsed = parse()
    names = [name for name, *_ in flags._REFUSED]
    assert [name for name in names if not hasattr(parsed, name)] == []
    tested = {argv[0].removeprefix("--").replace("-", "_") for argv in REFUSED}
    assert set(names) == tested


def test_every_backend_but_the_checked_ones_is_refused() -> None:
    parser = argparse.ArgumentParser()
    server_args.ServerArgs.add_cli_args(parser)
    choices = next(a.choices for a in parser._actions if "--moe-runner-backend" in a.option_strings)
    assert choices is not None and set(unsupported.RUNNER_BACKENDS) < set(choices)


def test_the_rust_server_is_refused(
    enabled: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SGLANG_RUST_SERVER", "1")
    assert "SGLANG_RUST_SERVER=1" in refusal(capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profiles: {a: {na: x}}", "profiles.a.na: got 'x'"),
        ("default: slow", "default: got 'slow', allowed: the profiles full"),
        ("a: [", "policy file: got "),
    ],
)
def test_a_bad_policy_ends_in_one_line(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    monkeypatch.setenv(CONFIG_ENV, str(file))
    assert refusal(capsys).startswith(f"error: {message}")


def test_a_missing_file_and_an_unknown_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DEFAULT_ENV, "slow")
    assert "default: got 'slow'" in refusal(capsys)
    monkeypatch.setenv(CONFIG_ENV, "/nowhere/policy.yaml")
    assert "policy file: got '/nowhere/policy.yaml'" in refusal(capsys)


def test_the_format_of_the_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags.from_cli_args(object, argparse.Namespace(moe_opt_log="json"))
    assert (os.environ[LOG_ENV], Settings.from_env().log) == ("json", "json")
    flags.prepare_server_args(parse(), [])
    monkeypatch.setenv(LOG_ENV, "xml")
    assert refusal(capsys) == f"error: --moe-opt-log ({LOG_ENV}): got 'xml', allowed: text or json\n"
