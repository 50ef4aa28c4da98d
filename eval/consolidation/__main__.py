"""`python -m eval.consolidation`: measure, go on where an earlier call ended, and write JSON and PNG."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from eval.consolidation.arms import Arm, cloze_arms, standard_arms
from eval.consolidation.figure import png
from eval.consolidation.model import BatchedModel
from eval.consolidation.summary import Measured, from_record, summarise, to_record
from eval.consolidation.texts import CLOZE_LEAD, PROMPT_TOKENS, TEXT_TOKENS, cloze_batches, text_batches
from eval.heldout import cloze_items, load_heldout, text_items
from sglang_moe_opt.files import write_atomically
from sglang_moe_opt.shape_checkpoint import cache_root

CHECKPOINTS = Path(__file__).parents[1] / "reference_models" / "checkpoints"


class OutOfTimeError(Exception):
    """The time of this call is over; what it measured is kept."""


def main(argv: list[str] | None = None) -> int:
    """Run; the exit status is 0 once everything is measured, 3 where another call must go on."""
    options = _options(argv)
    try:
        folder = CHECKPOINTS / options.model
        journal = (
            options.journal or cache_root() / "consolidation" / f"{options.model}-{options.texts}-{options.cloze}.json"
        )
        run = _Run(folder, options, journal)
        result = run.result()
    except OutOfTimeError as error:
        print(error, file=sys.stderr)
        return 3
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_atomically(options.out, json.dumps(result, indent=1) + "\n")
    write_atomically(options.out.with_suffix(".png"), png(options.model, result["by_batch"]))
    if options.json:
        print(json.dumps(result))
    else:
        _print(result)
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m eval.consolidation", description=__doc__)
    parser.add_argument("--model", choices=("mini-v2", "mini-v3"), required=True)
    parser.add_argument("--data-dir", type=Path, required=True, help="where the prepared data are")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the figure lies beside it")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--texts", type=int, default=256, help=f"of {TEXT_TOKENS} tokens, a multiple of every batch")
    parser.add_argument(
        "--cloze", type=int, default=480, help="items, a multiple of every batch; 0 leaves the task out"
    )
    parser.add_argument("--journal", type=Path, help="what is measured so far (default: in the cache folder)")
    parser.add_argument("--max-seconds", type=float, default=float("inf"), help="begin no arm after this time")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser.parse_args(argv)


class _Run:
    """Measures arm by arm; each is written down at once."""

    def __init__(self, folder: Path, options: argparse.Namespace, journal: Path) -> None:
        largest = max(options.batch)
        if options.texts < 2 * largest:
            raise ValueError(f"texts: got {options.texts}, allowed: {2 * largest} or more; one batch has no interval")
        for size in options.batch:
            if size < 2 or options.texts % size or options.cloze % size or largest % size:
                allowed = f"a divisor of {options.texts} texts, of {options.cloze} items and of {largest}"
                raise ValueError(f"batch: got {size}, allowed: {allowed}")
        self._options, self._journal = options, journal
        self._done: dict[str, Any] = json.loads(journal.read_text()) if journal.exists() else {}
        self._start = time.monotonic()
        self._model = BatchedModel(folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        documents = load_heldout(options.data_dir)
        items = text_items(documents)
        self._texts = {
            size: text_batches(tokenizer, items, size, options.texts // size) for size in sorted(options.batch)
        }
        cloze = cloze_items(documents)[: options.cloze]
        self._cloze = {size: cloze_batches(tokenizer, cloze, size) for size in sorted(options.batch)}
        self._labels = [item.label for item in cloze]

    def result(self) -> dict[str, Any]:
        """Everything, as JSON-ready rows by batch size. Raises OutOfTimeError."""
        shape, sizes = self._model.shape, sorted(self._options.batch)
        plain, joint = standard_arms(shape.top_k, shape.num_experts, shape.n_group)
        for arm in plain:
            self._measure(arm, sizes)
        for size in sizes:
            for arm in joint:
                self._measure(arm, [size])
        if self._options.cloze:
            for arm in cloze_arms(plain, joint):
                for size in sizes if arm.k0 else sizes[-1:]:
                    self._answer(arm, size)
        by_batch = {
            str(size): summarise(
                [self._measured(arm, size) for arm in plain], [self._measured(arm, size) for arm in joint]
            )
            for size in sizes
        }
        return {
            "model": self._options.model,
            "top_k": shape.top_k,
            "experts": shape.num_experts,
            "groups": shape.n_group,
            "texts": self._options.texts,
            "tokens_per_text": {"prompt": PROMPT_TOKENS, "decoded": TEXT_TOKENS - PROMPT_TOKENS},
            "cloze": {"items": len(self._labels), "decoded_before": CLOZE_LEAD},
            "command": f"python -m eval.consolidation --model {self._options.model} --data-dir DIR --batch "
            + " ".join(map(str, sizes))
            + f" --texts {self._options.texts} --cloze {self._options.cloze} --out FILE",
            "by_batch": by_batch,
        }

    def _measured(self, arm: Arm, size: int) -> Measured:
        largest = max(self._options.batch)
        right = self._done.get(f"cloze {size if arm.k0 else largest} {arm.name}")
        return from_record({**self._done[f"text {size} {arm.name}"], **({"right": right} if right else {})})

    def _measure(self, arm: Arm, sizes: list[int]) -> None:
        """Held-out text. Where tokens do not consolidate, one pass tells of all batch sizes."""
        if all(f"text {size} {arm.name}" in self._done for size in sizes):
            return
        self._check_time()
        texts = self._texts[sizes[-1]]
        nats, counts = zip(*(self._model.nats(batch, arm, sizes) for batch in texts.batches), strict=True)
        by_text, n_bytes = torch.cat(nats).numpy(), np.concatenate(texts.n_bytes)
        for size in sizes:
            measured = Measured(
                arm.name,
                np.mean([count[size] for count in counts], axis=0),
                by_text.reshape(-1, size).sum(axis=1),
                n_bytes.reshape(-1, size).sum(axis=1).astype(np.float64),
            )
            self._keep(f"text {size} {arm.name}", to_record(measured))

    def _answer(self, arm: Arm, size: int) -> None:
        """Cloze: 1 for each item whose right choice is the likeliest, else 0."""
        key = f"cloze {size} {arm.name}"
        if key in self._done:
            return
        self._check_time()
        answers: list[int] = []
        for choices in self._cloze[size]:
            nats = torch.stack([self._model.nats(batch, arm)[0] for batch in choices])
            answers += nats.argmin(0).tolist()
        labels = self._labels[: len(answers)]
        self._keep(key, [float(a == label) for a, label in zip(answers, labels, strict=True)])

    def _check_time(self) -> None:
        if time.monotonic() - self._start > self._options.max_seconds:
            raise OutOfTimeError(f"{len(self._done)} measurements are done; the same command goes on")

    def _keep(self, key: str, value: Any) -> None:
        self._done[key] = value
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._journal, json.dumps(self._done))
        print(f"{time.monotonic() - self._start:.0f} s: {key}", file=sys.stderr)


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    for batch, rows in result["by_batch"].items():
        table = Table(title=f"{result['model']}, {batch} sequences a step")
        for name in ("arm", "distinct", "bits/byte", "change", "against plain at the same number", "cloze"):
            table.add_column(name, justify="left" if name == "arm" else "right")
        for row in rows:
            plain = row.get("against_plain")
            table.add_row(
                row["arm"],
                f"{row['distinct_experts']:.1f}",
                f"{row['bits_per_byte']:.4f}",
                _change(row["change_percent"]),
                _change(plain and plain["change_percent"]),
                f"{row['cloze_percent']:.1f}" if "cloze_percent" in row else "",
            )
        Console(width=120).print(table)


def _change(change: dict[str, Any] | None) -> str:
    if not change:
        return ""
    low, high = change["interval"]
    return f"{change['value']:+.2f} % ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    raise SystemExit(main())
