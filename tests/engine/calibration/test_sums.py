"""The sums are those of the definitions, one token and one expert at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sglang_moe_opt.engine.calibration.sums import ExpertSums, change, run_experts

TOKENS, SLOTS, EXPERTS, HIDDEN, INNER = 40, 3, 8, 16, 6


def layer(seed: int = 0) -> tuple[Tensor, ...]:
    """x, ids, weights, w13, w2; the last expert is never chosen."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(TOKENS, HIDDEN, generator=generator)
    ids = torch.stack([torch.randperm(EXPERTS - 1, generator=generator)[:SLOTS] for _ in range(TOKENS)])
    weights = torch.rand(TOKENS, SLOTS, generator=generator)
    w13 = torch.randn(EXPERTS, 2 * INNER, HIDDEN, generator=generator)
    return x, ids, weights, w13, torch.randn(EXPERTS, HIDDEN, INNER, generator=generator)


def expert_output(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    gate, up = w13[:INNER] @ x, w13[INNER:] @ x
    return w2 @ (gate * torch.sigmoid(gate) * up)


def test_experts_are_run_on_their_tokens() -> None:
    x, ids, weights, w13, w2 = layer()
    norms, total = run_experts(x, ids, weights, w13, w2)
    for token in range(TOKENS):
        outputs = [expert_output(x[token], w13[expert], w2[expert]) for expert in ids[token]]
        torch.testing.assert_close(norms[token], torch.stack([output.norm() for output in outputs]), rtol=1e-5, atol=0)
        expected = sum(weight * output for weight, output in zip(weights[token], outputs, strict=True))
        torch.testing.assert_close(total[token], expected, rtol=1e-5, atol=1e-4)


def test_sums_are_those_of_the_definitions() -> None:
    _, ids, weights, _, _ = layer()
    norms, changes = torch.rand(TOKENS, SLOTS) + 1, torch.rand(TOKENS, dtype=torch.float64)
    sums = ExpertSums(2, EXPERTS, "cpu")
    for rows in (slice(0, 7), slice(7, TOKENS)):
        sums.add(1, ids[rows], weights[rows], norms[rows], changes[rows])
    expected = {name: np.zeros(EXPERTS) for name in ("hard", "soft", "reap", "easy_ep", "norm")}
    together = np.zeros((EXPERTS, EXPERTS))
    for token in range(TOKENS):
        for slot, expert in enumerate(ids[token].tolist()):
            gate, norm = float(weights[token, slot]), float(norms[token, slot])
            expected["hard"][expert] += 1
            expected["soft"][expert] += gate
            expected["reap"][expert] += gate * norm
            expected["easy_ep"][expert] += gate * norm * float(changes[token])
            expected["norm"][expert] += norm
            together[expert, ids[token].numpy()] += 1
    for name, value in expected.items():
        np.testing.assert_allclose(sums.tensors[name][1], value, rtol=1e-12)
        assert not sums.tensors[name][0].any()
    np.testing.assert_array_equal(sums.tensors["coactivation"][1], together)
    np.testing.assert_array_equal(np.diag(together), expected["hard"])


def test_small_changes_keep_their_digits() -> None:
    before = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    added = torch.tensor([[0.0, 1e-3], [0.0, 0.0], [0.0, -5.0]])
    expected = torch.tensor([1 - 1 / (1 + 1e-6) ** 0.5, 0, 2], dtype=torch.float64)
    torch.testing.assert_close(change(before, added), expected, rtol=1e-6, atol=0)
