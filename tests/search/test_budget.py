"""Budgets: what a schedule spends of experts, bytes and predicted time, and which sums of na they leave."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.perfmodel.hardware import find_hardware
from sglang_moe_opt.perfmodel.model import find_model
from sglang_moe_opt.perfmodel.parameters import Fitted
from sglang_moe_opt.perfmodel.step import Setup
from sglang_moe_opt.search.budget import of_bytes, of_mean_na, of_tok_s, parse_bytes, parse_percent, step_seconds

MODEL = find_model("deepseek-v2-lite")
SHAPE = MODEL.shape
LAYERS = SHAPE.num_moe_layers


def test_mean_na_is_a_sum_of_experts() -> None:
    budget = of_mean_na(4.5, SHAPE, 1)
    assert (budget.limit, budget.total(LAYERS, 1)) == (117, 117)
    assert budget.spent([6] * 10 + [3] * 16, 1) == 108
    assert of_mean_na(5.3333, SHAPE, 1).limit == 138  # 138.67 experts: never more than the mean says


def test_bytes_are_those_of_whole_experts() -> None:
    budget = of_bytes(100.9 * SHAPE.expert_bytes, SHAPE, 1)
    assert budget.total(LAYERS, 1) == 100
    with pytest.raises(FieldError, match="--bytes-per-token: got 1"):
        of_bytes(1, SHAPE, 1)


@pytest.mark.parametrize("tokens", [1, 16, 256])
def test_tok_s_by_the_cost_model(tokens: int) -> None:
    setup, parameters = Setup(MODEL, find_hardware("h100")), Fitted.default("gpu").values

    def rate(layers: list[int]) -> float:
        return tokens / step_seconds(setup, parameters, layers, tokens, 512)

    wanted = rate([4] * LAYERS)
    budget = of_tok_s(wanted * 0.9999, setup, parameters, 1, tokens=tokens, context=512)
    assert budget.total(LAYERS, 1) == pytest.approx(4 * LAYERS, abs=1)
    generator = np.random.default_rng(0)
    for _ in range(20):
        layers = generator.integers(1, 7, LAYERS).tolist()
        if budget.spent(layers, 1) <= budget.limit:
            assert rate(layers) > wanted * 0.98
        else:
            assert rate(layers) < wanted * 1.02
    for impossible in (rate([6] * LAYERS) * 0.9, rate([1] * LAYERS) * 1.1):
        with pytest.raises(FieldError, match="--tok-s"):
            of_tok_s(impossible, setup, parameters, 1, tokens=tokens, context=512)


def test_numbers_as_users_write_them() -> None:
    assert [parse_bytes(text) for text in ("1500", "12.5M", "2g", "3KB")] == [1500, 12.5e6, 2e9, 3e3]
    assert [parse_percent(text) for text in ("0.5%", "2", " 1.5 % ".replace(" %", "%"))] == [0.5, 2, 1.5]
    for text in ("", "M", "1.2.3", "-1"):
        with pytest.raises(FieldError, match="--bytes-per-token"):
            parse_bytes(text)
    for text in ("0", "100", "nan", "half"):
        with pytest.raises(FieldError, match="--max-loss"):
            parse_percent(text)
