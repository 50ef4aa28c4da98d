"""Tables and inverse questions."""

from __future__ import annotations

import pytest

from sglang_moe_opt.perfmodel.curve import make_curve
from sglang_moe_opt.perfmodel.hardware import PRESETS
from sglang_moe_opt.perfmodel.model import find_model
from sglang_moe_opt.perfmodel.parallel import Parallelism
from sglang_moe_opt.perfmodel.parameters import SCALES, Fitted
from sglang_moe_opt.perfmodel.predict import Predictor, fewer_experts, fewer_experts_per_token
from sglang_moe_opt.perfmodel.step import Setup

LITE = find_model("deepseek-v2-lite")
PREDICTOR = Predictor(Setup(LITE, PRESETS["a800-pcie"], Parallelism(2)), Fitted.default("gpu"))
FULL, FOUR, TWO = (make_curve(LITE.shape, f"na {na}", na=na) for na in (6, 4, 2))


def test_the_table() -> None:
    found = PREDICTOR.table([FULL, TWO], [2, 64])
    assert [(one.curve.label, one.load.concurrency) for one in found] == [
        ("na 6", 2), ("na 6", 64), ("na 2", 2), ("na 2", 64),
    ]  # fmt: skip
    first, _, fast, _ = found
    assert first.speedup == first.speedup_low == first.speedup_high == 1
    assert fast.speedup == pytest.approx(fast.tok_s / first.tok_s)
    assert fast.speedup_low < fast.speedup < fast.speedup_high
    content = fast.to_object()
    assert content["na"] == 2 and content["experts"] == 64 and content["regime"] in content["shares"]


def test_known_parameters_leave_no_error() -> None:
    known = PREDICTOR.fitted.without(*SCALES)
    (_, fast) = Predictor(PREDICTOR.setup, known).table([FULL, TWO], [8])
    assert fast.speedup_low == fast.speedup == fast.speedup_high


def test_output_tokens_only() -> None:
    total, output = (
        Predictor(PREDICTOR.setup, PREDICTOR.fitted, 3000, 1000, count).table([FULL], [8])[0].tok_s
        for count in ("total", "output")
    )
    assert total == pytest.approx(4 * output)


def test_what_gives_a_speedup() -> None:
    variants = fewer_experts_per_token(PREDICTOR.setup, FULL)
    assert [curve.mean_na for curve in variants] == [6, 5, 4, 3, 2, 1, 0]
    found, most = PREDICTOR.least_reduction(FULL, 16, 1.2, variants)
    assert found is not None
    assert PREDICTOR.speedup(found, FULL, 16) >= 1.2 > PREDICTOR.speedup(variants[variants.index(found) - 1], FULL, 16)
    assert most == PREDICTOR.speedup(variants[-1], FULL, 16)
    assert PREDICTOR.least_reduction(FULL, 16, 100.0, variants)[0] is None
    kept = fewer_experts(PREDICTOR.setup, FULL)
    assert [kept[0].mean_kept, kept[-1].mean_kept] == [64, 6]
    assert {curve.mean_na for curve in fewer_experts(PREDICTOR.setup, FOUR)} == {4}


@pytest.mark.parametrize("wanted", [1.02, 1.1, 1.3, 3.0])
def test_where_it_pays(wanted: float) -> None:
    runs = PREDICTOR.pays(TWO, FULL, wanted, 400)
    inside = {c for first, last in runs for c in range(first, last + 1)}
    right = {c for c in range(1, 401) if PREDICTOR.speedup(TWO, FULL, c) >= wanted}
    assert inside == right
