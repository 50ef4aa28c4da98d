"""`PrunePlan`: the experts that each layer of one model keeps, as a versioned JSON file. Pure (pydantic, numpy)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sglang_moe_opt.fields import FieldError, is_int, show_key
from sglang_moe_opt.files import read_json, sha256_of, write_atomically
from sglang_moe_opt.model_shape import MoEShape

GateMode = Literal["shrink", "mask"]

PLAN_KEY: Final = "moe_prune_plan"
"""Entry of a checkpoint's config.json that names a plan's file beside it: the weights are stored without the experts
that the plan removes, and without their rows of the gate; expert ids are those of the full model."""
PLAN_FILE: Final = "moe_prune_plan.json"

_LAYER_ID: Final = re.compile(r"0|[1-9][0-9]{0,8}")
_INTEGER_LIST: Final = re.compile(r"\[\n\s+(\d+(?:,\n\s+\d+)*)\n\s+\]")


class PlanError(FieldError):
    """A plan that cannot be used: one line with the field, its value and what is allowed; `file` leads where known."""

    def __init__(self, field: str, value: object, allowed: str, file: str = "") -> None:
        super().__init__(field, value, allowed)
        self.file = file

    def __str__(self) -> str:
        text = super().__str__()
        return f"{self.file}: {text}" if self.file else text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.value, self.allowed, self.file)


class SidecarFile(BaseModel):
    """A safetensors file beside the plan whose tensors replace those of the same name in the checkpoint.

    file: its path, relative to the plan's folder. sha256: 64 hex digits over its bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    file: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @field_validator("file")
    @classmethod
    def _stays_in_the_folder(cls, file: str) -> str:
        path = PurePosixPath(file)
        if not path.name or path.is_absolute() or ".." in path.parts or "\0" in file:
            raise FieldError("weights.file", file, "a path below the plan's folder")
        return file

    @classmethod
    def of(cls, path: Path) -> SidecarFile:
        """The entry for a file that lies in the plan's folder. Raises OSError."""
        return cls(file=path.name, sha256=sha256_of(path))


class PrunePlan(BaseModel):
    """Kept experts of every MoE layer.

    Attributes:
        model: fingerprint of the full model (checkpoint_id.fingerprint).
        name: of the model, for people.
        num_experts: routed experts of the full model.
        layers: layer id (0-based, of the model) -> kept expert ids, strictly ascending; every MoE layer is there.
        weights: tensors that replace the checkpoint's: merged or compensated experts.
        method: what made the plan: criterion, arguments, merging, compensation.
        provenance: what it was made from: statistics and corpus with their hashes, versions, command.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    model: str = Field(pattern="^[0-9a-f]{32}$")
    name: str = ""
    num_experts: int = Field(ge=1)
    layers: dict[int, tuple[int, ...]]
    weights: SidecarFile | None = None
    method: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)

    @field_validator("layers", mode="before")
    @classmethod
    def _parse_layers(cls, value: object) -> object:
        if not isinstance(value, dict) or not value:
            raise FieldError("layers", value, "an object of layer id: kept expert ids, with one layer or more")
        return dict(sorted((_layer_id(key), _kept_ids(ids, f"layers.{key}")) for key, ids in value.items()))

    @model_validator(mode="after")
    def _ids_exist(self) -> PrunePlan:
        for layer, kept in self.layers.items():
            if kept[-1] >= self.num_experts:
                raise FieldError(f"layers.{layer}", kept[-1], f"expert ids 0 to {self.num_experts - 1}")
        return self

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> PrunePlan:
        """Read a plan; `verify` hashes its sidecar. Raises PlanError, which names the file."""
        file = Path(path)
        try:
            plan = cls.from_object(read_json(file, "plan"))
            if verify:
                plan.check_weights(file)
        except FieldError as error:
            raise PlanError(error.field, error.value, error.allowed, str(file)) from None
        return plan

    @classmethod
    def from_object(cls, value: object) -> PrunePlan:
        """Validate a plan file's parsed content. Raises PlanError."""
        if not isinstance(value, dict):
            raise PlanError("plan", value, "an object with the keys " + ", ".join(cls.model_fields))
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise _plan_error(error) from None

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all; the sidecar is to be there before. Raises OSError."""
        text = json.dumps(self.model_dump(mode="json"), indent=2)
        write_atomically(Path(path), _INTEGER_LIST.sub(lambda ids: f"[{' '.join(ids[1].split())}]", text) + "\n")

    @property
    def digest(self) -> str:
        """32 hex digits over what the plan does (model, kept experts, replaced weights), not over how it was made."""
        content = [self.model, sorted(self.layers.items()), self.weights.sha256 if self.weights else None]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]

    @property
    def is_uniform(self) -> bool:
        """Whether every layer keeps the same number of experts."""
        return len({len(kept) for kept in self.layers.values()}) == 1

    def kept(self, layer_id: int) -> tuple[int, ...]:
        """The layer's kept expert ids, ascending. Raises PlanError for a layer that the plan does not have."""
        if layer_id not in self.layers:
            raise PlanError("layer", layer_id, f"the layers {_names(self.layers)}")
        return self.layers[layer_id]

    def weights_path(self, plan_file: str | Path) -> Path | None:
        """Where the sidecar of the plan read from `plan_file` lies; None without one."""
        return Path(plan_file).parent / self.weights.file if self.weights else None

    def check_weights(self, plan_file: str | Path) -> None:
        """Raise PlanError unless the sidecar beside `plan_file` is there with the bytes that the plan was made with."""
        path = self.weights_path(plan_file)
        if self.weights is None or path is None:
            return
        if not path.is_file():
            raise PlanError("weights.file", self.weights.file, f"an existing file; {path} is missing")
        try:
            found = sha256_of(path)
        except OSError as error:
            raise PlanError("weights.file", self.weights.file, f"a readable file ({error.strerror})") from None
        if found != self.weights.sha256:
            raise PlanError("weights.sha256", self.weights.sha256, f"{found}, the hash of {path}")

    def check(self, shape: MoEShape, fingerprint: str | None) -> None:
        """Raise PlanError unless this model can run under the plan.

        Args:
            shape: of the full model.
            fingerprint: of the full model; None where it is not known, and then not compared.
        """
        if fingerprint is not None and fingerprint != self.model:
            made_for = f" (the plan was made for {self.name})" if self.name else ""
            raise PlanError("model", self.model, f"{fingerprint}, the fingerprint of the model in use{made_for}")
        if self.num_experts != shape.num_experts:
            raise PlanError("num_experts", self.num_experts, f"{shape.num_experts}, as the model has")
        if missing := set(shape.moe_layer_ids) - set(self.layers):
            raise PlanError("layers", f"no layer {_names(missing)}", f"every MoE layer ({_names(shape.moe_layer_ids)})")
        if extra := set(self.layers) - set(shape.moe_layer_ids):
            raise PlanError("layers", f"layer {_names(extra)}", f"MoE layers only ({_names(shape.moe_layer_ids)})")
        for layer, kept in self.layers.items():
            _check_layer(kept, shape, f"layers.{layer}")

    def gate_mode(self, shape: MoEShape) -> GateMode:
        """How the router leaves experts out.

        `shrink`: it has only the kept experts' rows and biases, groups keeping their number and shrinking alike.
        `mask`: it has all rows, removed experts' logits are -inf, and ids are mapped to kept experts after the choice;
        needed as soon as one layer's groups differ in size, since routers split the experts evenly into groups.
        """
        even = all(len(set(group_counts(kept, shape).tolist())) == 1 for kept in self.layers.values())
        return "shrink" if even else "mask"


def group_counts(kept: Sequence[int], shape: MoEShape) -> NDArray[np.int64]:
    """Kept experts of each of the router's groups: int64 [n_group]."""
    groups = np.asarray(kept, dtype=np.int64) * shape.n_group // shape.num_experts
    return np.bincount(groups, minlength=shape.n_group)


def min_per_group(shape: MoEShape) -> int:
    """Experts that a group cannot be scored without: its two best under sigmoid (noaux_tc), else its best."""
    return min(2 if shape.scoring == "sigmoid" else 1, shape.num_experts // shape.n_group)


def _check_layer(kept: Sequence[int], shape: MoEShape, field: str) -> None:
    if len(kept) < shape.top_k:
        raise PlanError(field, f"{len(kept)} kept", f"at least top-k, {shape.top_k}")
    if shape.n_group == 1:
        return
    counts = np.sort(group_counts(kept, shape))
    if counts[0] < (least := min_per_group(shape)):
        raise PlanError(field, f"a group of {counts[0]}", f"groups of at least {least} of the router's {shape.n_group}")
    if (fewest := counts[: shape.topk_group].sum()) < shape.top_k:
        allowed = f"at least top-k, {shape.top_k}, in any {shape.topk_group} groups that the router may choose"
        raise PlanError(field, f"{fewest} kept in the {shape.topk_group} smallest groups", allowed)


def _layer_id(key: object) -> int:
    if is_int(key) and key >= 0:
        return key
    if isinstance(key, str) and _LAYER_ID.fullmatch(key):
        return int(key)
    raise FieldError("layers", key, "layer ids such as 3")


def _kept_ids(ids: object, field: str) -> tuple[int, ...]:
    if not isinstance(ids, list | tuple):
        raise FieldError(field, ids, "a list of expert ids")
    if not ids:
        raise FieldError(field, ids, "at least one kept expert")
    for before, expert in zip((-1, *ids), ids, strict=False):
        if not is_int(expert) or expert < 0:
            raise FieldError(field, expert, "expert ids from 0")
        if expert == before:
            raise FieldError(field, expert, "every expert once")
        if expert < before:
            raise FieldError(field, f"{expert} after {before}", "ascending ids")
    return tuple(ids)


def _plan_error(error: ValidationError) -> PlanError:
    """The first problem pydantic found, in our words."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, FieldError):
        return PlanError(cause.field, cause.value, cause.allowed)
    field = ".".join(show_key(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = SidecarFile.model_fields if len(first["loc"]) > 1 else PrunePlan.model_fields
        return PlanError(field, first["input"], "only the keys " + ", ".join(known))
    if first["type"] == "missing":
        return PlanError(field, "nothing", "a value: it is required")
    return PlanError(field, first["input"], first["msg"].removeprefix("Input should be "))


def _names(layers: Sequence[int] | set[int] | dict[int, Any]) -> str:
    """Layer ids as text, runs as `3-7`."""
    ids = sorted(layers)
    starts = [i for i, layer in enumerate(ids) if i == 0 or ids[i - 1] != layer - 1]
    runs = [(ids[a], ids[b - 1]) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
