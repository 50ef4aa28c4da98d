"""Who asks what: numbers, prompts and profiles are dealt the same in every process and round."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest

from loadtest.session import Session, _deal
from loadtest.spec import PointSpec


def spec(**changed: object) -> PointSpec:
    values: dict[str, object] = {
        "url": "http://localhost:1",
        "api": "generate",
        "model": "m",
        "load": "c8",
        "seconds": 1,
        "max_seconds": 10,
        "hints": {"full": (None, 1.0)},
        "prompts": "random:4",
        "vocab_size": 100,
        "output_len": 4,
    }
    return PointSpec.model_validate(values | changed)


def test_processes_share_the_users() -> None:
    assert [spec(part=part, parts=3).users for part in range(3)] == [3, 3, 2]
    first, second = (Session(spec(part=part, parts=2)) for part in range(2))
    assert [first.number() for _ in range(4)] == [0, 2, 4, 6]
    assert [second.number() for _ in range(4)] == [1, 3, 5, 7]


def test_a_request_is_the_same_whoever_sends_it() -> None:
    alone, shared = Session(spec()), Session(spec(part=1, parts=2))
    assert alone.body(5) == shared.body(5)
    assert alone.body(5) != Session(spec(seed=1)).body(5)
    assert next(itertools.islice(alone.bodies(3), 1, None)) == alone.body(11)


def test_a_number_of_requests_is_dealt_out() -> None:
    session = Session(spec(requests=20))
    assert [len(list(session.bodies(user))) for user in range(8)] == [3, 3, 3, 3, 2, 2, 2, 2]


def test_every_user_asks_at_least_once() -> None:
    session = Session(spec(requests=2))
    assert all(len(list(session.bodies(user))) == 1 for user in range(8))


@pytest.mark.parametrize("seats", [10, 100])
def test_profiles_are_dealt_in_their_shares(seats: int) -> None:
    dealt = _deal({"fast": ({"na": 2}, 70), "full": (None, 30)})
    assert Counter(label for label, _ in dealt[:seats]) == {"fast": 0.7 * seats, "full": 0.3 * seats}


def test_the_hint_goes_with_its_profile() -> None:
    session = Session(spec(load="c10", hints={"fast": ({"na": 2}, 70), "full": (None, 30)}))
    for index in range(20):
        profile, body = session.body(index)
        sampling = json.loads(body)["sampling_params"]
        assert sampling.get("custom_params") == ({"moe_skip": {"na": 2}} if profile == "fast" else None)


def test_open_loop_arrivals_are_dealt_out() -> None:
    whole = [arrival.at for arrival in Session(spec(load="rate100", seconds=10)).arrivals()]
    assert 800 < len(whole) < 1200
    assert max(whole) < 10
    part = Session(spec(load="rate100", seconds=10, part=1, parts=2)).arrivals()
    assert 350 < len(part) < 650
