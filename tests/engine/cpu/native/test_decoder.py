"""All layers in one call against the same layers put together from the single kernels."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from sglang_moe_opt.engine.cpu import native
from sglang_moe_opt.engine.cpu.native import decoder

pytestmark = pytest.mark.skipif(not native.ready(), reason="no C++ compiler for the CPU kernels")

HIDDEN, HEADS, RANK, NOPE, ROPE, VALUE, INNER, SHARED, EXPERTS, TOP_K = 96, 3, 64, 32, 16, 40, 48, 80, 8, 3
EPSILON, SCALE, ROUTED_SCALE = 1e-6, 0.2, 2.5
WIDTH = RANK + ROPE


class Weights:
    """Random weights of one layer, and the struct that points to them."""

    def __init__(
        self, seed: int, dtype: torch.dtype, *, q_rank: int, dense: bool, kept: tuple[int, ...] = (), bias: bool = True
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float | None = None) -> Tensor:
            return (torch.randn(*shape, generator=generator) * (scale or shape[-1] ** -0.5)).to(dtype)

        def norm(n: int) -> Tensor:
            return normal(n, scale=0.1) + 1

        self.q_rank, self.dense = q_rank, dense
        self.input_norm, self.post_norm, self.kv_a_norm = norm(HIDDEN), norm(HIDDEN), norm(RANK)
        self.q_a_norm = norm(q_rank) if q_rank else None
        self.kv_a = normal(q_rank + WIDTH, HIDDEN)
        self.q = normal(HEADS * (NOPE + ROPE), q_rank or HIDDEN)
        self.keys, self.values = normal(HEADS, RANK, NOPE), normal(HEADS, VALUE, RANK)
        self.output = normal(HIDDEN, HEADS * VALUE)
        self.angles = torch.randn(32, ROPE, generator=generator)
        self.cache = torch.zeros(64, WIDTH, dtype=dtype)
        self.gate, self.bias = normal(EXPERTS, HIDDEN), torch.randn(EXPERTS, generator=generator) / 10 if bias else None
        self.w13, self.w2 = normal(EXPERTS, 2 * INNER, HIDDEN), normal(EXPERTS, HIDDEN, INNER)
        self.slots = None
        if kept:
            self.slots = torch.full((EXPERTS,), -1, dtype=torch.int32)
            self.slots[list(kept)] = torch.arange(len(kept), dtype=torch.int32)
            self.w13, self.w2 = self.w13[list(kept)], self.w2[list(kept)]
        self.gate_up, self.down = normal(2 * SHARED, HIDDEN), normal(HIDDEN, SHARED)

    def struct(self) -> decoder.Layer:
        pointers = {
            name: None if (tensor := getattr(self, name)) is None else tensor.data_ptr()
            for name, kind in decoder.Mla._fields_
            if kind is ctypes.c_void_p
        }
        mla = decoder.Mla(
            hidden=HIDDEN,
            heads=HEADS,
            q_rank=self.q_rank,
            rank=RANK,
            nope=NOPE,
            rope=ROPE,
            value=VALUE,
            epsilon=EPSILON,
            latent_epsilon=EPSILON,
            scale=SCALE,
            interleaved=True,
            **pointers,
        )
        if self.dense:
            return decoder.Layer(mla=mla, gate_up=self.gate_up.data_ptr(), down=self.down.data_ptr(), inner=SHARED)
        moe = decoder.Moe(
            hidden=HIDDEN,
            inner=INNER,
            shared=SHARED,
            experts=EXPERTS,
            groups=2,
            kept_groups=1,
            gate=self.gate.data_ptr(),
            w13=self.w13.data_ptr(),
            w2=self.w2.data_ptr(),
            shared_gate_up=self.gate_up.data_ptr(),
            shared_down=self.down.data_ptr(),
            bias=None if self.bias is None else self.bias.data_ptr(),
            slots=None if self.slots is None else self.slots.data_ptr(),
            scale=ROUTED_SCALE,
            sigmoid=self.bias is not None,
            renormalize=True,
        )
        return decoder.Layer(mla=mla, moe=moe)

    def run(self, step: Step, hidden: Tensor, residual: Tensor, drop: decoder.Drop | None, index: int) -> Tensor:
        """The layer from the single kernels; the cache is written once more, with the same values."""
        x = native.rms_norm(hidden, self.input_norm, EPSILON, residual)
        both = native.linear(x, self.kv_a)
        latent = both[:, self.q_rank :]
        low = native.rms_norm(both[:, : self.q_rank], self.q_a_norm, EPSILON) if self.q_rank else x
        q = native.linear(low, self.q).view(-1, HEADS, NOPE + ROPE)
        absorbed = q.new_empty(len(q), HEADS, WIDTH)
        native.head_linear(q, self.keys, absorbed)
        native.mla_rope(
            q[..., NOPE:],
            absorbed,
            latent,
            self.kv_a_norm,
            EPSILON,
            self.angles,
            step.positions,
            self.cache,
            step.cache_slots,
            interleaved=True,
        )
        attended = q.new_empty(len(q), HEADS, RANK)
        native.mla_attention(
            absorbed, self.cache, attended, step.slots, step.pool_rows, step.lengths, step.query_lengths, SCALE
        )
        values = q.new_empty(len(q), HEADS, VALUE)
        native.head_linear(attended, self.values, values)
        x = native.rms_norm(native.linear(values.flatten(1), self.output), self.post_norm, EPSILON, residual)
        shared = native.linear(native.silu_and_mul(native.linear(x, self.gate_up)), self.down)
        if self.dense:
            return shared
        logits = native.linear(x, self.gate, dtype=torch.float32)
        bias = self.bias
        if self.slots is not None:
            logits[:, self.slots < 0] = float("-inf")
            bias = None if bias is None else bias.masked_fill(self.slots < 0, float("-inf"))
        scoring = "softmax" if bias is None else "sigmoid"
        weights, ids = native.route(
            logits, TOP_K, bias=bias, groups=2, kept_groups=1, scoring=scoring, renormalize=True
        )
        if drop is not None:
            drop(index, weights, ids, logits)
        if self.slots is not None:
            ids = torch.where(ids < 0, ids, self.slots[ids.clamp(min=0)])
        # The kernel rounds the scaled sum of routed and shared experts once.
        routed = native.experts(x.float(), self.w13.float(), self.w2.float(), ids, weights)
        return (routed * ROUTED_SCALE + shared.float()).to(x.dtype)


class Step:
    """Two sequences, the second with a cached prefix of two tokens."""

    query_lengths = torch.tensor([4, 1])
    lengths = torch.tensor([4, 3])
    positions = torch.tensor([0, 1, 2, 3, 2])
    pool_rows = torch.tensor([2, 0])
    slots = torch.arange(3 * 8, dtype=torch.int32).view(3, 8).flip(0).contiguous()

    def __init__(self) -> None:
        self.cache_slots = torch.cat([self.slots[2, :4], self.slots[0, 2:3]]).long()

    def batch(self) -> decoder.Batch:
        tensors = (self.positions, self.cache_slots, self.pool_rows, self.lengths, self.query_lengths, self.slots)
        return decoder.Batch(5, 2, *(tensor.data_ptr() for tensor in tensors), self.slots.stride(0))


def drop_last(index: int, weights: Tensor, ids: Tensor, logits: Tensor) -> None:
    assert logits.shape == (5, EXPERTS)
    ids[::2, -1] = -1
    weights[1:] *= 1 + index


@pytest.mark.parametrize("drop", [None, drop_last])
@pytest.mark.parametrize("q_rank", [0, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_are_what_the_kernels_give_one_by_one(
    dtype: torch.dtype, q_rank: int, drop: decoder.Drop | None
) -> None:
    layers = [Weights(seed, dtype, q_rank=q_rank, dense=seed == 0) for seed in range(3)]
    step = Step()
    for layer in layers:
        layer.cache[step.slots[0, :2].long()] = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(5)).to(
            dtype
        )
    hidden = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(9)).to(dtype)
    result, residual = hidden.clone(), torch.zeros_like(hidden)
    whole = decoder.Decoder([layer.struct() for layer in layers])
    whole.run(step.batch(), result, residual, [0, TOP_K, TOP_K], drop)
    expected_residual = torch.zeros_like(hidden)
    for index, layer in enumerate(layers):
        hidden = layer.run(step, hidden, expected_residual, drop, index)
    tolerance = 1e-5 if dtype is torch.float32 else 4e-2
    torch.testing.assert_close(result, hidden, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(residual, expected_residual, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("drop", [None, drop_last])
@pytest.mark.parametrize("bias", [True, False], ids=["sigmoid", "softmax"])
def test_removed_experts_are_not_chosen_and_the_others_found_in_their_slots(
    bias: bool, drop: decoder.Drop | None
) -> None:
    layer = Weights(1, torch.float32, q_rank=0, dense=False, kept=(0, 2, 3, 5, 6, 7), bias=bias)
    if layer.bias is not None and layer.slots is not None:
        layer.bias[layer.slots < 0] = float("-inf")
    step = Step()
    hidden = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(9))
    result, seen = hidden.clone(), []

    def watch(index: int, weights: Tensor, ids: Tensor, logits: Tensor) -> None:
        if drop is not None:
            drop(index, weights, ids, logits)
        seen.extend(ids.unique().tolist())

    decoder.Decoder([layer.struct()]).run(step.batch(), result, torch.zeros_like(hidden), [TOP_K], watch)
    expected = layer.run(step, hidden, torch.zeros_like(hidden), drop, 0)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert set(seen) - {-1} <= {0, 2, 3, 5, 6, 7}, "schedules see the whole model's ids"
    assert max(seen) == 7


def test_an_error_while_dropping_is_raised() -> None:
    layer, step = Weights(1, torch.float32, q_rank=0, dense=False), Step()
    hidden = torch.randn(5, HIDDEN)

    def fail(index: int, *tensors: Tensor) -> None:
        raise RuntimeError(f"layer {index}")

    with pytest.raises(RuntimeError, match="layer 0"):
        decoder.Decoder([layer.struct()]).run(step.batch(), hidden, torch.zeros_like(hidden), [TOP_K], fail)
