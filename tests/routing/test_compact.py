"""Compaction of kept slots."""

from __future__ import annotations

import pytest
import torch

from sglang_moe_opt.routing import compact

IDS = torch.tensor([[-1, 4, -1, 2, 90, 91], [7, -1, -1, -1, 90, 91], [-1, -1, -1, -1, 90, 91]], dtype=torch.int32)
WEIGHTS = torch.tensor([[0.0, 0.4, 0.0, 0.2, 1.0, 1.5], [0.7, 0, 0, 0, 1.0, 1.5], [0, 0, 0, 0, 1.0, 1.5]])


def test_kept_slots_come_first_in_their_order() -> None:
    weights, ids = compact(WEIGHTS, IDS, 2, num_shared=2)
    assert ids.dtype == torch.int32
    assert ids.tolist() == [[4, 2, 90, 91], [7, -1, 90, 91], [-1, -1, 90, 91]]
    torch.testing.assert_close(weights, torch.tensor([[0.4, 0.2, 1, 1.5], [0.7, 0, 1, 1.5], [0, 0, 1, 1.5]]))


def test_full_width_and_zero_width() -> None:
    weights, ids = compact(WEIGHTS[:, :4], IDS[:, :4], 4, num_shared=0)
    assert ids.tolist() == [[4, 2, -1, -1], [7, -1, -1, -1], [-1, -1, -1, -1]]
    weights, ids = compact(WEIGHTS[2:], IDS[2:], 0, num_shared=2)
    assert ids.tolist() == [[90, 91]]
    assert weights.tolist() == [[1.0, 1.5]]
    weights, ids = compact(WEIGHTS[:0], IDS[:0], 1, num_shared=2)
    assert weights.shape == ids.shape == (0, 3)


def test_a_width_that_would_lose_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="width 1 would lose experts: a row keeps 2"):
        compact(WEIGHTS, IDS, 1, num_shared=2)
    with pytest.raises(ValueError, match="width 5 is not within the 4 routed columns"):
        compact(WEIGHTS, IDS, 5, num_shared=2)
