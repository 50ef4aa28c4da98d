"""`moe-opt report DIR...`: rebuild the summary, plots and page of one run, or compare several, from files alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglang_moe_opt.fields import FieldError

if TYPE_CHECKING:
    from loadtest.explanation import Basis


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Results folders: one to rebuild, or several.")
    ],
    out: Annotated[Path | None, typer.Option(help="Where the files go (default: into the only DIR).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
    imports: Annotated[
        list[Path] | None,
        typer.Option(
            "--import", metavar="FILE", help="Load tests: bench_serving results (JSONL) to show beside. Repeatable."
        ),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(help="Load tests: the server's machine, as of moe-opt predict, in place of what was probed."),
    ] = None,
    tp: Annotated[int, typer.Option(help="With --hardware: devices that share every layer.")] = 1,
    ep: Annotated[int, typer.Option(help="With --hardware: groups of them that hold whole experts.")] = 1,
    parameters: Annotated[
        Path | None, typer.Option(help="Load tests: what moe-opt predict --fit wrote, for the predictions.")
    ] = None,
) -> None:
    """Write summary.json, summary.csv, PNG plots and report.html of evaluations or load tests; several are compared.

    Evaluations are of one model, and a schedule that several of them contain counts as repeated. The curves of several
    load tests are drawn beside each other.
    """
    if out is None and len(folders) > 1:
        raise ValueError(f"{len(folders)} folders: say with --out DIR where their comparison goes")
    kind = _kind(folders)
    if kind == EVALUATION:
        for option, value in (("--import", imports), ("--hardware", hardware), ("--parameters", parameters)):
            if value:
                raise ValueError(f"{option}: only for load tests; {folders[0]} is an evaluation")
        _report_evaluation(folders, out or folders[0], as_json)
    else:
        _report_loadtest(folders, out or folders[0], as_json, imports or [], _basis(hardware, tp, ep, parameters))


def _basis(hardware: str | None, tp: int, ep: int, parameters: Path | None) -> Basis:
    """What the options say of the servers' machine. Raises FieldError."""
    from loadtest.explanation import Basis
    from sglang_moe_opt.cli.devices import find_devices
    from sglang_moe_opt.perfmodel.parallel import Parallelism
    from sglang_moe_opt.perfmodel.parameters import Fitted

    if hardware is None and tp > 1:
        raise FieldError("--tp", tp, "it together with --hardware")
    found, split = (None, Parallelism(tp, ep)) if hardware is None else find_devices(hardware, tp, ep)
    return Basis(found, split, None if parameters is None else Fitted.load(parameters))


def _report_evaluation(folders: Sequence[Path], out: Path, as_json: bool) -> None:
    from rich.console import Console

    from eval.compare import compare
    from eval.outputs import write_all
    from eval.outputs.console import show
    from eval.outputs.json import summary

    comparison = compare(folders)
    written = write_all(comparison, out)
    if as_json:
        typer.echo(json.dumps(summary(comparison)))
        return
    show(comparison, Console())
    typer.echo(f"{out}: {', '.join(path.name for path in written)}")


def _report_loadtest(folders: Sequence[Path], out: Path, as_json: bool, imports: Sequence[Path], basis: Basis) -> None:
    from rich.console import Console

    from loadtest.analysis import analyse
    from loadtest.bench_serving import read
    from loadtest.outputs import write_all
    from loadtest.outputs.console import show
    from loadtest.outputs.json import summary

    analysis = analyse(folders, [point for file in imports for point in read(file)], basis)
    written = write_all(analysis, out)
    if as_json:
        typer.echo(json.dumps(summary(analysis)))
        return
    show(analysis, Console())
    typer.echo(f"{out}: {', '.join(path.name for path in written)}")


EVALUATION = "evaluation"
KINDS = (EVALUATION, "loadtest")
"""Of runs, by the `kind` in their manifest; evaluation runs do not name theirs."""


def _kind(folders: Sequence[Path]) -> str:
    """What kind of runs these are. Raises ValueError where they differ or are unknown."""
    kinds = {folder: _kind_of(folder) for folder in folders}
    for folder, kind in kinds.items():
        if kind not in KINDS:
            raise ValueError(f"{folder}: a run of kind {kind!r}; known: {', '.join(KINDS)}")
    if len(set(kinds.values())) > 1:
        raise ValueError(f"runs of different kinds: {', '.join(f'{f} is {k}' for f, k in kinds.items())}")
    return kinds[folders[0]]


def _kind_of(folder: Path) -> str:
    from eval.results import ResultsError, ResultsFolder, read_json

    file = ResultsFolder(folder).manifest_file
    if not file.exists():
        raise ResultsError(f"{folder}: no manifest.json there; expected the folder of a run")
    manifest: Any = read_json(file)
    if not isinstance(manifest, dict):
        raise ResultsError(f"{file}: not a JSON object")
    return str(manifest.get("kind", EVALUATION))
