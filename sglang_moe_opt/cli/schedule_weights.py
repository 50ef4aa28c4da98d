"""`moe-opt schedule weights`: how router weights are distributed in each layer, before and after a schedule."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def weights(
    model: Annotated[str, typer.Option(help="The model: folder, Hugging Face id, mini-v2, mini-v3.")],
    statistics: Annotated[Path, typer.Option(help="Folder that moe-opt calibrate wrote, with its sampled inputs.")],
    out: Annotated[Path, typer.Option(help="Folder for weights.json and weights.png.")],
    schedule: Annotated[
        str | None, typer.Option(help="Also under this schedule: a request's moe_skip, as JSON or a profile's name.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Use so many of the sampled tokens. Default: all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of tokens.")] = 0,
    config: Annotated[
        Path | None, typer.Option(help="Policy file (default: SGLANG_MOE_OPT_CONFIG or built in).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how polarised the routers are: shares by rank, entropy, and what a schedule would keep.

    Inputs are the full model's: what a schedule changes in earlier layers is not in its figures.
    """
    from sglang_moe_opt.checkpoint_id import fingerprint
    from sglang_moe_opt.cli.prune_export import local_checkpoint
    from sglang_moe_opt.cli.schedule import load_policy
    from sglang_moe_opt.cli.values import parse_hint
    from sglang_moe_opt.fields import FieldError
    from sglang_moe_opt.files import write_atomically
    from sglang_moe_opt.hints import resolve
    from sglang_moe_opt.magnitude.distribution import QUANTILES, describe
    from sglang_moe_opt.magnitude.plot import draw
    from sglang_moe_opt.magnitude.sample import check_folder, draw_rows, router_weights
    from sglang_moe_opt.model_shape import MoEShape, read_config

    folder = local_checkpoint(model)
    shape = MoEShape.from_config(read_config(folder))
    resolved = None
    if schedule is not None:
        resolved = resolve(parse_hint(schedule, "--schedule"), load_policy(config), shape, field="--schedule")
        if resolved.prefill.digest != resolved.decode.digest:
            raise FieldError("--schedule", schedule, "one schedule for both phases")
    check_folder(folder, statistics)
    found = router_weights(folder, statistics, draw_rows(folder, statistics, tokens, seed))
    before = describe(found)
    after = None if resolved is None else describe(found, resolved.prefill)
    report: dict[str, Any] = {
        "model": model,
        "fingerprint": fingerprint(read_config(folder), folder),
        "router": {"scoring": shape.scoring, "renormalize": shape.renormalize, "top_k": shape.top_k},
        "tokens": found.tokens,
        "quantiles": list(QUANTILES),
        "full": [one.to_object() for one in before],
        "command": ["moe-opt", *sys.argv[1:]],
    }
    if after is not None and resolved is not None:
        report["schedule"] = resolved.schedule.to_object()
        report["under_schedule"] = [one.to_object() for one in after]
        report["mean_na"] = round(sum(one.mean_na for one in after) / len(after), 4)
    write_atomically(out / "weights.json", json.dumps(report, indent=1) + "\n")
    draw(before, after, _title(model, shape, found.tokens, schedule), out / "weights.png")
    if as_json:
        typer.echo(json.dumps({**report, "out": str(out)}))
    else:
        _print(report, out)


def _title(model: str, shape: Any, tokens: int, schedule: str | None) -> str:
    router = f"{shape.scoring}, top-{shape.top_k} of {shape.num_experts}"
    return f"{Path(model).name} ({router}), {tokens:,} tokens" + (f"; schedule {schedule[:90]}" if schedule else "")


def _print(report: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    router = report["router"]
    table = Table(title=f"router weights, {report['tokens']:,} tokens ({router['scoring']}, top-{router['top_k']})")
    under = report.get("under_schedule")
    columns = ["layer", "largest", "smallest / largest", "worth experts", "kind"]
    for column in columns + (["na", "mass kept", "worth experts then"] if under else []):
        table.add_column(column, justify="right")
    for index, layer in enumerate(report["full"]):
        cells = [
            str(layer["layer"]),
            f"{layer['first_share'][2]:.2f}",
            f"{layer['last_over_first'][2]:.2f}",
            f"{layer['effective']:.2f}",
            "polarised" if layer["polarised"] else "even",
        ]
        if under:
            then = under[index]
            cells += [f"{then['mean_na']:.2f}", f"{then['mass'] / layer['mass']:.2f}", f"{then['effective']:.2f}"]
        table.add_row(*cells)
    console.print(table)
    if under:
        console.print(f"mean na {report['mean_na']:g} on the full model's inputs", highlight=False)
    console.print(f"written to {out}/weights.json and weights.png", highlight=False, soft_wrap=True)
