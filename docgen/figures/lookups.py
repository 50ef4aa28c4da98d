"""What the sentences of several pages look up in the result files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from docgen.results import ROOT, load, pick
from docgen.tables.speed import LOADTEST, load_point

REFERENCE_MODELS = ROOT / "eval" / "reference_models"
MINI = ("mini-v2", "mini-v3")


def ends(values: Iterable[float]) -> Mapping[str, float]:
    """The least and the largest of them, as `low` and `high`."""
    found = list(values)
    return {"low": min(found), "high": max(found)}


def schedule(run: str, label: str) -> Any:
    """One schedule or plan of an evaluation."""
    return pick(load(f"{run}/summary.json")["schedules"], label=label)


def loss(run: str, label: str) -> float:
    """Percent of bits per byte over full."""
    return float(schedule(run, label)["bits_per_byte"]["change"]["value"])


def guessed(run: str) -> int:
    """Benchmarks of the average on which the full model is not better than guessing."""
    return sum(task["in_average"] and not task["full_beats_chance"] for task in load(f"{run}/summary.json")["tasks"])


def explained(c: int, arm: str = "full", file: str = LOADTEST) -> Any:
    """What its decode steps were bound by."""
    return pick(load(file)["explanation"]["points"], arm=arm, load=f"c{c}")


def speedup(c: int, arm: str, file: str = LOADTEST) -> float:
    """Of total tok/s over the first curve, the median of the rounds."""
    return float(load_point(c, arm, file)["speedup"]["total_tok_s"]["median"])


def requests(file: str = LOADTEST) -> Mapping[str, int]:
    """How many a load test sent."""
    counts = [round(sum(found["metrics"]["requests"]["all"])) for found in load(file)["points"]]
    return {"requests": sum(counts)}


def six_benchmarks() -> Mapping[str, float]:
    """Items and seconds of the six benchmarks of one schedule on mini-v2."""
    run = load("six_benchmarks_mini_v2.json")
    seconds = run["seconds"]
    return {
        "items": sum(task["items"] for task in run["tasks"]),
        "total": sum(seconds.values()),
        "boolq": seconds["full/boolq"],
        "arc": seconds["full/arc_easy"],
    }


def training(model: str) -> Any:
    """How a reference model was trained."""
    return load(str(REFERENCE_MODELS / "checkpoints" / model / "training.json"))


def parameters() -> Mapping[str, float]:
    """Of the larger reference model, in millions."""
    return {"parameters": max(training(model)["parameters"] for model in MINI) / 1e6}


def distilled() -> Mapping[str, float]:
    """Millions of tokens that the plans with half of the experts were distilled on, and their share of the training."""
    plans = [load(str(REFERENCE_MODELS / "plans" / f"{model}-half.json")) for model in MINI]
    tokens = [plan["method"]["distill"]["tokens"] for plan in plans]
    shares = ends(100 * count / training(model)["tokens"] for count, model in zip(tokens, MINI, strict=True))
    return {"v2": tokens[0] / 1e6, "v3": tokens[1] / 1e6, **shares}


def sharing_loss(model: str, size: int, arm: str) -> float:
    """Percent of bits per byte over the full model, so many requests decoding side by side."""
    found = pick(load(f"consolidation_{model}.json")["by_batch"][str(size)], arm=arm)
    return float(found["change_percent"]["value"])
