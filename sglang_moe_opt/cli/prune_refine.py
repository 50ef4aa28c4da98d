"""`moe-opt prune refine`: make a plan's kept experts take over for the removed ones."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglang_moe_opt.cli.prune_export import checked_plan, local_checkpoint
from sglang_moe_opt.progress import step_progress

if TYPE_CHECKING:
    from sglang_moe_opt.plan import PrunePlan
    from sglang_moe_opt.pruning.compensation import LayerFit
    from sglang_moe_opt.pruning.refinement import Progress, Refinement


def refine(
    model: Annotated[str, typer.Option(help="The full model: folder, Hugging Face id, mini-v2, mini-v3.")],
    plan: Annotated[Path, typer.Option(help="Plan file for this model.")],
    statistics: Annotated[Path, typer.Option(help="Folder that moe-opt calibrate wrote.")],
    out: Annotated[Path, typer.Option(help="The plan file to write; its weights go beside it.")],
    merge: Annotated[
        str | None, typer.Option(help="Merge removed experts into kept ones: average or neurons. Default: drop them.")
    ] = None,
    merge_by: Annotated[str, typer.Option(help="Which kept expert takes one up, by likeness of: router, output.")] = (
        "router"
    ),
    compensate: Annotated[
        bool, typer.Option("--compensate", help="Refit down projections by least squares on the calibration's text.")
    ] = False,
    ridge: Annotated[float, typer.Option(help="Weight of staying near the old weights in that fit.")] = 1e-3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Merge the removed experts into the kept ones, or refit the kept ones, without training."""
    from sglang_moe_opt.pruning.refinement import Refinement, save_refined
    from sglang_moe_opt.pruning.refinement import refine as run

    start = time.monotonic()
    how = Refinement(merge, merge_by, compensate, ridge)  # type: ignore[arg-type] # checked there
    folder = local_checkpoint(model)
    chosen, _ = checked_plan(folder, plan)
    fits: list[LayerFit] = []
    try:
        with _shown(chosen, how, fits, hidden=as_json) as progress:
            tensors = run(folder, chosen, chosen.weights_path(plan), statistics, how, progress)
        refined = save_refined(chosen, tensors, how.to_object(), out)
    except KeyboardInterrupt:
        typer.echo(f"moe-opt: interrupted; {out} is not written", err=True)
        raise typer.Exit(130) from None
    result: dict[str, Any] = {
        "plan": str(out),
        "weights": str(refined.weights_path(out)),
        "digest": refined.digest,
        "method": refined.method,
        "tensors": len(tensors),
        "layers": [_fit_object(fit) for fit in fits],
        "seconds": round(time.monotonic() - start, 1),
    }
    typer.echo(json.dumps(result) if as_json else f"written to {out}, with {len(tensors)} tensors beside it")


def _fit_object(fit: LayerFit) -> dict[str, Any]:
    """JSON-ready; JSON has no NaN."""
    return {**vars(fit), "heldout_error": None if math.isnan(fit.heldout_error) else fit.heldout_error}


@contextmanager
def _shown(plan: PrunePlan, how: Refinement, fits: list[LayerFit], *, hidden: bool) -> Iterator[Progress]:
    """A bar over the layers, and a line for each one that is compensated; fits are collected too."""
    from sglang_moe_opt.pruning.refinement import Progress

    steps = len(plan.layers) * ((how.merge is not None) + how.compensate)
    with step_progress("layers", steps, shown=not hidden) as bar:

        def fitted(fit: LayerFit) -> None:
            fits.append(fit)
            other = fit.heldout_error
            bar.advance(
                f"layer {fit.layer_id}: error {fit.error_before:.3f}, refitted {fit.error_after:.3f}, "
                + ("no other text" if math.isnan(other) else f"on text it did not see {other:.3f}")
            )

        yield Progress(layer=lambda _: bar.advance(), fit=fitted)
