"""Requests to a server that behaves, and to servers that do not."""

from __future__ import annotations

import socket
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from eval.endpoint import EndpointError, Limits, SkippingCompletions, expected_profile
from eval.journal import Journal
from tests.eval.fake_server import fake_server, logprob
from tests.eval.small_data import weightless_model

QUICK = Limits(concurrency=3, batch_prompts=4, batch_tokens=100, timeout_s=10, patience_s=1)


class Counted:
    """Progress that adds up."""

    def __init__(self) -> None:
        self.total = self.known = self.done = 0

    def begin(self, total: int, known: int) -> None:
        self.total, self.known, self.done = total, known, known

    def advance(self, done: int) -> None:
        self.done += done


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weightless_model(tmp_path_factory.mktemp("model"))


def client(url: str, model: Path, journal: Path, hint: Any = "full", limits: Limits = QUICK) -> SkippingCompletions:
    return SkippingCompletions(
        url, hint, Journal(journal), Counted(), limits, model="m", tokenizer=str(model), max_length=256
    )


def requests(count: int) -> list[tuple[Any, list[int], list[int]]]:
    return [((f"c{i}", "x"), list(range(10, 13 + i % 7)), [40 + i, 41, 42]) for i in range(count)]


def expected(request: tuple[Any, list[int], list[int]], hint: Any = "full") -> float:
    ids = request[1] + request[2]
    return sum(logprob(a, b, hint) for a, b in list(pairwise(ids))[len(request[1]) - 1 :])


def test_answers_come_in_order_and_are_the_continuations(model: Path, tmp_path: Path) -> None:
    wanted = requests(50)
    with fake_server(model) as server:
        one = client(server.url, model, tmp_path / "j", {"na": 2})
        answers = one._loglikelihood_tokens(wanted)
    for (value, _), request in zip(answers, wanted, strict=True):
        assert value == pytest.approx(expected(request, {"na": 2}), abs=1e-9)
    assert one._progress.done == one._progress.total > 0
    assert len(server.prompts) == 50
    assert 50 / QUICK.batch_prompts <= server.requests < 30


def test_batches_keep_to_their_limits(model: Path, tmp_path: Path) -> None:
    one = client("http://unused", model, tmp_path / "j")
    asks = [type("Ask", (), {"ids": [0] * size})() for size in (150, 60, 30, 30, 5, 5, 5, 5, 5)]
    assert [[len(ask.ids) for ask in batch] for batch in one._batches(asks)] == [[150], [60, 30], [30, 5, 5, 5], [5, 5]]


def test_what_is_in_the_journal_is_not_asked_again(model: Path, tmp_path: Path) -> None:
    wanted = requests(40)
    with fake_server(model) as server:
        first = client(server.url, model, tmp_path / "j")._loglikelihood_tokens(wanted[:25])
        asked = len(server.prompts)
        again = client(server.url, model, tmp_path / "j")
        both = again._loglikelihood_tokens(wanted)
        assert len(server.prompts) == asked + 15
        assert list(map(tuple, both[:25])) == list(map(tuple, first))
        assert again._progress.known > 0
        client(server.url, model, tmp_path / "j", "fast")._loglikelihood_tokens(wanted)
        assert len(server.prompts) == asked + 15 + 40  # another schedule is another question


def test_equal_prompts_are_asked_once(model: Path, tmp_path: Path) -> None:
    with fake_server(model) as server:
        answers = client(server.url, model, tmp_path / "j")._loglikelihood_tokens(requests(1) * 6)
        assert len(server.prompts) == 1
    assert len({tuple(answer) for answer in answers}) == 1


def test_rolling_texts_are_asked_together(model: Path, tmp_path: Path) -> None:
    texts = ["a river", "the little house stood by the road. " * 60]
    asked = [type("Request", (), {"args": (text,)})() for text in texts]
    with fake_server(model) as server:
        one = client(server.url, model, tmp_path / "j")
        values = one.loglikelihood_rolling(asked)
        counts = [len(one.tok_encode(text)) for text in texts]
        assert counts[1] > 2 * 256
        assert sum(len(prompt) for prompt in server.prompts) >= sum(counts)
    upstream = client("http://unused", model, tmp_path / "j")
    assert values == [super(SkippingCompletions, upstream).loglikelihood_rolling([one], True)[0] for one in asked]


def test_generated_text(model: Path, tmp_path: Path) -> None:
    options = {"until": ["\n"], "max_gen_toks": 4, "do_sample": False, "temperature": 0.0}
    asked = [type("Request", (), {"args": (text, options)})() for text in ("one", "one two three four", "x y")]
    with fake_server(model) as server:
        one = client(server.url, model, tmp_path / "j", "fast")
        answers = one.generate_until(asked)
        assert answers == [
            f" word{len(one.tok_encode(text))}, and more" for text in ("one", "one two three four", "x y")
        ]


FAULTS = {
    "no_logprobs": "no log-probabilities of the prompt",
    "no_echo": "does not echo",
    "nan": "not finite",
    "no_header": "ignores the hint",
    "wrong_header": "x-moe-skip: got 'full', expected 'custom'",
    "refuses": "refused the request: HTTP 400: custom_params.moe_skip: got 'x', allowed: full",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_answer_is_refused_at_once(model: Path, tmp_path: Path, fault: str) -> None:
    with fake_server(model, fault) as server:
        one = client(server.url, model, tmp_path / "j", {"na": 2})  # imports what takes seconds
        start = time.monotonic()
        with pytest.raises(EndpointError) as error:
            one._loglikelihood_tokens(requests(3))
        assert time.monotonic() - start < QUICK.patience_s
        assert server.requests == 1  # asked again, it would answer no better
        assert FAULTS[fault] in str(error.value)
        assert str(error.value).startswith(server.url)
        assert len(str(error.value).splitlines()) == 1


def test_a_busy_server_is_waited_for(model: Path, tmp_path: Path) -> None:
    with fake_server(model, "busy", failures=2) as server:
        limits = Limits(concurrency=1, patience_s=20)
        answers = client(server.url, model, tmp_path / "j", limits=limits)._loglikelihood_tokens(requests(3))
    assert [value for value, _ in answers] == pytest.approx([expected(request) for request in requests(3)])


def test_a_dead_server_is_given_up_and_its_answers_kept(model: Path, tmp_path: Path) -> None:
    wanted = requests(60)
    with fake_server(model, "dies", failures=5) as server:
        one = client(server.url, model, tmp_path / "j")
        start = time.monotonic()
        with pytest.raises(EndpointError, match="no answer for 1 s: HTTP 500: out of order") as error:
            one._loglikelihood_tokens(wanted)
        assert server.url in str(error.value)
        assert time.monotonic() - start < 10
    kept = len(Journal(tmp_path / "j"))
    assert 0 < kept < 60
    with fake_server(model) as server:
        answers = client(server.url, model, tmp_path / "j")._loglikelihood_tokens(wanted)
        assert len(server.prompts) == 60 - kept
    assert [value for value, _ in answers] == pytest.approx([expected(request) for request in wanted])


def test_a_closed_port_is_given_up(model: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(EndpointError, match="no answer for 1 s"):
        client(url, model, tmp_path / "j")._loglikelihood_tokens(requests(2))


def test_what_the_server_should_say() -> None:
    assert expected_profile("fast") == expected_profile({"profile": "fast"}) == "fast"
    assert expected_profile({"na": 2}) == expected_profile({"prefill": "full", "decode": {"na": 1}}) == "custom"
