"""What is done to the kept experts' weights after a choice: merging the removed ones into them, compensating for them.

The changed weights go into a sidecar beside the plan; the checkpoint stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from torch import Tensor

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.files import replace_atomically
from sglang_moe_opt.plan import PrunePlan, SidecarFile
from sglang_moe_opt.pruning.compensation import LayerFit, compensate
from sglang_moe_opt.pruning.corpus import Corpus
from sglang_moe_opt.pruning.merging import Method, Similarity, merge
from sglang_moe_opt.pruning.moe_layer import PROJECTIONS, MoELayer, Tensors
from sglang_moe_opt.pruning.sample import sampled_inputs
from sglang_moe_opt.pruning.statistics import CORPUS_FILE


@dataclass(frozen=True)
class Refinement:
    """What to do, in this order.

    Attributes:
        merge: how removed experts are merged into kept ones; None drops them.
        similarity: which kept expert takes a removed one up.
        compensate: refit the down projections of kept and shared experts by least squares.
        ridge: weight of staying near the weights as they were, in that fit.

    Raises:
        FieldError: nothing to do, or a value that is not allowed.
    """

    merge: Method | None = None
    similarity: Similarity = "router"
    compensate: bool = False
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if self.merge is None and not self.compensate:
            raise FieldError("refine", "nothing to do", "--merge, --compensate or both")
        if self.merge is not None and self.merge not in get_args(Method):
            raise FieldError("--merge", self.merge, ", ".join(get_args(Method)))
        if self.similarity not in get_args(Similarity):
            raise FieldError("--merge-by", self.similarity, ", ".join(get_args(Similarity)))
        if not self.ridge > 0:
            raise FieldError("--ridge", self.ridge, "a number above 0")

    def to_object(self) -> dict[str, Any]:
        """For the plan's `method`."""
        merged = {"merge": self.merge, "merge_by": self.similarity} if self.merge else {}
        return merged | ({"compensate": "least squares", "ridge": self.ridge} if self.compensate else {})


@dataclass(frozen=True)
class Progress:
    """What a refinement reports: `layer` when one more layer is merged, `fit` when one more is compensated."""

    layer: Callable[[int], None] = lambda layer_id: None
    fit: Callable[[LayerFit], None] = lambda fit: None


def refine(
    model: Path, plan: PrunePlan, sidecar: Path | None, statistics: Path, how: Refinement, progress: Progress
) -> dict[str, Tensor]:
    """The tensors that replace the checkpoint's under the refined plan, those of the plan's own sidecar among them.

    Args:
        model: folder of the full model.
        plan: the choice of experts.
        sidecar: of the plan as it is; None without one.
        statistics: folder of the calibration, with its sampled inputs and its text.
        how: what to do.
        progress: is told of every layer.

    Raises:
        ValueError: a broken checkpoint or calibration, a quantised model, another architecture.
    """
    from safetensors.torch import load_file, save_file

    changed = load_file(sidecar) if sidecar else {}
    if how.merge is not None:
        with Tensors(model, sidecar) as tensors:
            for layer_id, kept in plan.layers.items():
                changed |= merged_tensors(MoELayer.read(tensors, layer_id), kept, statistics, how)
                progress.layer(layer_id)
    if how.compensate:
        pieces = Corpus.load(statistics / CORPUS_FILE).pieces
        with TemporaryDirectory() as folder:
            so_far = Path(folder) / "merged.safetensors" if changed else None
            if so_far:
                save_file(changed, so_far)
            changed |= compensate(model, plan.layers, pieces, replaced=so_far, ridge=how.ridge, report=progress.fit)
    return changed


def merged_tensors(layer: MoELayer, kept: tuple[int, ...], statistics: Path, how: Refinement) -> dict[str, Tensor]:
    """The projections of a layer's kept experts that take others up, by name, in the checkpoint's dtype."""
    assert how.merge is not None
    x = sampled_inputs(statistics, layer.layer_id)
    merged = merge(layer, kept, x, method=how.merge, similarity=how.similarity)
    names = {(e, p): layer.name(e, p) for e in merged for p in PROJECTIONS}
    return {
        names[expert, projection]: matrix.to(layer.tensors.dtype(names[expert, projection])).contiguous()
        for expert, matrices in merged.items()
        for projection, matrix in zip(PROJECTIONS, matrices, strict=True)
    }


def save_refined(plan: PrunePlan, tensors: Mapping[str, Tensor], method: Mapping[str, Any], out: Path) -> PrunePlan:
    """Write the sidecar beside `out`, then the plan that names it. Raises OSError.

    `method` is added to the plan's own, and this process's command to the list `refined` of its provenance.
    """
    from safetensors.torch import save_file

    sidecar = out.with_name(f"{out.stem}.safetensors")
    replace_atomically(sidecar, lambda path: save_file(dict(tensors), path, metadata={"format": "pt"}))
    commands = [*plan.provenance.get("refined", []), ["moe-opt", *sys.argv[1:]]]
    refined = plan.model_copy(
        update={
            "weights": SidecarFile.of(sidecar),
            "method": {**plan.method, **method},
            "provenance": {**plan.provenance, "refined": commands},
        }
    )
    refined.save(out)
    return refined
