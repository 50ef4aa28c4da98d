"""The cost model beside measurements, the surrogates of the search, and what an auto profile chooses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from docgen.results import RESULTS, load, table
from docgen.tables.speed import CAPPED, SHARED
from sglang_moe_opt.auto.speedup import SpeedModel
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy
from sglang_moe_opt.shapes import ShapeSpec

PARAMETERS = (
    ("bandwidth efficiency", "bandwidth_efficiency", 1, 2),
    ("attention efficiency", "attention_efficiency", 1, 2),
    ("flops efficiency", "flops_efficiency", 1, 2),
    ("overlap", "overlap", 1, 2),
    ("kernel overhead, us", "kernel_overhead_s", 1e6, 1),
    ("step overhead, ms", "step_overhead_s", 1e3, 1),
    ("sequence overhead, us", "sequence_overhead_s", 1e6, 0),
)


def _source(name: str) -> Any:
    return load("perfmodel_validation.json")["sources"][name]


def fitted_parameters() -> str:
    """What comes with the package, and its intervals."""
    gpu, cpu = (_source(name)["fitted"] for name in ("table8", "loadtest_v2_lite"))
    rows = [[head, *(_fitted(fit, key, scale, n) for fit in (gpu, cpu))] for head, key, scale, n in PARAMETERS]
    rows.append(["routing skew", _fitted(gpu, "routing_skew", 1, 2), "0, held: random weights"])
    return table(["", "GPU", "CPU"], rows)


def _fitted(fit: Mapping[str, Any], key: str, scale: float, decimals: int) -> str:
    value, (low, high) = fit["parameters"][key], fit["intervals_95"][key]
    return f"{scale * value:.{decimals}f} ({scale * low:.{decimals}f}-{scale * high:.{decimals}f})"


def table8_errors() -> str:
    """Errors of predicted speed-ups on the paper's Table 8."""
    errors = _source("table8")["errors"]
    arms = ("na5", "na4", "na3", "na2", "others")
    heads = ["", *(f"na {arm[2:]}" for arm in arms[:-1]), f"all {errors['others']['points']:.0f}"]
    kinds = (("median", "speedup_median"), ("largest", "speedup_max"))
    return table(heads, [[name, *(_percent(errors[arm][key]) for arm in arms)] for name, key in kinds])


def half_of_the_experts_predicted() -> str:
    """Speed-up of 32 of 64 experts, published and predicted."""
    points = _source("table8")["half_of_the_experts"]
    rows = [[kind, *(f"{point[kind]:.2f}" for point in points.values())] for kind in ("published", "predicted")]
    return table(["c", *points], rows)


def loadtest_errors() -> str:
    """Errors of predicted rates and speed-ups on the published load test."""
    return _errors(_source("loadtest_v2_lite")["errors"], {"na=4": "na 4", "na=2": "na 2"})


def pruned_speed_errors() -> str:
    """The same for pruned models: with the load test's parameters as they are, and fitted to the whole model."""
    found = _source("pruned_speed")
    heads = {name: name for name in ("48", "32", "16")} | {"others": f"all {found['errors']['others']['points']:.0f}"}
    kept, fitted = (_error_rows(found[key], heads) for key in ("errors_without_fitting", "errors"))
    return table(["", *heads.values()], [*kept, *([f"fitted: {head}", *cells] for head, *cells in fitted)])


def consolidation_predicted() -> str:
    """Speed-ups of consolidating arms over full, measured and predicted in their load tests' reports."""
    rows = []
    arms = (("two own experts", "own2", SHARED), ("one", "own1", SHARED), ("one, cap of 32", "own1", CAPPED))
    for head, arm, file in arms:
        points = {point["load"]: point for point in load(file)["explanation"]["points"] if point["arm"] == arm}
        pairs = [points.get(c) for c in ("c16", "c32", "c64")]
        cells = [f"{p['measured_speedup']:.2f} / {p['predicted_speedup']:.2f}" if p else "" for p in pairs]
        rows.append([head, *cells])
    return table(["measured / predicted", "c = 16", "32", "64"], rows)


def _errors(errors: Mapping[str, Any], heads: Mapping[str, str]) -> str:
    return table(["", *heads.values()], _error_rows(errors, heads))


def _error_rows(errors: Mapping[str, Any], arms: Iterable[str]) -> list[list[str]]:
    kinds = (("tok/s off, median (largest)", "tok_s"), ("speed-up off, median (largest)", "speedup"))
    return [[head, *(_both(errors[arm], key) for arm in arms)] for head, key in kinds]


def _both(errors: Mapping[str, float], key: str) -> str:
    return f"{_percent(errors[f'{key}_median'])} ({_percent(errors[f'{key}_max'])})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def surrogates() -> str:
    """Surrogates of measured scores, fitted on a random half of Table 10."""
    rows = []
    for found in load("search_measured.json")["surrogates"]:
        error, coverage, regret = found["mean_absolute_error"], found["coverage"], found["regret"]
        cells = [
            f"{error['mean']:.3f}",
            f"{error['max']:.3f}",
            f"{100 * coverage['mean']:.1f} %",
            f"{100 * coverage['min']:.0f} %",
        ]
        cells += [f"{found['half_width']['mean']:.2f}", f"{regret['mean']:.2f}", f"{regret['max']:.2f}"]
        rows.append([found["surrogate"], *cells])
    return table(["surrogate", "error", "worst", "coverage", "worst", "width", "regret", "worst"], rows)


def speed_models() -> tuple[SpeedModel, SpeedModel]:
    """What full, na 4 and na 2 gain on V2-Lite: as the published load test measured it, and as the roofline has it."""
    shape = MoEShape.from_config(ShapeSpec.parse("deepseek-v2-lite@5").config())
    policy = Policy.from_object(
        {
            "profiles": {
                "four": {"na": 4},
                "two": {"na": 2},
                "measured": {"auto": {"levels": ["full", "four", "two"], "speedup": "loadtest_v2_lite/summary.json"}},
                "predicted": {
                    "auto": {"levels": ["full", "four", "two"], "machine": {"read_gb_s": 2000, "peak_tflops": 600}}
                },
            }
        },
        folder=RESULTS,
    )
    measured, predicted = (policy.autos[name].speed_model(shape, policy.min_na) for name in ("measured", "predicted"))
    return measured, predicted


def auto_levels() -> str:
    """What an auto profile with the levels full, na 4, na 2 chooses when all requests opted in."""
    measured, predicted = speed_models()
    names = ("full", "na 4", "na 2")
    rows = []
    for n in (1, 8, 32, 64, 128, 256):
        gains = [" / ".join(f"{speed:.2f}" for speed in model.speeds(n, n)[1:]) for model in (measured, predicted)]
        chosen = [names[measured.best(n, n, gain)] for gain in (1.03, 1.2)]
        rows.append([str(n), gains[0], *chosen, gains[1], names[predicted.best(n, n, 1.03)]])
    heads = ["tokens in the step", "measured na 4 / na 2", "min_gain 1.03", "min_gain 1.2", "predicted na 4 / na 2"]
    return table([*heads, "min_gain 1.03"], rows)


TABLES = {
    "fitted_parameters": fitted_parameters,
    "table8_errors": table8_errors,
    "consolidation_predicted": consolidation_predicted,
    "half_of_the_experts_predicted": half_of_the_experts_predicted,
    "loadtest_errors": loadtest_errors,
    "pruned_speed_errors": pruned_speed_errors,
    "surrogates": surrogates,
    "auto_levels": auto_levels,
}
