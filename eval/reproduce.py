"""`make reproduce`: the paper's accuracy study on a model, as one `moe-opt eval` command, shown before it runs."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from eval.catalog import SIX, TaskInfo, read_config
from eval.schedules import Grid, resolve_all
from eval.served import read_model_config
from sglang_moe_opt.cli.eval import DATA_ENV
from sglang_moe_opt.cli.main import run
from sglang_moe_opt.cli.serve import resolve_model
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy


@dataclass(frozen=True)
class Study:
    """Grid, tasks and size; `limit` None is the paper's own, every item."""

    grid: str
    tasks: tuple[str, ...] = SIX
    limit: int | None = None


MINI_TASKS: Final = (*SIX, "bits_per_byte", "cloze", "gloss")
STUDIES: Final = {
    (6, 26): Study("paper_v2_lite"),
    (8, 58): Study("paper_v3"),
    (6, 5): Study("mini_v2", MINI_TASKS, limit=200),
    (8, 5): Study("mini_v3", MINI_TASKS, limit=200),
}
"""By top-k and number of MoE layers: DeepSeek-V2-Lite, DeepSeek-V3, and the reference models at reduced size."""


def choose(shape: MoEShape) -> Study:
    """The study for a model. Raises FieldError where there is none."""
    key = (shape.top_k, shape.num_moe_layers)
    if key not in STUDIES:
        known = ", ".join(f"{top_k}/{layers} ({study.grid})" for (top_k, layers), study in STUDIES.items())
        raise FieldError("--model", f"top-{key[0]}, {key[1]} MoE layers", f"{known}; or `moe-opt eval --grid FILE`")
    return STUDIES[key]


def plan(model: str, shape: MoEShape, study: Study, limit: int | None) -> list[str]:
    """What will run, a line each."""
    schedules = resolve_all(Grid.load(study.grid).labelled(), Policy.builtin(), shape)
    counts = {name: TaskInfo.model_validate(read_config(name)["metadata"]).items for name in study.tasks}
    items = sum(min(count, limit or count) for count in counts.values() if count)
    built = [name for name, count in counts.items() if count is None]
    return [
        f"model      {model}: top-{shape.top_k} of {shape.num_experts}, {shape.num_moe_layers} MoE layers",
        f"schedules  {len(schedules)} that differ, from grid {study.grid}; one server, hints switch between them",
        f"tasks      {', '.join(study.tasks)}",
        f"items      {items:,} of the benchmarks per schedule, {items * len(schedules):,} in all"
        + (f" ({limit} of each task at most)" if limit else "")
        + (f", and those of {', '.join(built)}" if built else ""),
    ]


def main(
    model: Annotated[str, typer.Option(help="Folder, hub id, or a reference model.")] = "mini-v2",
    url: Annotated[str | None, typer.Option(help="A server that runs already; else one is started.")] = None,
    data_dir: Annotated[Path | None, typer.Option(envvar=DATA_ENV, help="Local data instead of the hub.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each task.")] = None,
    out: Annotated[Path | None, typer.Option(help="Results folder.")] = None,
    plan_only: Annotated[bool, typer.Option(help="Show the plan and stop.")] = False,
) -> None:
    """Show the plan of the study and run it; where its folder holds a part of it already, go on with that."""
    try:
        path = resolve_model(model)
        shape = MoEShape.from_config(read_model_config(path))
        study = choose(shape)
        limit = limit or study.limit
        folder = out or Path("results") / f"reproduce-{Path(model).name}"
        command = ["eval", *(["--url", url] if url else []), "--model", path if url else model]
        command += ["--grid", study.grid, "--tasks", ",".join(study.tasks), "--out", str(folder)]
        command += ["--data-dir", str(data_dir)] if data_dir else []
        command += ["--limit", str(limit)] if limit else []
        command += ["--resume"] if (folder / "manifest.json").exists() else []
        for line in plan(model, shape, study, limit):
            typer.echo(line)
    except ValueError as error:
        typer.echo(f"reproduce: error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"command    {shlex.join(['moe-opt', *command])}")
    if not plan_only:
        sys.stdout.flush()
        raise typer.Exit(run(command))


if __name__ == "__main__":
    typer.run(main)
