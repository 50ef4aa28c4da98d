"""The roofline of a decode step, by hand."""

from __future__ import annotations

import pytest

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.perfmodel.roofline import Machine, Work, decode_step, expected_distinct_experts
from sglang_moe_opt.shapes import ShapeSpec

LITE = MoEShape.from_config(ShapeSpec.parse("deepseek-v2-lite@5").config())


def test_one_token_reads_what_it_uses() -> None:
    work = decode_step(LITE, tokens=1, na=6, distinct_experts=6, context=0)
    assert work.bytes == LITE.weight_bytes_per_token([6] * 4)["total"]
    assert work.bytes == pytest.approx(542.6e6 + 24 * 17.3e6, rel=1e-3)
    assert work.flops == work.bytes


def test_a_batch_reads_each_expert_once_and_computes_for_each_token() -> None:
    one = decode_step(LITE, tokens=1, na=6, distinct_experts=6, context=0)
    many = decode_step(LITE, tokens=64, na=6, distinct_experts=60, context=0)
    assert many.flops == 64 * one.flops
    assert many.bytes - one.bytes == 4 * 54 * LITE.expert_bytes


def test_the_cache_is_read_by_every_sequence() -> None:
    empty, full = (decode_step(LITE, tokens=3, na=2, distinct_experts=5, context=n) for n in (0, 100))
    assert full.bytes - empty.bytes == 3 * 100 * 5 * (512 + 64) * 2


def test_grouped_query_attention_caches_keys_and_values() -> None:
    config = {
        "model_type": "mixtral",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 8,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "vocab_size": 100,
    }
    assert MoEShape.from_config(config).kv_width == 2 * 2 * 8


@pytest.mark.parametrize(("tokens", "distinct"), [(4, 20.8), (16, 50.8), (64, 63.9)])
def test_distinct_experts(tokens: int, distinct: float) -> None:
    assert expected_distinct_experts(64, 6, tokens) == pytest.approx(distinct, abs=0.05)


def test_the_machine() -> None:
    machine = Machine(read_bandwidth=40e9, peak_flops=800e9)
    work = Work(bytes=4e9, flops=40e9)
    assert machine.seconds(work) == pytest.approx(0.1)
    assert machine.seconds(work, overlap=False) == pytest.approx(0.15)
