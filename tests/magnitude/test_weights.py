"""The numpy form keeps what the engine's `apply_skip` keeps, with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_moe_opt.layer_table import LayerTable
from sglang_moe_opt.magnitude.weights import RouterWeights
from sglang_moe_opt.schedule import SkipSchedule
from tests.magnitude.make import SHAPE, make_weights

torch = pytest.importorskip("torch")

from sglang_moe_opt.routing import Choice, RoutingTable  # noqa: E402
from sglang_moe_opt.routing.reference import apply_skip  # noqa: E402

LAYERS = len(SHAPE.moe_layer_ids)
ratios = st.floats(0, 1)
rules = st.one_of(
    st.fixed_dictionaries({"na": st.integers(0, 6)}),
    st.fixed_dictionaries({"layers": st.lists(st.integers(0, 6), min_size=LAYERS, max_size=LAYERS)}),
    st.fixed_dictionaries({"min_ratio": ratios | st.lists(ratios, min_size=LAYERS, max_size=LAYERS)}),
    st.fixed_dictionaries({"min_weight": ratios | st.lists(ratios, min_size=LAYERS, max_size=LAYERS)}),
    st.fixed_dictionaries(
        {"top_p": st.floats(0.01, 1) | st.lists(st.floats(0.01, 1), min_size=LAYERS, max_size=LAYERS)}
    ),
)


def by_engine(found: RouterWeights, table: LayerTable) -> tuple[Any, Any]:
    """Kept slots and weights by `apply_skip`, slots being in the order of the logits."""
    device = RoutingTable.allocate(1, len(table), "cpu")
    device.write_row(0, table.na, table.min_ratio, table.top_p, table.min_na, table.rescale)
    kept, weights = [], []
    for layer in range(len(table)):
        own = torch.from_numpy(found.weights[layer].copy())
        ids = torch.arange(found.top_k).repeat(found.tokens, 1)
        choice = Choice(logits=-torch.arange(found.top_k).float().repeat(found.tokens, 1), bias=None, scoring="softmax")
        apply_skip(own, ids, choice, torch.zeros(found.tokens, dtype=torch.int32), device, layer)
        kept.append((ids >= 0).numpy())
        weights.append(own.numpy())
    return np.stack(kept), np.stack(weights)


@settings(max_examples=150, deadline=None)
@given(rules, st.integers(1, 4), st.sampled_from(["router", "mass", 1.0, 0.7]), st.integers(0, 5))
def test_as_the_engine(rule: dict[str, Any], min_na: int, rescale: Any, seed: int) -> None:
    found = make_weights(seed, tokens=50)
    table = SkipSchedule(**rule, min_na=min_na, rescale=rescale).expand(SHAPE)
    kept, weights = by_engine(found, table)
    assert np.array_equal(found.kept(table), kept)
    np.testing.assert_allclose(found.after(table), weights, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.mean_na(table), kept.sum(axis=2).mean(axis=1))


def test_another_models_table_is_refused() -> None:
    with pytest.raises(ValueError, match="4 layers, expected 2"):
        make_weights(steepness=(1.0, 2.0)).kept(SkipSchedule(na=2).expand(SHAPE))


@pytest.mark.parametrize("shape", [(2, 3), (3, 5, 2), (2, 0, 3)])
def test_arrays_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[2, tokens, slots\]"):
        RouterWeights((1, 2), np.ones(shape, np.float32))
