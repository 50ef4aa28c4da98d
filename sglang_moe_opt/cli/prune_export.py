"""`moe-opt prune export`: write a pruned model as a Hugging Face checkpoint."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sglang_moe_opt.fields import FieldError

if TYPE_CHECKING:
    from sglang_moe_opt.model_shape import MoEShape
    from sglang_moe_opt.plan import PrunePlan

_UNITS: Final = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def export(
    model: Annotated[str, typer.Option(help="The full model: folder, Hugging Face id, or shape:NAME@LAYERS.")],
    plan: Annotated[Path, typer.Option(help="Plan file for this model.")],
    out: Annotated[Path, typer.Option(help="Folder to write: a new or empty one.")],
    max_shard_size: Annotated[str, typer.Option(help="Largest size of a file, such as 5GB or 500MB.")] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write the pruned model as a Hugging Face checkpoint.

    Plans with one expert count for all layers (and equal groups) give checkpoints that transformers, SGLang and vLLM
    load as they are; others need this project's plugin. An interrupted export goes on with the same command.
    """
    from sglang_moe_opt.progress import byte_progress
    from sglang_moe_opt.pruning.export import Export

    start = time.monotonic()
    job = Export.prepare(
        local_checkpoint(model),
        plan,
        out,
        max_shard_bytes=parse_size(max_shard_size),
        source=model if not Path(model).exists() else None,
        command=("moe-opt", *sys.argv[1:]),
    )
    for note in job.notes:
        typer.echo(f"moe-opt: {' '.join(note.split())}", err=True)
    try:
        with byte_progress(f"{out.name} {job.nbytes / 1e9:.2f} GB", job.nbytes, shown=not as_json) as advance:
            job.write(advance)
    except KeyboardInterrupt:
        kept = len(job.staging.finished)
        typer.echo(f"moe-opt: interrupted after {kept} of {len(job.shards)} shards; the same command goes on", err=True)
        raise typer.Exit(130) from None
    if not as_json:
        typer.echo(str(out))
        return
    result = {
        "path": str(out),
        "form": job.form,
        "bytes": job.nbytes,
        "source_bytes": job.layout.checkpoint.nbytes,
        "shards": len(job.shards),
        "mtp_dropped": job.layout.drops_mtp,
        "seconds": round(time.monotonic() - start, 3),
    }
    typer.echo(json.dumps(result))


def local_checkpoint(model: str) -> Path:
    """The folder of a model, downloaded first if it is a hub id. Raises ValueError."""
    from sglang_moe_opt.cli.serve import resolve_model

    folder = Path(resolve_model(model))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.gguf", "original/*"]))
    except (OSError, ValueError):  # not there, not reachable, or no hub id at all
        raise ValueError(f"--model: {model} is neither a folder nor a Hugging Face id that can be downloaded") from None


def checked_plan(folder: Path, file: Path) -> tuple[PrunePlan, MoEShape]:
    """A plan and the shape of the full model, for which it is. Raises ValueError where it is not."""
    from sglang_moe_opt.checkpoint_id import fingerprint
    from sglang_moe_opt.model_shape import MoEShape, read_config
    from sglang_moe_opt.plan import PrunePlan

    plan, config = PrunePlan.load(file), read_config(folder)
    shape = MoEShape.from_config(config)
    plan.check(shape, fingerprint(config, folder))
    return plan, shape


def parse_size(text: str) -> int:
    """Bytes of a size such as 5GB, 1.5GiB or 1000000. Raises FieldError."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{0,3})", text.strip())
    unit = _UNITS.get(match[2].upper() or "B") if match else None
    size = round(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise FieldError("--max-shard-size", text, "a size such as 5GB, 500MB or 2GiB")
    return size
