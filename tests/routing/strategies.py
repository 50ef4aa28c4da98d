"""Hypothesis strategies over :class:`tests.routing.cases.Case`."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from tests.routing.cases import ROUTERS, Case
from tests.routing.consolidation_cases import ConsolidationCase


def cases(max_tokens: int, max_extra_experts: int = 24) -> st.SearchStrategy[Case]:
    """Draw cases with every router, rule and layout, up to ``max_tokens`` tokens."""
    return st.builds(
        Case,
        seed=st.integers(0, 2**32 - 1),
        num_tokens=st.integers(1, max_tokens),
        num_slots=st.integers(1, 16),
        num_shared=st.integers(0, 2),
        extra_experts=st.integers(0, max_extra_experts),
        router=st.sampled_from(ROUTERS),
        logits_dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
        ids_dtype=st.sampled_from((torch.int32, torch.int64)),
        coarse_logits=st.booleans(),
        exact_weights=st.booleans(),
        remapped=st.booleans(),
        strided=st.booleans(),
        dynamic=st.booleans(),
    )


def consolidation_cases(max_tokens: int, max_extra_experts: int = 6) -> st.SearchStrategy[ConsolidationCase]:
    """Draw consolidation problems; ``max_extra_experts`` are those beyond the slots, per group."""
    return st.builds(
        ConsolidationCase,
        routing=cases(max_tokens, max_extra_experts),
        max_experts=st.sampled_from((0, 0, 1, 3, 8, 20)),
        min_share=st.sampled_from((0.0, 0.0, 0.25, 1.0)),
        num_groups=st.sampled_from((1, 1, 2, 4)),
    )
