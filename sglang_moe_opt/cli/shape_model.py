"""`moe-opt shape-model`: write a checkpoint of real layer shapes, few layers and random weights."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.shape_checkpoint import ensure_shape


def shape_model(
    spec: Annotated[str, typer.Argument(help="shape:NAME@LAYERS, such as shape:deepseek-v2-lite@5 or tiny-v3.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: the cache.")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    tokenizer: Annotated[Path | None, typer.Option(help="Local folder whose tokenizer files are copied in.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model of real layer shapes and random, evenly routing weights; at once if it is there already."""
    start = time.monotonic()
    try:
        folder = ensure_shape(spec, out, dtype=dtype, seed=seed, tokenizer=tokenizer, progress=not as_json)
        shape = MoEShape.from_path(folder)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if as_json:
        seconds = round(time.monotonic() - start, 3)
        result = {
            "path": str(folder),
            "bytes": size,
            "layers": shape.num_layers,
            "expert_bytes": shape.expert_bytes,
            "seconds": seconds,
        }
        typer.echo(json.dumps(result))
    else:
        typer.echo(str(folder))


def register(app: typer.Typer) -> None:
    """Add the command to `moe-opt`."""
    app.command("shape-model")(shape_model)
