"""Distillation: the kept experts, routers and shared experts are trained to give the full model's next-token odds.

Minimises the mean over tokens of KL(full model || pruned model) over the vocabulary, with AdamW without weight decay, a
short warm-up and then a linear decay to zero (G. Hinton et al., arXiv 1503.02531). All other weights stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.files import replace_atomically
from sglang_moe_opt.pruning.moe_layer import Tensors
from sglang_moe_opt.pruning.student import load_teacher, make_student, pruned_layers

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""
BETAS = (0.9, 0.95)
MAX_GRADIENT = 1.0
LR_TIMES_WIDTH = 0.3
"""Default learning rate times the hidden size: what is best falls with a model's width (arXiv 2203.03466)."""
HELDOUT = 0.02
"""Share of the rows that are not trained on but measured, at most HELDOUT_ROWS of them."""
HELDOUT_ROWS = 64


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        tokens: in all; text is repeated where there is less.
        batch_tokens: of a step.
        row_tokens: texts are laid end to end and cut into rows of so many.
        micro_rows: rows whose activations exist at a time.
        lr: highest learning rate; None is LR_TIMES_WIDTH / hidden size.
        seed: of the order of the rows.

    Raises:
        FieldError: a value that is not allowed.
    """

    tokens: int = 1_000_000
    batch_tokens: int = 4096
    row_tokens: int = 512
    micro_rows: int = 4
    lr: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_tokens", "row_tokens", "micro_rows"):
            if (value := getattr(self, name)) < 1:
                raise FieldError(name, value, "at least 1")
        if self.batch_tokens % self.row_tokens:
            raise FieldError("batch_tokens", self.batch_tokens, f"multiples of row_tokens, {self.row_tokens}")
        if self.lr is not None and not 0 < self.lr < 1:
            raise FieldError("lr", self.lr, "a number above 0 and below 1")

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.batch_tokens)

    def factor(self, step: int) -> float:
        """On the learning rate in step 0, 1, ..."""
        warm_up = max(1.0, WARM_UP * self.steps)
        return min(1.0, (step + 1) / warm_up) * (1 - step / self.steps)


@dataclass(frozen=True)
class Report:
    """After so many steps: KL divergence of the last step, and on held-out rows where it was measured, in nats."""

    step: int
    divergence: float
    heldout: float | None = None


def distill(
    model: Path,
    kept: Mapping[int, Sequence[int]],
    pieces: Sequence[Any],
    recipe: Recipe,
    *,
    replaced: Path | None = None,
    state: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    save_every: int = 25,
    device: str = "cpu",
    report: Callable[[Report], None] = lambda report: None,
) -> dict[str, Tensor]:
    """The trained tensors by their names in the checkpoint, in its dtype, on the CPU.

    Args:
        model: folder of the full model, DeepSeek V2 or V3, unquantised.
        kept: layer id -> expert ids of every MoE layer.
        pieces: texts as token ids, begin token included.
        recipe: how to train.
        replaced: the plan's sidecar, whose tensors training begins with.
        state: file of the training's state, from which an interrupted one goes on; it is left there at the end.
        identity: what else decides the result; a state with another one is refused.
        save_every: steps between two writings of the state; one more is written on an interruption.
        device: of torch; beyond the CPU products are in bfloat16.
        report: called after every step.

    Raises:
        ValueError: a broken checkpoint, another architecture, too little text, a state of another training.
    """
    teacher = load_teacher(model, torch.float32 if device == "cpu" else torch.bfloat16, device)
    student = make_student(teacher, model, kept, replaced)
    layers = list(pruned_layers(student))
    rows, heldout = split_rows(pieces, recipe, teacher.device)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    lr = recipe.lr if recipe.lr is not None else LR_TIMES_WIDTH / teacher.config.hidden_size
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=BETAS, weight_decay=0.0)
    training = _State(state, {**asdict(recipe), **(identity or {})}, layers, optimizer)
    first = training.load()
    try:
        for step in range(first, recipe.steps):
            measured = divergence(teacher, student, heldout, recipe.micro_rows) if step == 0 else None
            batch = rows[batch_rows(len(rows), recipe, step)]
            loss = _step(teacher, student, batch, recipe)
            torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT)
            for group in optimizer.param_groups:
                group["lr"] = lr * recipe.factor(step)
            training.step = None
            optimizer.step()
            training.step = step + 1
            optimizer.zero_grad(set_to_none=True)
            if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
                training.save()
                measured = divergence(teacher, student, heldout, recipe.micro_rows)
            report(Report(step + 1, loss, measured))
    except KeyboardInterrupt:
        training.save()
        raise
    with Tensors(model) as own:
        return {
            name: tensor.to("cpu", own.dtype(name)).contiguous() for layer in layers for name, tensor in layer.tensors()
        }


def split_rows(pieces: Sequence[Any], recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    """Texts end to end as rows int64 [rows, row_tokens]: to train on, and held out. Raises ValueError."""
    ids = np.concatenate([np.asarray(piece) for piece in pieces]) if len(pieces) else np.zeros(0, np.int64)
    count = len(ids) // recipe.row_tokens
    heldout = min(HELDOUT_ROWS, max(1, int(count * HELDOUT)))
    if count - heldout < 1:
        raise ValueError(f"corpus: got {len(ids)} tokens, allowed: at least two rows of {recipe.row_tokens}")
    rows = torch.from_numpy(ids[: count * recipe.row_tokens].astype(np.int64)).view(count, -1).to(device)
    return rows[:-heldout], rows[-heldout:]


def batch_rows(count: int, recipe: Recipe, step: int) -> list[int]:
    """Numbers of a step's rows: every epoch takes all rows once, in an order of its own; pure, so nothing is kept."""
    size = recipe.batch_tokens // recipe.row_tokens
    numbers = range(step * size, (step + 1) * size)
    orders = {e: np.random.default_rng((recipe.seed, e)).permutation(count) for e in {n // count for n in numbers}}
    return [int(orders[number // count][number % count]) for number in numbers]


@torch.no_grad()
def divergence(teacher: Any, student: Any, rows: Tensor, micro_rows: int) -> float:
    """Mean KL divergence of the student from the teacher over the tokens of rows int64 [R, L], in nats."""
    total = sum(loss.item() for loss in _losses(teacher, student, rows, micro_rows))
    return total / rows.numel()


def _step(teacher: Any, student: Any, rows: Tensor, recipe: Recipe) -> float:
    """Add the gradient of a batch; its divergence."""
    total = 0.0
    for loss in _losses(teacher, student, rows, recipe.micro_rows):
        (loss / rows.numel()).backward()
        total += loss.item()
    return total / rows.numel()


def _losses(teacher: Any, student: Any, rows: Tensor, micro_rows: int) -> Iterator[Tensor]:
    """KL divergence summed over the tokens of a few rows at a time."""
    for part in rows.split(micro_rows):
        with torch.autocast(part.device.type, torch.bfloat16, enabled=part.device.type != "cpu"):
            with torch.no_grad():
                wanted = teacher(part, use_cache=False).logits
            found = student(part, use_cache=False).logits
        wanted, found = (logits.float().flatten(0, 1).log_softmax(-1) for logits in (wanted, found))
        yield F.kl_div(found, wanted, log_target=True, reduction="sum")


class _State:
    """Where a training stands, as a file."""

    def __init__(
        self, file: Path | None, identity: dict[str, Any], layers: Sequence[torch.nn.Module], optimizer: Any
    ) -> None:
        self.file, self.identity, self.layers, self.optimizer = file, identity, layers, optimizer
        self.step: int | None = 0  # None while a step is half done: nothing to go on from

    def load(self) -> int:
        """Go on from the file, if it is there; the number of steps that are done."""
        if self.file is None or not self.file.exists():
            return 0
        try:
            found = torch.load(self.file, weights_only=True)
            identity = found["identity"]
        except Exception as error:
            raise ValueError(
                f"{self.file}: unreadable state of a training ({type(error).__name__}); delete it"
            ) from None
        if other := sorted(name for name in self.identity if identity.get(name) != self.identity[name]):
            raise ValueError(
                f"{self.file}: an unfinished training with other arguments ({', '.join(other)}); finish it with those, "
                "or delete that file"
            )
        for layer, values in zip(self.layers, found["layers"], strict=True):
            layer.load_state_dict(values)
        self.optimizer.load_state_dict(found["optimizer"])
        done = self.step = int(found["step"])
        return done

    def save(self) -> None:
        if self.file is None or self.step is None:
            return
        content = {
            "identity": self.identity,
            "step": self.step,
            "layers": [layer.state_dict() for layer in self.layers],
            "optimizer": self.optimizer.state_dict(),
        }
        replace_atomically(self.file, lambda path: torch.save(content, path))
