"""How many experts the schedules of a run that go by router weight kept on its texts, counted by the engine.

    python -m eval.kept results/run --model mini-v2 --data-dir DATA

A threshold keeps another number on other text than it was made for. `kept.json` in the run's folder has the mean, which
`python -m eval.against` then shows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from eval.catalog import CatalogError, heldout_rows
from eval.results import Manifest, ResultsError, ResultsFolder
from sglang_moe_opt.files import write_atomically

FILE: Final = "kept.json"


def texts(manifest: Manifest, data_dir: Path) -> list[str]:
    """Every text of the run's tasks of running text. Raises CatalogError, ResultsError."""
    tasks = [task.name for task in manifest.tasks if task.metric == "bits_per_byte"]
    if not tasks:
        raise ResultsError("no task of that run has bits per byte")
    return [row["text"] for task in tasks for row in heldout_rows(task, data_dir)]


def count(url: str, hints: Mapping[str, Any], pieces: Sequence[Any], top_k: int) -> dict[str, float]:
    """Experts per token that the engine kept under each hint. Raises RuntimeError of the server."""
    from sglang_moe_opt.magnitude.realised import realised

    found = {}
    for label, hint in hints.items():
        found[label] = round(realised(url, hint, pieces, top_k).mean_na, 4)
        typer.echo(f"{label}: {found[label]}", err=True)
    return found


def main(
    folder: Annotated[Path, typer.Argument(help="Results folder of moe-opt eval.")],
    model: Annotated[str, typer.Option(help="The model that was served: folder, hub id, mini-v2, mini-v3.")],
    data_dir: Annotated[Path, typer.Option(help="The run's --data-dir.")],
) -> None:
    """Count what schedules by router weight kept on the texts of a run."""
    import numpy as np
    from rich.console import Console
    from transformers import AutoTokenizer

    from sglang_moe_opt.cli.own_server import own_server
    from sglang_moe_opt.cli.serve import resolve_model
    from sglang_moe_opt.model_shape import MoEShape

    manifest = ResultsFolder(folder).read_manifest()
    hints = {entry.label: entry.hint for entry in manifest.schedules if entry.dynamic}
    if not hints:
        raise ResultsError(f"{folder}: no schedule of that run goes by router weight")
    path = resolve_model(model)
    ids = AutoTokenizer.from_pretrained(path)(texts(manifest, data_dir))["input_ids"]
    pieces = [np.array(one, np.int32) for one in ids]
    with own_server(model, None, [], Console(stderr=True)) as url:
        found = count(url, hints, pieces, MoEShape.from_path(Path(path)).top_k)
    report = {"command": f"python -m eval.kept RUN --model {model} --data-dir DATA", "mean_na": found}
    write_atomically(folder / FILE, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    try:
        typer.run(main)
    except (ResultsError, CatalogError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
