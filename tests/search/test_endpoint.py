"""The endpoint's client: nats per piece, many schedules at a time, nothing asked twice, faults in one line."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from eval.journal import Journal
from sglang_moe_opt.magnitude.realised import Realised
from sglang_moe_opt.schedule import SkipSchedule
from sglang_moe_opt.search import endpoint
from sglang_moe_opt.search.by_weight import ByWeight
from sglang_moe_opt.search.candidate import Candidate
from sglang_moe_opt.search.endpoint import Endpoint
from tests.search.fake_endpoint import TOP_K, fake_endpoint, logprob

PIECES = [np.arange(start, start + length, dtype=np.int32) for start, length in ((3, 9), (50, 2), (7, 30), (90, 12))]
CANDIDATES = [Candidate((4, 4)), Candidate((4, 2)), Candidate((1, 3), 1.2)]

BY_WEIGHT = ByWeight((3, 2), schedule=SkipSchedule(min_weight=(0.1, 0.2)), way="fit", top_k=TOP_K)


def expected(one: Candidate, piece: np.ndarray) -> float:
    return -sum(logprob(int(a), int(b), list(one.layers)) for a, b in pairwise(piece))


def test_nats_of_every_piece_under_every_schedule(tmp_path: Path) -> None:
    done: list[int] = []
    with fake_endpoint() as server:
        meter = Endpoint(server.url, Journal(tmp_path / "j"), concurrency=3, batch_tokens=25)
        found = meter.nats(CANDIDATES, PIECES, done.append)
        assert 1 < server.most_at_a_time <= 3
        assert {str(hint) for _, hint in server.prompts} == {str(one.hint) for one in CANDIDATES}
    wanted = [[expected(one, piece) for piece in PIECES] for one in CANDIDATES]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert sum(done) == len(CANDIDATES) * sum(map(len, PIECES))


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    with fake_endpoint() as server:
        first = Endpoint(server.url, Journal(tmp_path / "j")).nats(CANDIDATES[:2], PIECES, lambda _: None)
        asked = len(server.prompts)
        done: list[int] = []
        again = Endpoint(server.url, Journal(tmp_path / "j")).nats(CANDIDATES, PIECES, done.append)
        assert len(server.prompts) == asked + len(PIECES)
        np.testing.assert_array_equal(again[:2], first)
        assert sum(done) == 3 * sum(map(len, PIECES))


def test_a_busy_server_is_waited_for(tmp_path: Path) -> None:
    with fake_endpoint("busy", 2) as server:
        found = Endpoint(server.url, Journal(tmp_path / "j")).nats(CANDIDATES[:1], PIECES, lambda _: None)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("refuses", "refused the request: HTTP 400: .*layers: got 9"),
        ("ignores", "it ignores the schedule"),
        ("nan", "not a finite log-probability"),
        ("short", "not a finite log-probability"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, fault: str, message: str) -> None:
    with fake_endpoint(fault) as server, pytest.raises(RuntimeError, match=message) as caught:
        Endpoint(server.url, Journal(tmp_path / "j")).nats(CANDIDATES[:1], PIECES, lambda _: None)
    assert "\n" not in str(caught.value)


def test_what_was_answered_is_kept_when_the_server_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "PATIENCE_S", 0.2)
    with fake_endpoint("dies", 2) as server:
        meter = Endpoint(server.url, Journal(tmp_path / "j"), concurrency=1, batch_tokens=25)
        with pytest.raises(RuntimeError, match="the same command goes on"):
            meter.nats(CANDIDATES, PIECES, lambda _: None)
        assert len(server.prompts) > 0
    assert len(Journal(tmp_path / "j")) == len(server.prompts)


def test_weights_decide_and_the_server_says_so(tmp_path: Path) -> None:
    with fake_endpoint() as server:
        assert np.isfinite(
            Endpoint(server.url, Journal(tmp_path / "j")).nats([BY_WEIGHT], PIECES, lambda _: None)
        ).all()
        assert {str(hint) for _, hint in server.prompts} == {"{'min_weight': [0.1, 0.2]}"}
    with fake_endpoint("ranks") as server, pytest.raises(RuntimeError, match="it ignores the schedule"):
        Endpoint(server.url, Journal(tmp_path / "k")).nats([BY_WEIGHT], PIECES, lambda _: None)


def test_kept_experts_are_counted_once_for_each_text_and_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(url: str, schedule: object, pieces: list[np.ndarray], top_k: int) -> Realised:
        asked.append(len(pieces))
        return Realised(2.5 + len(asked), 100)

    monkeypatch.setattr(endpoint, "realised", counted)
    for _ in range(2):
        meter = Endpoint("http://127.0.0.1:9", Journal(tmp_path / "j"))
        assert meter.mean_na(BY_WEIGHT.hint, PIECES, TOP_K) == 3.5
        assert meter.mean_na(BY_WEIGHT.hint, PIECES[:2], TOP_K) == 4.5
        assert meter.mean_na({"min_weight": [0.1, 0.3]}, PIECES, TOP_K) == 5.5
    assert asked == [4, 2, 4]
