"""The training loop: resumable to the token, logged as JSON lines, with a progress bar."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eval.reference_models.balance import balance_loss, max_over_mean
from eval.reference_models.checkpoint import Checkpoint
from eval.reference_models.data import TokenCorpus, TrainStream
from eval.reference_models.evaluate import quick_bits_per_byte
from eval.reference_models.handover import LOG_NAME, unpack
from eval.reference_models.model import ReferenceModel
from eval.reference_models.optim import Optimizers, learning_rate_scale
from eval.reference_models.recipe import Recipe
from eval.reference_models.router import SigmoidRouter


class Run:
    """One training run in its folder: model, optimisers and position in the data."""

    def __init__(self, recipe: Recipe, run_dir: Path, train: TokenCorpus, heldout: TokenCorpus | None) -> None:
        self.recipe, self.run_dir, self.heldout = recipe, run_dir, heldout
        self.stream = TrainStream(train, recipe)
        dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
        self.model = ReferenceModel(recipe.model, dtype)
        self.model.init_weights(recipe.seed)
        if recipe.train.compile:
            for layer in self.model.model.layers:
                layer.compile(dynamic=False)
        self.optimizers = Optimizers(self.model, recipe.optim)
        self.tokens = 0
        checkpoint = Checkpoint.load(run_dir) or unpack(recipe.unfinished_dir, run_dir)
        if checkpoint is not None:
            self._check_same_model(checkpoint)
            self.model.load_state_dict(checkpoint.model)
            if checkpoint.optimizers is not None:
                self.optimizers.load_state_dict(checkpoint.optimizers)
            self.tokens = checkpoint.tokens
        self._trim_log()

    def _check_same_model(self, checkpoint: Checkpoint) -> None:
        for part in ("model", "data", "seed"):
            mine = self.recipe.model_dump(mode="json")[part]
            if checkpoint.recipe[part] != mine:
                raise ValueError(
                    f"the checkpoint in {self.run_dir} was trained with another `{part}` section; "
                    f"restore the recipe or train in a new folder"
                )

    def _trim_log(self) -> None:
        """Forget log rows written after the checkpoint that the run continues from."""
        log = self.run_dir / LOG_NAME
        if log.exists():
            rows = [line for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            kept = [line for line in rows if json.loads(line)["tokens"] <= self.tokens]
            log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to the JSON-lines log."""
        with (self.run_dir / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def save(self) -> Path:
        """Write a checkpoint."""
        recipe = self.recipe.model_dump(mode="json")
        return Checkpoint(self.tokens, recipe, self.model.state_dict(), self.optimizers.state_dict()).save(self.run_dir)

    def step(self, total_tokens: int) -> dict[str, Any]:
        """One optimiser step; returns its log row."""
        started = time.perf_counter()
        spec, balance = self.recipe.train, self.recipe.balance
        inputs, targets = self.stream.batch(self.tokens, spec.batch_tokens)
        loss, routings = self.model.loss(inputs, targets)
        total = loss
        for routing in routings:
            total = total + balance.aux_loss_alpha * balance_loss(routing.probabilities, routing.counts)
            if balance.z_loss:
                total = total + balance.z_loss * routing.logits.logsumexp(dim=-1).square().mean()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.grad_clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"gradient norm is {norm.item()} at {self.tokens} tokens; lower the learning rate")
        self.tokens += spec.batch_tokens
        scale = learning_rate_scale(self.tokens, spec, total_tokens)
        self.optimizers.step(scale)
        for router, routing in zip(self.model.routers, routings, strict=True):
            if isinstance(router, SigmoidRouter):
                # The bias comes to rest with the weights, but not before them.
                router.rebalance(routing.counts, balance.bias_rate * min(1.0, 4 * scale))
        return {
            "tokens": self.tokens,
            "loss": round(loss.item(), 5),
            "lr": self.recipe.optim.muon_lr * scale,
            "grad_norm": round(norm.item(), 4),
            "tokens_per_s": round(spec.batch_tokens / (time.perf_counter() - started)),
            "load_max_over_mean": [round(max_over_mean(routing.counts), 3) for routing in routings],
        }


def train(
    recipe: Recipe,
    run_dir: Path,
    corpus: TokenCorpus,
    heldout: TokenCorpus | None = None,
    *,
    total_tokens: int | None = None,
    stop_at: int | None = None,
    threads: int | None = None,
    console: Console | None = None,
) -> Run:
    """Train until `total_tokens` (the recipe's unless given), resuming from the run folder's checkpoint.

    SIGTERM or SIGINT ends the run after the current step with a checkpoint; so does reaching `stop_at` tokens,
    which leaves the learning-rate schedule as it is. The process id is in `train.pid` while training.
    """
    console = console or Console()
    torch.set_num_threads(threads or recipe.train.threads)
    run_dir.mkdir(parents=True, exist_ok=True)
    pid_file = run_dir / "train.pid"
    pid_file.write_text(str(os.getpid()), encoding="utf-8")
    total = total_tokens or recipe.train.total_tokens
    end = min(total, stop_at or total)
    run = Run(recipe, run_dir, corpus, heldout)
    stopping: list[int] = []
    previous = {s: signal.signal(s, lambda number, _: stopping.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    spec = recipe.train
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[speed]} tok/s"),
    )
    console.print(f"{recipe.name}: from {run.tokens:,} to {end:,} of {total:,} tokens")
    try:
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(recipe.name, total=end, completed=run.tokens, loss=float("nan"), speed=0)
            while run.tokens < end and not stopping:
                row = run.step(total)
                if heldout is not None and _crossed(run.tokens, spec.batch_tokens, spec.eval_every_tokens):
                    bits = quick_bits_per_byte(run.model, heldout, recipe.data.sequence_length)
                    row["heldout_bpb"] = round(bits, 4)
                    console.print(f"{run.tokens:,} tokens: loss {row['loss']:.3f}, held-out {bits:.4f} bits/byte")
                run.log(row)
                progress.update(bar, completed=run.tokens, loss=row["loss"], speed=row["tokens_per_s"])
                if _crossed(run.tokens, spec.batch_tokens, spec.checkpoint_every_tokens):
                    run.save()
        run.save()
    finally:
        pid_file.unlink(missing_ok=True)
        for number, handler in previous.items():
            signal.signal(number, handler)
    return run


def _crossed(tokens: int, step: int, interval: int) -> bool:
    """Whether the last step of `step` tokens passed a multiple of `interval`."""
    return tokens // interval > (tokens - step) // interval
