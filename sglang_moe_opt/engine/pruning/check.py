"""Can this server run under the plan? Asked before anything is loaded; every refusal is one line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.engine import calibration
from sglang_moe_opt.engine.pruning.active import Pruning
from sglang_moe_opt.engine.pruning.names import missing_tensors
from sglang_moe_opt.engine.unsupported import OTHER_BACKENDS, Refusal, UnsupportedError, refuse
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PlanError

ARCHITECTURES = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM")
"""Models whose layers and loader are hooked; Kimi K2 is a DeepSeek-V3."""

CHECKED_ENV = "SGLANG_MOE_OPT_PRUNE_CHECKED"
"""Digest of the plan that the parent process has checked: hashing weights once is enough."""

_PLACEMENT = "plans do not know other placements of experts than the plain one; leave the flag out"
_NUMBERS = "it addresses experts by their numbers in the whole model; leave the flag out"

REFUSED: tuple[Refusal, ...] = (
    ("enable_eplb", bool, _PLACEMENT),
    ("init_expert_location", lambda v: v not in (None, "trivial"), _PLACEMENT),
    ("ep_num_redundant_experts", bool, _PLACEMENT),
    ("ep_dispatch_algorithm", bool, _PLACEMENT),
    ("elastic_ep_backend", bool, _PLACEMENT),
    ("enable_elastic_expert_backup", bool, _PLACEMENT),
    ("enable_waterfill", bool, _PLACEMENT),
    (
        "moe_a2a_backend",
        lambda v: v not in (None, "none"),
        "its buffers hold one number of experts for all layers; set --moe-a2a-backend none",
    ),
    (
        "speculative_algorithm",
        bool,
        "a draft model's experts would be read under the plan as well; leave the flag out",
    ),
    ("enable_lora", bool, _NUMBERS),
    ("enable_paged_experts", bool, _NUMBERS),
    ("kt_weight_path", bool, _NUMBERS),
    (
        "load_format",
        lambda v: str(getattr(v, "value", v)) not in ("None", "auto", "safetensors"),
        "plans select tensors of safetensors files by name; set --load-format auto",
    ),
    ("weight_cache_mode", lambda v: v not in (None, "off"), "it shares whole models; set --weight-cache-mode off"),
)


def check_once(pruning: Pruning, server_args: Any, model_config: Any) -> None:
    """Check where the parent process has not: a server that was not started from a command line.

    Raises:
        ValueError: see :func:`check_server`.
    """
    if os.environ.get(CHECKED_ENV) != pruning.plan.digest:
        check_server(pruning, server_args, model_config)


def check_server(pruning: Pruning, server_args: Any, model_config: Any) -> None:
    """Check flags, model, layout and checkpoint against the plan; remember for child processes that it was done.

    Raises:
        ValueError: what does not fit, in one line.
    """
    from sglang_moe_opt.engine.setup import model_shape

    refuse(server_args, "expert pruning", REFUSED)
    if calibration.is_on():
        raise UnsupportedError("expert pruning does not work with calibration: plans are made from the whole model")
    names = model_config.hf_config.architectures or []
    if not set(names) & set(ARCHITECTURES):
        raise UnsupportedError(
            f"expert pruning does not work with the architecture {', '.join(names)}: allowed are "
            + ", ".join(ARCHITECTURES)
        )
    shape = model_shape(model_config)
    check_plan(pruning, shape, model_config.model_path)
    if pruning.plan.gate_mode(shape) == "mask":
        refuse(server_args, "a plan that keeps unequal expert groups", [OTHER_BACKENDS])
    check_layout(pruning, tp_size=server_args.tp_size or 1, ep_size=server_args.ep_size or 1)
    os.environ[CHECKED_ENV] = pruning.plan.digest


def check_plan(pruning: Pruning, shape: MoEShape, model: str) -> None:
    """Check that the plan is for this model, and that its checkpoint and the sidecar are whole where they are local.

    Raises:
        ValueError: what does not fit, in one line that names the plan.
    """
    folder = Path(model) if (Path(model) / "config.json").is_file() else None
    try:
        pruning.plan.check(shape, None if pruning.is_stored else _fingerprint(pruning, model, folder))
        pruning.plan.check_weights(pruning.file)
    except PlanError as error:
        raise PlanError(error.field, error.value, error.allowed, str(pruning.file)) from None
    if folder is not None:
        check_checkpoint(pruning, folder)


def check_layout(pruning: Pruning, *, tp_size: int, ep_size: int) -> None:
    """Check that every layer can be spread over the ranks.

    Raises:
        UnsupportedError: naming the layer.
    """
    for layer, kept in pruning.plan.layers.items():
        number = f"{pruning.file}: layer {layer} keeps {len(kept)} experts, "
        if len(kept) < tp_size:
            raise UnsupportedError(f"{number}fewer than --tp-size {tp_size}")
        if len(kept) % ep_size:
            raise UnsupportedError(f"{number}which --ep-size {ep_size} does not divide")


def check_checkpoint(pruning: Pruning, folder: Path) -> None:
    """Check the names in a checkpoint: every kept expert and gate, and the like of every sidecar tensor.

    Raises:
        ValueError: a file that is missing or broken, experts that are not stored one by one, or a sidecar tensor
            that replaces nothing.
    """
    tensors = dict(_tensors(_files(folder)))
    if missing := next(missing_tensors(pruning.plan.layers, tensors), None):
        raise ValueError(f"{folder}: the checkpoint has no {missing}, which {pruning.file} keeps")
    if pruning.sidecar is None:
        return
    for name, own in _tensors([pruning.sidecar]):
        if (theirs := tensors.get(name)) != own:
            said = "no such tensor" if theirs is None else f"{theirs[0]} {list(theirs[1])}"
            raise ValueError(f"{pruning.sidecar}: {name} is {own[0]} {list(own[1])}, the checkpoint has {said}")


def _fingerprint(pruning: Pruning, model: str, folder: Path | None) -> str:
    """The model's fingerprint; that of its config alone where the plan was made from a model on a hub."""
    config = _read_config(model)
    without_weights = fingerprint(config, None)
    return without_weights if pruning.plan.model == without_weights else fingerprint(config, folder)


def _read_config(model: str) -> dict[str, Any]:
    """config.json of a folder or of a hub id, whose copy SGLang has fetched before."""
    file = Path(model) / "config.json"
    if not file.is_file():
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(model, "config.json"))
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those that its index names, else all."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if not indices:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{folder}: no *.safetensors there; plans select tensors of such files by name")
        return files
    try:
        names = set(json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{indices[0]}: not the index of a checkpoint ({error!r})") from None
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise ValueError(f"{folder}: {len(missing)} of {len(names)} checkpoint files are missing, first {missing[0]}")
    return [folder / name for name in sorted(names)]


def _tensors(files: list[Path]) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Name, dtype and shape of every tensor, from the files' headers."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    entry = tensors.get_slice(name)
                    yield name, (str(entry.get_dtype()), tuple(entry.get_shape()))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file}: not a whole safetensors file ({' '.join(str(error).split())})") from None
