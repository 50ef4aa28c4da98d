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
) -> None:
    """Write summary.json, summary.csv, PNG plots and report.html; several runs of one model are compared.

    A schedule that several of the runs contain counts as repeated.
    """
    if out is None and len(folders) > 1:
        raise ValueError(f"{len(folders)} folders: say with --out DIR where their comparison goes")
    REPORTS[_kind(folders)](folders, out or folders[0], as_json)


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


EVALUATION = "evaluation"
REPORTS: dict[str, Callable[[Sequence[Path], Path, bool], None]] = {EVALUATION: _report_evaluation}
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
