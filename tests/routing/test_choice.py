"""Choice scores against their definitions over all experts."""

from __future__ import annotations

import pytest
import torch

from sglang_moe_opt.routing import Choice
from sglang_moe_opt.routing.choice import slot_scores

DEFINITIONS = {
    "softmax": lambda x: torch.softmax(x, dim=-1),
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda x: torch.log1p(torch.exp(x)).sqrt(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scoring", DEFINITIONS)
def test_scores(scoring: str, biased: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(5, 16, generator=generator)).to(dtype)
    bias = torch.randn(16, generator=generator) if biased else None
    experts = torch.randint(0, 16, (5, 4), generator=generator)
    scores = slot_scores(Choice(logits, bias, scoring), experts)
    assert scores.dtype == torch.float32
    if scoring == "softmax" and not biased:
        expected = logits.double()  # ranks like the probability
    else:
        expected = DEFINITIONS[scoring](logits.double()) + (bias.double() if biased else 0.0)
    torch.testing.assert_close(scores.double(), expected.gather(1, experts), rtol=1e-5, atol=1e-6)
