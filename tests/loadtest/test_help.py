"""Every measurement that is run as a module says how."""

from __future__ import annotations

from importlib import import_module

import pytest
import typer
from typer.testing import CliRunner

MODULES = ("agreement", "bench", "ceiling", "demo", "mixed_batch", "paired", "pruned_memory", "ramp", "soak.__main__")


@pytest.mark.parametrize("name", MODULES)
def test_help(name: str) -> None:
    app = typer.Typer()
    app.command()(import_module(f"loadtest.{name}").main)
    done = CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0, done.exception
    assert "Usage:" in done.output
