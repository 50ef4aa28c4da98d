"""`moe-opt schedule calibrate`: thresholds of min_ratio, min_weight or top_p for a mean number of experts."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglang_moe_opt.cli.values import number_or_word, numbers
from sglang_moe_opt.fields import FieldError

if TYPE_CHECKING:
    from sglang_moe_opt.magnitude.budget import Budget, Round
    from sglang_moe_opt.model_shape import MoEShape
    from sglang_moe_opt.schedule import SkipSchedule

    Measure = Callable[[SkipSchedule], float]


def calibrate(
    model: Annotated[str, typer.Option(help="The model: folder, Hugging Face id, mini-v2, mini-v3.")],
    statistics: Annotated[Path, typer.Option(help="Folder that moe-opt calibrate wrote, with its sampled inputs.")],
    mean_na: Annotated[float | None, typer.Option(help="Experts per token, on average over tokens and layers.")] = None,
    rule: Annotated[str, typer.Option(help="min_ratio, min_weight or top_p.")] = "min_weight",
    min_na: Annotated[int, typer.Option(min=1, help="Experts that every token keeps.")] = 1,
    rescale: Annotated[
        str, typer.Option(help="router, mass, a factor, or fit: each layer's factor by least squares.")
    ] = "fit",
    per_layer: Annotated[
        bool,
        typer.Option("--per-layer/--one-threshold", help="Each layer the same mean, or one threshold for all layers."),
    ] = True,
    layer_na: Annotated[
        str | None, typer.Option(help="Instead of --mean-na, a mean for each MoE layer: 4,3,...")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Use so many of the sampled tokens. Default: all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of tokens.")] = 0,
    check_tokens: Annotated[
        int, typer.Option(min=0, help="Of the calibration's text, sent through the engine each round; 0: no engine.")
    ] = 16384,
    corrections: Annotated[int, typer.Option(min=0, help="Rounds after the first, at most.")] = 2,
    url: Annotated[
        str | None, typer.Option(help="A running server of the model, otherwise idle. Default: an own one.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Number format of the own server.")] = "auto",
    profile: Annotated[str | None, typer.Option(help="Write the schedule under this name into --policy.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file to write --profile into.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="--policy may have this profile already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the thresholds for which tokens keep so many experts on average, and check that through the engine.

    The sample has the full model's inputs; dropped experts change those of later layers. What the engine keeps is
    therefore measured, and the thresholds are moved by the difference.
    """
    # Threads that spin while they wait take the cores from what else runs here; torch reads it when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from sglang_moe_opt.cli.prune_export import local_checkpoint
    from sglang_moe_opt.magnitude.budget import Search, best
    from sglang_moe_opt.magnitude.sample import check_folder, draw_rows, fit_factors, output_products, router_weights
    from sglang_moe_opt.model_shape import MoEShape, read_config
    from sglang_moe_opt.policy_file import add_profile, check_profile

    start = time.monotonic()
    if (profile is None) != (policy is None):
        raise FieldError("--profile", profile, "together with --policy FILE")
    if profile is not None and policy is not None:
        check_profile(policy, profile, replace=replace)
    budget = _budget(rule, mean_na, layer_na, min_na, rescale, per_layer)
    folder = local_checkpoint(model)
    shape = MoEShape.from_config(read_config(folder))
    _check(budget, shape)
    check_folder(folder, statistics)
    rows = draw_rows(folder, statistics, tokens, seed)
    weights = router_weights(folder, statistics, rows)
    products = functools.cache(lambda: output_products(folder, statistics, rows))
    budget.thresholds(weights)  # what cannot be met is said before a server starts
    with _measure(model, statistics, shape, check_tokens, url, dtype) as measure:
        search = Search(
            budget=budget,
            weights=weights,
            expand=lambda schedule: schedule.expand(shape),
            fit=lambda table: fit_factors(weights, products(), table),
            measure=measure,
            corrections=corrections,
            report=lambda done: None if as_json else typer.echo(_line(done), err=True),
        )
        rounds = search.run()
    chosen = best(rounds, budget.mean_na)
    if profile is not None and policy is not None:
        add_profile(
            policy, profile, chosen.schedule.to_object(), replace=replace, comment=_comment(chosen, weights.tokens)
        )
    report: dict[str, Any] = {
        "model": model,
        "budget": {"mean_na": round(budget.mean_na, 4), "layer_na": budget.layer_na, "min_na": min_na},
        "tokens": weights.tokens,
        "seed": seed,
        "digest": chosen.schedule.expand(shape).digest,
        **chosen.to_object(),
        "rounds": [one.to_object() for one in rounds],
        "profile": profile,
        "policy": str(policy) if policy else None,
        "seconds": round(time.monotonic() - start, 1),
    }
    typer.echo(json.dumps(report) if as_json else _text(report))


def _budget(
    rule: str, mean_na: float | None, layer_na: str | None, min_na: int, rescale: str, per_layer: bool
) -> Budget:
    from sglang_moe_opt.magnitude.budget import Budget

    if (mean_na is None) == (layer_na is None):
        raise FieldError("--mean-na", mean_na, "either --mean-na or --layer-na")
    options: dict[str, Any] = {"min_na": min_na, "rescale": number_or_word(rescale)}
    if layer_na is None:
        return Budget(rule, mean_na, scope="layers" if per_layer else "one", **options)  # type: ignore[arg-type]
    each = tuple(numbers("--layer-na", layer_na, float))
    return Budget.of_layers(rule, each, **options)  # type: ignore[arg-type]


def _check(budget: Budget, shape: MoEShape) -> None:
    if not budget.min_na <= budget.mean_na <= shape.top_k:
        allowed = f"a number from {budget.min_na} (--min-na) to {shape.top_k}, the model's top-k"
        raise FieldError("--mean-na", budget.mean_na, allowed)
    if budget.layer_na is not None and len(budget.layer_na) != shape.num_moe_layers:
        raise FieldError("--layer-na", list(budget.layer_na), f"{shape.num_moe_layers} numbers, one per MoE layer")


@contextmanager
def _measure(
    model: str, statistics: Path, shape: MoEShape, check_tokens: int, url: str | None, dtype: str
) -> Iterator[Measure | None]:
    """What measures the realised mean on the calibration's text; None without an engine."""
    if check_tokens == 0:
        yield None
        return
    from rich.console import Console

    from loadtest.servers import end_on_sigterm
    from sglang_moe_opt.cli.own_server import own_server
    from sglang_moe_opt.magnitude.realised import first_pieces, realised
    from sglang_moe_opt.pruning.corpus import Corpus
    from sglang_moe_opt.pruning.statistics import CORPUS_FILE

    pieces = first_pieces(Corpus.load(statistics / CORPUS_FILE).pieces, check_tokens)

    def measure_at(address: str) -> Measure:
        return lambda schedule: realised(address, schedule.to_object(), pieces, shape.top_k).mean_na

    if url is not None:
        yield measure_at(url)
        return
    end_on_sigterm()
    with own_server(model, None, ["--dtype", dtype], Console(stderr=True)) as address:
        yield measure_at(address)


def _comment(chosen: Round, tokens: int) -> str:
    """What a reader of the policy should know of the thresholds."""
    if chosen.realised is None:
        return f"{sum(chosen.sample_na) / len(chosen.sample_na):.2f} experts on average of {tokens} sampled tokens"
    return f"{chosen.realised:.2f} experts on average through the engine"


def _line(done: Round) -> str:
    kept = f"{sum(done.sample_na) / len(done.sample_na):.3f} on the sample"
    return f"mean na {kept}" + ("" if done.realised is None else f", {done.realised:.3f} through the engine")


def _text(report: dict[str, Any]) -> str:
    layers = " ".join(f"{value:.2f}" for value in report["sample_na"])
    lines = [json.dumps(report["schedule"]), f"experts by layer, on the sample: {layers}"]
    if report["realised_mean_na"] is not None:
        lines.append(f"mean na through the engine: {report['realised_mean_na']:g}")
    if report["profile"]:
        lines.append(f"profile {report['profile']} written to {report['policy']}")
    return "\n".join(lines)
