"""Hypothesis strategies over :class:`tests.routing.cases.Case`."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from tests.routing.cases import ROUTERS, Case


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
