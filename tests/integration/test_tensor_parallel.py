"""Two tensor-parallel ranks on the CPU give the tokens of one, whose layers run in one call a step."""

from __future__ import annotations

import random

import pytest
from server import V2, V3, Kind, Servers, two_ranks

pytestmark = [pytest.mark.server, pytest.mark.slow]

HINTS = ("full", "fast", "auto", {"na": 1}, {"min_ratio": 0.5}, {"prefill": "full", "decode": {"na": 1}})


@pytest.mark.parametrize(
    ("one", "kind"),
    [(kind, two_ranks(kind)) for kind in (V2, V3)],
    ids=[kind.model for kind in (V2, V3)],
)
def test_two_ranks_give_the_tokens_of_one(servers: Servers, one: Kind, kind: Kind) -> None:
    rng = random.Random(3)
    work = [(rng.choices(range(100, 4000), k=40), hint) for hint in HINTS]
    single = servers.get(one)
    expected = [single.tokens(ids, hint, new_tokens=24) for ids, hint in work]
    assert "layers in one call a step" in single.log.read_text()

    two = servers.get(kind)
    assert [two.tokens(ids, hint, new_tokens=24) for ids, hint in work] == expected
    assert "layers run operation by operation, because of --tp-size 2" in two.log.read_text()
