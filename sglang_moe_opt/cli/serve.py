"""`moe-opt serve`: start SGLang with expert skipping, on whatever this machine has."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.launch import plan_launch
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PrunePlan
from sglang_moe_opt.policy import Policy
from sglang_moe_opt.shapes import is_shape

CONFIG_ENV = "SGLANG_MOE_OPT_CONFIG"
DEFAULT_ENV = "SGLANG_MOE_OPT_SKIP_DEFAULT"
PRUNE_ENV = "SGLANG_MOE_OPT_PRUNE_PLAN"
MODELS_ENV = "SGLANG_MOE_OPT_MODELS"
REFERENCE_MODELS = ("mini-v2", "mini-v3")
"""Small trained checkpoints that come with the project; the first is served where nothing else is asked for."""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)


def serve(
    context: typer.Context,
    model: Annotated[
        str, typer.Option(help="Folder, Hugging Face id, or shape:NAME@LAYERS. Default: the mini model of the project.")
    ] = REFERENCE_MODELS[0],
    config: Annotated[
        str | None, typer.Option(help="Policy file, or 'builtin' (default, unless SGLANG_MOE_OPT_CONFIG is set).")
    ] = None,
    default_profile: Annotated[
        str | None, typer.Option("--default", help="Profile of requests without a hint; overrides the policy's.")
    ] = None,
    prune_plan: Annotated[
        Path | None,
        typer.Option("--prune-plan", "--moe-prune-plan", help="Plan of the experts to serve; overrides the policy's."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the command instead of running it.")] = False,
) -> None:
    """Start an SGLang server with expert skipping chosen per request.

    Any other option goes to `sglang serve` as it is (--port, --host, --tp, --dtype, ...) and wins over our choice.
    """
    path = resolve_model(model)
    config = config or os.environ.get(CONFIG_ENV) or "builtin"
    check_policy(path, config, default_profile)
    if config != "builtin":
        config = str(Path(config).resolve())
    extra = list(context.args)
    if (plan_file := find_plan(path, config, prune_plan)) is not None:
        check_plan(path, plan_file)
    if prune_plan is not None:
        extra += ["--moe-prune-plan", str(prune_plan.resolve())]
    if default_profile is not None:
        extra += ["--moe-skip-default", default_profile]
    plan = plan_launch(path, on_cpu=not has_accelerator(), extra=extra, policy=config)
    for note in plan.notes:
        typer.echo(f"moe-opt: {note}", err=True)
    command = [sys.executable, "-m", "sglang_moe_opt.cli.sglang_serve", *plan.argv]
    if dry_run:
        settings = [f"{name}={value}" for name, value in plan.env.items()]
        typer.echo(" ".join([*settings, "sglang serve", *plan.argv]))
        return
    sys.stdout.flush()
    os.execve(command[0], command, {**plan.env, **os.environ})


def resolve_model(model: str) -> str:
    """Folder or hub id of ``model``; writes a shape's checkpoint where it is asked for.

    Raises:
        ValueError: the reference model is not part of this installation, or the shape is unknown.
    """
    if is_shape(model):
        from sglang_moe_opt.shape_checkpoint import ensure_shape

        return str(ensure_shape(model))
    if model in REFERENCE_MODELS:
        return str(reference_model(model))
    if model.startswith((".", "/")) and not Path(model).is_dir():
        raise ValueError(f"--model: got {model!r}, allowed: a folder with a checkpoint, a hub id, or shape:NAME@LAYERS")
    return model


def hub_config(model: str) -> Path:
    """config.json of a Hugging Face id, downloaded. Raises FieldError."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json"))
    except (OSError, ValueError):  # not there, not reachable, or no hub id at all
        raise FieldError("--model", model, "a folder, or a Hugging Face id whose config.json can be read") from None


def reference_model(name: str) -> Path:
    """Folder of a reference model: below $SGLANG_MOE_OPT_MODELS, else in this checkout. A wheel has no weights.

    Raises:
        ValueError: it is in neither.
    """
    import importlib.util

    spec = importlib.util.find_spec("eval.reference_models")
    own = Path(spec.origin).parent / "checkpoints" if spec and spec.origin else None
    named = os.environ.get(MODELS_ENV)
    for folder in (Path(named) if named else None, own):
        if folder is not None and (folder / name / "config.json").exists():
            return folder / name
    raise ValueError(
        f"--model: {name} is not in this installation (wheels carry no weights): set {MODELS_ENV} to the folder "
        "eval/reference_models/checkpoints of a clone, or name a folder or a Hugging Face id"
    )


def check_policy(model: str, config: str, default_profile: str | None) -> None:
    """Load the policy and, where the model is a local folder, expand its profiles on it. Raises PolicyError."""
    policy = Policy.builtin() if config == "builtin" else Policy.load(config)
    if default_profile is not None:
        policy = policy.with_default(default_profile)
    if (Path(model) / "config.json").exists():
        policy.check(MoEShape.from_path(model))


def find_plan(model: str, config: str, prune_plan: Path | None) -> Path | None:
    """The plan that a server would load: the option's, the environment's, the policy's, or the model's own."""
    from sglang_moe_opt.engine.pruning import stored_plan
    from sglang_moe_opt.engine.settings import Settings

    named = str(prune_plan) if prune_plan is not None else os.environ.get(PRUNE_ENV) or None
    return Settings(config, None, named).plan_file() or stored_plan(Path(model))


def check_plan(model: str, plan_file: Path) -> None:
    """Check a plan by itself and, where the model is a local folder, against its checkpoint. Raises ValueError."""
    from sglang_moe_opt.engine.pruning import Pruning
    from sglang_moe_opt.engine.pruning.check import check_plan

    pruning = Pruning(PrunePlan.load(plan_file, verify=False), plan_file)
    if (Path(model) / "config.json").exists():
        check_plan(pruning, MoEShape.from_path(model), model)


def has_accelerator() -> bool:
    """Whether torch sees a GPU; torch takes seconds to import and is asked only where there is a driver."""
    if not _has_driver():
        return False
    import torch

    return bool(torch.cuda.is_available())


def _has_driver() -> bool:
    """Whether a driver that torch could use is there: AMD's device, or NVIDIA's library."""
    if Path("/dev/kfd").exists():
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
