"""What the engine keeps is what its counters say: the measure that `schedule calibrate` corrects by."""

from __future__ import annotations

import numpy as np
import pytest
from reference import prompt
from server import V2, V3, Kind, Servers

from sglang_moe_opt.magnitude.realised import realised

pytestmark = pytest.mark.server


@pytest.mark.parametrize("kind", [V2, V3], ids=lambda kind: kind.model)
def test_realised_experts(servers: Servers, kind: Kind) -> None:
    server = servers.get(kind)
    top_k, layers = server.shape.top_k, len(server.shape.moe_layer_ids)
    shared = prompt(kind.model, 40, seed=8)
    pieces = [np.array(shared + prompt(kind.model, 20 + n, seed=n), np.int32) for n in range(6)]

    def measured(schedule: dict[str, object]) -> float:
        return realised(server.url, schedule, pieces, top_k).mean_na

    each = [1 + index % 3 for index in range(layers)]
    assert measured({"layers": each}) == pytest.approx(sum(each) / layers)
    assert measured({"layers": each}) == pytest.approx(sum(each) / layers), "the cache hides nothing"
    # V3 ranks by score and bias: the first by rank, which always stays, need not have the largest weight.
    more = 0.0 if kind is V2 else 1.0
    assert 1 <= measured({"min_ratio": 1.0}) <= 1.05 + more  # bfloat16 logits may tie
    some = [measured({"min_weight": [threshold] * layers}) for threshold in (0.02, 0.1, 0.3)]
    assert top_k >= some[0] > some[1] > some[2] >= 1
    off = [0.0] * (layers - 1)
    first = measured({"min_ratio": [1.0, *off]})
    least = ((layers - 1) * top_k + 1) / layers
    assert least <= first <= least + (0.05 + more) / layers, "only the first layer has a rule"
