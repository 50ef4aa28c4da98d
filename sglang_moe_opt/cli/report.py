"""`moe-opt report DIR...`: rebuild the summary, plots and page of one run, or compare several, from files alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer


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
) -> None:
    """Write summary.json, summary.csv, PNG plots and report.html of evaluations or load tests; several are compared.

    Evaluations are of one model, and a schedule that several of them contain counts as repeated. The curves of several
    load tests are drawn beside each other.
    """
    if out is None and len(folders) > 1:
        raise ValueError(f"{len(folders)} folders: say with --out DIR where their comparison goes")
    REPORTS[_kind(folders)](folders, out or folders[0], as_json, imports or [])


def _report_evaluation(folders: Sequence[Path], out: Path, as_json: bool, imports: Sequence[Path]) -> None:
    from rich.console import Console

    from eval.compare import compare
    from eval.outputs import write_all
    from eval.outputs.console import show
    from eval.outputs.json import summary

    if imports:
        raise ValueError(f"--import: only for load tests; {folders[0]} is an evaluation")
    comparison = compare(folders)
    written = write_all(comparison, out)
    if as_json:
        typer.echo(json.dumps(summary(comparison)))
        return
    show(comparison, Console())
    typer.echo(f"{out}: {', '.join(path.name for path in written)}")


def _report_loadtest(folders: Sequence[Path], out: Path, as_json: bool, imports: Sequence[Path]) -> None:
    from rich.console import Console

    from loadtest.analysis import analyse
    from loadtest.bench_serving import read
    from loadtest.outputs import write_all
    from loadtest.outputs.console import show
    from loadtest.outputs.json import summary

    analysis = analyse(folders, [point for file in imports for point in read(file)])
    written = write_all(analysis, out)
    if as_json:
        typer.echo(json.dumps(summary(analysis)))
        return
    show(analysis, Console())
    typer.echo(f"{out}: {', '.join(path.name for path in written)}")


EVALUATION = "evaluation"
REPORTS: dict[str, Callable[[Sequence[Path], Path, bool, Sequence[Path]], None]] = {
    EVALUATION: _report_evaluation,
    "loadtest": _report_loadtest,
}
"""How each kind of run is reported, by the `kind` in its manifest; evaluation runs do not name theirs."""


def _kind(folders: Sequence[Path]) -> str:
    """What kind of runs these are. Raises ValueError where they differ or are unknown."""
    kinds = {folder: _kind_of(folder) for folder in folders}
    for folder, kind in kinds.items():
        if kind not in REPORTS:
            raise ValueError(f"{folder}: a run of kind {kind!r}; known: {', '.join(REPORTS)}")
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
