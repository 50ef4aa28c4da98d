"""Entry point of `moe-opt`: gathers the command groups and turns their errors into one line each."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from sglang_moe_opt import __version__

COMMAND_MODULES = (
    "serve",
    "doctor",
    "patch",
    "schedule",
    "calibrate",
    "prune",
    "shape_model",
    "eval",
    "loadtest",
    "report",
    "predict",
)


def build_app() -> typer.Typer:
    """The application with every command group there is."""
    app = typer.Typer(
        name="moe-opt",
        help="Expert skipping, chosen per request, for mixture-of-experts models on SGLang.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def _options(
        version: Annotated[
            bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
        ] = False,
    ) -> None: ...

    for name in COMMAND_MODULES:
        _register(app, f"{__package__}.{name}")
    return app


def main(args: Sequence[str] | None = None) -> None:
    """Run `moe-opt` and exit: 0 done, 1 it failed, 2 bad input, 130 interrupted."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run `moe-opt` with these arguments and return its exit code."""
    try:
        result = build_app()(args=None if args is None else list(args), prog_name="moe-opt", standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message()
        if message.startswith("Usage:"):  # a group called without a command: its help
            typer.echo(message, err=True)
            return error.exit_code
        return _fail(message, error.exit_code)
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        sys.stdout = None  # else Python complains again when it flushes at exit
        return 0
    except ValueError as error:
        return _fail(str(error), 2)
    except (OSError, RuntimeError) as error:
        return _fail(str(error) or type(error).__name__, 1)
    return result if isinstance(result, int) else 0


def _register(app: typer.Typer, module_name: str) -> None:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        return
    module.register(app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"moe-opt {__version__}")
        raise typer.Exit()


def _fail(message: str, code: int) -> int:
    if text := " ".join(message.split()):
        typer.echo(f"moe-opt: error: {text}", err=True)
    return code


if __name__ == "__main__":
    main()
