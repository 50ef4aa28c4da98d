"""Fitting: known parameters come back, and Table 8 of the paper is predicted from its first column."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.perfmodel.curve import make_curve
from sglang_moe_opt.perfmodel.fit import Requests, fit
from sglang_moe_opt.perfmodel.hardware import PRESETS, Hardware, find_hardware, save, this_file
from sglang_moe_opt.perfmodel.measurements import MeasuredPoint, from_summary, from_table, read_measurements
from sglang_moe_opt.perfmodel.model import ServedModel, find_model
from sglang_moe_opt.perfmodel.parallel import Parallelism
from sglang_moe_opt.perfmodel.parameters import PRIORS, SCALES, Fitted, Parameters, from_free, to_free
from sglang_moe_opt.perfmodel.serving import Workload, serve
from sglang_moe_opt.perfmodel.step import Setup
from sglang_moe_opt.perfmodel.validation import compare, summarize

RESULTS = Path(__file__).parents[2] / "docs" / "results"
TABLE_8 = RESULTS / "paper_t8_v2lite_skip_throughput.csv"
LITE = find_model("deepseek-v2-lite")
SETUP = Setup(LITE, PRESETS["a800-pcie"], Parallelism(2))
REQUESTS = Requests(1024, 1024)


def test_table_8_from_its_first_column() -> None:
    """The issue's bar is 5 % in the median and 15 % at most."""
    measured = read_measurements(TABLE_8, LITE.shape)
    fitted = fit(SETUP, REQUESTS, measured.baseline, graph_max_batch=160)
    errors = summarize(compare(SETUP, REQUESTS, measured, fitted))
    assert errors["others"]["points"] == 56
    assert errors["others"]["speedup_median"] <= 0.02
    assert errors["others"]["speedup_max"] <= 0.07
    assert errors["na6"]["tok_s_max"] <= 0.10
    shipped = Fitted.default("gpu")
    for name in SCALES:
        assert getattr(fitted.values, name) == pytest.approx(getattr(shipped.values, name), rel=1e-3)


def test_half_of_the_experts_without_fitting() -> None:
    """What the paper says of pruning V2-Lite to 32 experts, of which nothing was fitted."""
    values = Fitted.default("gpu").values

    def speedup(concurrency: int) -> float:
        load = Workload(concurrency)
        half, full = (serve(SETUP, make_curve(LITE.shape, "", experts=n), values, load) for n in (32, 64))
        return half.total_tok_s / full.total_tok_s

    assert speedup(2) == pytest.approx(1.05, rel=0.03)
    assert speedup(32) == pytest.approx(1.41, rel=0.03)
    assert speedup(128) == pytest.approx(1.27, rel=0.03)


def test_our_own_load_test_from_its_first_curve() -> None:
    """The issue's bar is 10 % in the median."""
    folder = RESULTS / "loadtest_v2_lite"
    model = ServedModel.from_config(json.loads((folder / "manifest.json").read_text())["model_config_json"])
    setup = Setup(model, Hardware("this", "cpu", 50e9, 800e9, 25e9))
    measured = read_measurements(folder / "summary.json", model.shape)
    assert (measured.input_tokens, measured.output_tokens, measured.routes_evenly) == (24, 24, True)
    assert [curve.mean_na for curve in measured.curves] == [6, 4, 2]
    fitted = fit(setup, Requests(24, 24), measured.baseline, held={"routing_skew": 0.0})
    errors = summarize(compare(setup, Requests(24, 24), measured, fitted))
    assert errors["others"]["tok_s_median"] <= 0.06
    assert errors["others"]["speedup_median"] <= 0.04


def test_known_parameters_come_back() -> None:
    """Without noise, from several curves: what the curves tell apart is found, and lies in its interval."""
    truth = Parameters(0.6, 0.3, 0.45, 0.1, 0.7, 4e-6, 2e-3, 3e-5, 8e-6, 0.3, graph_max_batch=160)
    points = [
        MeasuredPoint(curve, c, serve(SETUP, curve, truth, Workload(c)).total_tok_s)
        for curve in (make_curve(LITE.shape, f"{na}/{kept}", na=na, experts=kept) for na in (6, 2) for kept in (64, 16))
        for c in (1, 2, 4, 8, 16, 32, 64, 128, 160)
    ]
    found = fit(SETUP, REQUESTS, points, graph_max_batch=160)
    assert found.values.bandwidth_efficiency == pytest.approx(0.6, rel=0.05)
    for name in set(found.names) - {"kernel_overhead_s", "step_overhead_s"}:
        low, high = found.interval(name)
        assert low <= getattr(truth, name) <= high, name
    # one model has one number of kernels: of these two only what they make together can be told
    together = [LITE.kernels * values.kernel_overhead_s + values.step_overhead_s for values in (found.values, truth)]
    assert together[0] == pytest.approx(together[1], rel=0.1)
    assert found.provenance["max_abs_error"] < 0.02


def test_errors_follow_from_noise() -> None:
    """The bandwidth's interval holds the truth in most of 20 noisy repeats."""
    truth = Fitted.default("gpu").values
    curve = make_curve(LITE.shape, "full")
    clean = {c: serve(SETUP, curve, truth, Workload(c)).total_tok_s for c in (1, 2, 4, 8, 16, 32, 64, 128)}
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(20):
        noisy = [MeasuredPoint(curve, c, t * math.exp(generator.normal(0, 0.05))) for c, t in clean.items()]
        low, high = fit(SETUP, REQUESTS, noisy, graph_max_batch=160).interval("bandwidth_efficiency")
        hits += low <= truth.bandwidth_efficiency <= high
    assert hits >= 16


def test_held_parameters_stay() -> None:
    measured = read_measurements(TABLE_8, LITE.shape)
    found = fit(SETUP, REQUESTS, measured.baseline, held={"routing_skew": 0.0, "overlap": 1.0})
    assert (found.values.routing_skew, found.values.overlap) == (0, 1)
    assert not {"routing_skew", "overlap"} & set(found.names)
    with pytest.raises(FieldError, match="--hold: got 'speed'"):
        fit(SETUP, REQUESTS, measured.baseline, held={"speed": 1.0})
    with pytest.raises(FieldError, match="2 points"):
        fit(SETUP, REQUESTS, measured.baseline[:2])


@given(name=st.sampled_from(list(SCALES)), share=st.floats(0.001, 0.999))
def test_scales_without_bounds_go_back(name: str, share: float) -> None:
    assert from_free(name, to_free(name, share)) == pytest.approx(share)


def test_parameters_as_a_file(tmp_path: Path) -> None:
    fitted = Fitted.default("gpu")
    fitted.save(tmp_path / "p.json")
    again = Fitted.load(tmp_path / "p.json")
    assert again.values == fitted.values
    assert again.names == fitted.names
    assert np.array_equal(again.covariance, fitted.covariance)
    assert again.without("overlap").covariance.shape == (9, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version: got 2, allowed: 1"),
        ({"kind": "tpu"}, "kind: got 'tpu', allowed: gpu, cpu"),
        ({"parameters": {}}, "parameters.bandwidth_efficiency: got None"),
        ({"fitted": ["speed"]}, "fitted: got \\['speed'\\]"),
        ({"covariance": [[1.0]]}, "covariance"),
        ({"more": 1}, "got 'more'"),
    ],
)
def test_files_that_are_no_parameters(change: dict[str, object], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        Fitted.from_object(Fitted.default("gpu").to_object() | change, "p.json")


def test_values_that_no_parameter_can_have() -> None:
    values = Fitted.default("cpu").values
    for name, value in (
        ("overlap", 1.5),
        ("bandwidth_efficiency", 0),
        ("step_overhead_s", -1),
        ("graph_max_batch", -1),
    ):
        with pytest.raises(FieldError, match=f"parameters.{name}"):
            replace(values, **{name: value})
    assert set(PRIORS["gpu"]) == set(PRIORS["cpu"]) == set(SCALES)


def test_columns_of_a_table() -> None:
    measured = from_table("concurrency,na6,experts32,na4_experts48\n2,100,110,\n4,200,,300\n", LITE.shape)
    assert [(c.mean_na, c.mean_kept) for c in measured.curves] == [(6, 64), (6, 32), (4, 48)]
    assert [(p.concurrency, p.speedup) for p in measured.points] == [(2, None), (4, None), (2, 1.1), (4, 1.5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a CSV table with the columns"),
        ("c,na6\n2,100\n", "a CSV table with the columns"),
        ("concurrency,speed\n2,100\n", "got 'speed', allowed: columns called na6"),
        ("concurrency,na9\n2,100\n", "na: got 9"),
        ("concurrency,na6\n2,fast\n", "--fit: na6: got 'fast', allowed: a number above 0"),
        ("concurrency,na6\n2.5,100\n", "whole concurrency"),
    ],
)
def test_tables_that_are_none(text: str, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        from_table(text, LITE.shape)


def test_a_load_test_of_pruned_models() -> None:
    """The format of `moe-opt loadtest --prune-plan`: arms carry the experts that their plan keeps."""
    content = json.loads((RESULTS / "loadtest_v2_lite" / "summary.json").read_text())
    shape = find_model("shape:deepseek-v2-lite@5").shape
    arm = content["runs"][0]["arms"][2]
    arm |= {"mean_na": 6.0, "hints": {"full": ["full", 1.0]}, "plan": {"kept": [32, 32, 16, 16]}}
    pruned = from_summary(content, shape).curves[2]
    assert pruned.kept == (32, 32, 16, 16) and pruned.mean_na == 6
    arm |= {"hints": {"x": [{"decode": {"layers": [6, 4, 2, 2]}, "prefill": {"na": 5}}, 1.0]}, "plan": None}
    phased = from_summary(content, shape).curves[2]
    assert phased.na_decode == (6, 4, 2, 2) and phased.na_prefill == (5, 5, 5, 5)
    arm |= {"mean_na": None}
    assert len(from_summary(content, shape).curves) == 2
    with pytest.raises(FieldError, match=r"summary.json of one load test"):
        from_summary({"runs": []}, shape)


def test_hardware_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_MOE_OPT_CACHE", str(tmp_path))
    with pytest.raises(FieldError, match="--calibrate-this-machine"):
        find_hardware("this")
    mine = Hardware("this", "cpu", 50e9, 800e9, 25e9)
    save(mine, this_file())
    assert find_hardware("this") == mine
    file = tmp_path / "mine.json"
    file.write_text('{"kind": "gpu", "bandwidth_bytes_s": 1e12, "flops_s": 1e14}')
    with pytest.raises(FieldError, match=r"hardware.memory_bytes: got None"):
        find_hardware(str(file))
    file.write_text('{"kind": "gpu", "bandwidth_bytes_s": -1, "flops_s": 1e14, "memory_bytes": 1e9}')
    with pytest.raises(FieldError, match=r"hardware.bandwidth_bytes_s: got -1, allowed: a number above 0"):
        find_hardware(str(file))
    file.write_text('{"kind": "gpu", "speed": 1}')
    with pytest.raises(FieldError, match="got 'speed'"):
        find_hardware(str(file))
