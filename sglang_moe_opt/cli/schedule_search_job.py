"""What `moe-opt schedule search` is asked to do on a model: everything that can be wrong is found before it starts."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sglang_moe_opt.cli.corpus import read_corpus
from sglang_moe_opt.cli.serve import hub_config, resolve_model
from sglang_moe_opt.fields import FieldError, is_number
from sglang_moe_opt.files import read_json, write_atomically
from sglang_moe_opt.model_shape import MoEShape, read_config
from sglang_moe_opt.schedule_limits import MAX_RESCALE, MIN_RESCALE

if TYPE_CHECKING:
    from rich.console import Console

    from sglang_moe_opt.perfmodel.parameters import Parameters
    from sglang_moe_opt.perfmodel.step import Setup
    from sglang_moe_opt.policy import Policy
    from sglang_moe_opt.search.budget import Budget
    from sglang_moe_opt.search.by_weight import Sample
    from sglang_moe_opt.search.outcome import Settings
    from sglang_moe_opt.search.sensitivity import Ids

MANIFEST: Final = "manifest.json"
CHECK_SHARE: Final = 3
"""The text that decides is so many times as long as the one to fit on: intervals come from it."""


@dataclass(frozen=True)
class Order:
    """What the user asked for; see the options of `moe-opt schedule search`."""

    model: str | None
    corpus: str | None
    data_dir: Path | None
    url: str | None
    budgets: dict[str, Any]
    concurrency: int
    context: int
    hardware: str | None
    tp: int
    statistics: Path | None
    rescale: str
    profile: str | None
    policy: Path | None
    replace: bool
    out: Path | None
    tokens: int
    piece: int
    mixes: int
    minutes: float
    seed: int
    dtype: str


@dataclass(frozen=True)
class Job:
    """What is searched for, checked before anything is started; `sample` where weights are to be tried."""

    model: str
    path: str
    shape: MoEShape
    policy: Policy
    budget: Budget
    max_loss: float | None
    settings: Settings
    fit_pieces: list[Ids]
    check_pieces: list[Ids]
    sample: Sample | None
    dtype: str
    out: Path
    identity: dict[str, Any]

    def open(self) -> None:
        """Begin in a new folder or go on in one of the same job. Raises ValueError."""
        file = self.out / MANIFEST
        if not file.exists():
            if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
                raise ValueError(f"--out: {self.out} holds something else, allowed: a new or empty folder")
            self.write_manifest({})
            return
        before = self.read_manifest().get("job", {})
        for key, value in self.identity.items():
            if before.get(key) != value:
                raise ValueError(
                    f"--out: {self.out} was begun with {key} {before.get(key)}, not {value}; "
                    "repeat that command, or choose another folder"
                )

    def read_manifest(self) -> dict[str, Any]:
        """Raises FieldError where it cannot be read."""
        content = read_json(self.out / MANIFEST, "--out")
        return content if isinstance(content, dict) else {}

    def add_seconds(self, seconds: float) -> float:
        """Write down how long a run took, also one that was interrupted; the sum of all."""
        spent = [*self.read_manifest().get("seconds", []), round(seconds, 1)]
        self.write_manifest({"seconds": spent})
        return float(sum(spent))

    def write_manifest(self, more: dict[str, Any]) -> None:
        """Write what was asked for, and `more` where there is more to say."""
        content = {"job": self.identity, **more, "command": ["moe-opt", *sys.argv[1:]]}
        write_atomically(self.out / MANIFEST, json.dumps(content, indent=2) + "\n")


def prepare(order: Order, model: str, corpus: str, console: Console) -> Job:
    """Everything that can be wrong is found here. Raises ValueError."""
    from sglang_moe_opt.checkpoint_id import fingerprint
    from sglang_moe_opt.policy import Policy
    from sglang_moe_opt.policy_file import check_profile
    from sglang_moe_opt.search.budget import parse_percent
    from sglang_moe_opt.search.outcome import Settings

    path = resolve_model(model)
    config = read_config(path if Path(path).is_dir() else hub_config(path))
    shape = MoEShape.from_config(config)
    longest = config.get("max_position_embeddings", order.piece + 1)
    if order.piece >= longest:
        raise FieldError("--piece", order.piece, f"below the model's context of {longest} tokens")
    rescale = _rescale(order.rescale)
    if order.policy is not None and order.profile is not None:
        check_profile(order.policy, order.profile, replace=order.replace)
    rules = Policy.load(order.policy) if order.policy is not None and order.policy.exists() else Policy()
    lowest = rules.limits(shape).min_na
    budget = _budget(order, shape, lowest)
    max_loss = parse_percent(order.budgets["max_loss"]) if budget.kind == "max_loss" else None
    sample = None if order.statistics is None else _sample(order.statistics, model, shape, budget)
    with console.status("reading the corpus"):
        whole = read_corpus(
            corpus,
            path,
            order.data_dir,
            vocab_size=shape.vocab_size,
            piece=order.piece,
            tokens=(1 + CHECK_SHARE) * order.tokens,
            seed=order.seed,
        )
    pieces = [one for one in whole.pieces if len(one) > 1]
    cut = _cut(pieces, whole.tokens // (1 + CHECK_SHARE))
    identity = {
        "model_name": model,
        "model": fingerprint(config, Path(path) if Path(path).is_dir() else None),
        "corpus": corpus,
        "corpus_sha256": whole.sha256,
        "tokens": whole.tokens,
        "budget": {"kind": budget.kind, "wanted": max_loss or budget.wanted},
        "rescale": rescale,
        "min_na": lowest,
        "seed": order.seed,
        "mixes": order.mixes,
        "dtype": order.dtype,
    }
    return Job(
        model=model,
        path=path,
        shape=shape,
        policy=rules,
        budget=budget,
        max_loss=max_loss,
        settings=Settings(mixes=order.mixes, rescale=rescale, seconds=60 * order.minutes, seed=order.seed),
        fit_pieces=pieces[:cut],
        check_pieces=pieces[cut:],
        sample=sample,
        dtype=order.dtype,
        out=order.out or Path("results") / f"search-{datetime.now():%Y%m%d-%H%M%S}",
        identity=identity,
    )


def _budget(order: Order, shape: MoEShape, lowest: int) -> Budget:
    from sglang_moe_opt.search import budget

    names = {name: "--" + name.replace("_", "-") for name in order.budgets}
    given = [name for name, value in order.budgets.items() if value is not None]
    if len(given) != 1:
        raise FieldError("budget", [names[name] for name in given], "exactly one of " + ", ".join(names.values()))
    value = order.budgets[given[0]]
    if given[0] == "mean_na":
        return budget.of_mean_na(value, shape, lowest)
    if given[0] == "bytes_per_token":
        return budget.of_bytes(budget.parse_bytes(value), shape, lowest)
    if given[0] == "max_loss":
        return budget.of_everything(shape, lowest)
    setup, parameters = _setup(order)
    return budget.of_tok_s(value, setup, parameters, lowest, tokens=order.concurrency, context=order.context)


def _setup(order: Order) -> tuple[Setup, Parameters]:
    """What `moe-opt predict` takes the model and the hardware for. Raises FieldError."""
    from sglang_moe_opt.cli.devices import find_devices
    from sglang_moe_opt.perfmodel.model import find_model
    from sglang_moe_opt.perfmodel.parameters import Fitted
    from sglang_moe_opt.perfmodel.step import Setup

    if order.hardware is None:
        raise FieldError("--hardware", None, "a machine for --tok-s: a800-pcie, h100, h200, b200, this, or a file")
    device, split = find_devices(order.hardware, order.tp)
    setup = Setup(find_model(resolve_model(order.model or "")), device, split)
    return setup, Fitted.default(device.kind).values


def predicted_tok_s(order: Order, layers: Sequence[int]) -> float:
    """Generated tokens a second under a schedule, by the cost model."""
    from sglang_moe_opt.search.budget import step_seconds

    setup, parameters = _setup(order)
    return order.concurrency / step_seconds(setup, parameters, layers, order.concurrency, order.context)


def _sample(statistics: Path, model: str, shape: MoEShape, budget: Budget) -> Sample:
    """Router weights of a calibration of this model. Raises ValueError."""
    from sglang_moe_opt.cli.prune_export import local_checkpoint
    from sglang_moe_opt.magnitude.sample import check_folder, fit_factors, output_products, router_weights
    from sglang_moe_opt.search.by_weight import Sample

    if budget.kind != "mean_na":
        raise FieldError("--statistics", str(statistics), "only with --mean-na: weights keep a mean number of experts")
    folder = local_checkpoint(model)
    check_folder(folder, statistics)
    weights = router_weights(folder, statistics)
    products = functools.cache(lambda: output_products(folder, statistics))
    return Sample(
        weights,
        expand=lambda schedule: schedule.expand(shape),
        fit=lambda table: fit_factors(weights, products(), table),
    )


def _rescale(text: str) -> float | str:
    if text in ("router", "mass", "auto"):
        return text
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not is_number(value) or not MIN_RESCALE <= value <= MAX_RESCALE:
        raise FieldError("--rescale", text, f"router, mass, auto, or a number from {MIN_RESCALE:g} to {MAX_RESCALE:g}")
    return value


def _cut(pieces: list[Ids], tokens: int) -> int:
    """How many pieces make about so many tokens; both sides get two at least. Raises ValueError."""
    if len(pieces) < 4:
        raise FieldError("--corpus", f"{len(pieces)} pieces", "at least 4: more text, or a smaller --piece")
    total, count = 0, 0
    while total < tokens and count < len(pieces) - 2:
        total += len(pieces[count])
        count += 1
    return max(2, count)
