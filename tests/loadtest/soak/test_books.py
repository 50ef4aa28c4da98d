"""The client's books against the server's: what agrees, and which errors would be seen."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from loadtest.soak.books import Check, compare, moved, parse, quiet
from loadtest.soak.ledger import MAX_ERRORS_KEPT, Ledger

BEFORE = """\
# HELP sglang_moe_opt_requests_total Requests answered, by applied profile.
sglang_moe_opt_requests_total{profile="full"} 10.0
sglang_moe_opt_refused_requests_total{status="400"} 1.0
sglang:generation_tokens_total{model_name="m"} 5.0
"""
AFTER = """\
sglang_moe_opt_requests_total{profile="full"} 12.0
sglang_moe_opt_requests_total{profile="fast"} 3.0
sglang_moe_opt_refused_requests_total{status="400"} 3.0
sglang_moe_opt_refused_requests_total{status="429"} 1.0
sglang_moe_opt_tokens_total{phase="decode",profile="full"} 20.0
sglang_moe_opt_tokens_total{phase="decode",profile="fast"} 15.0
sglang_moe_opt_tokens_total{phase="prefill",profile="fast"} 99.0
sglang_moe_opt_slots_kept_total{profile="fast"} 40.0
sglang_moe_opt_slots_offered_total{profile="fast"} 120.0
sglang_moe_opt_live_schedules 0.0
"""
STATE = {
    "generation": 3,
    "profiles": {"full": {"in_flight": 0}, "fast": {"in_flight": 0}},
    "custom": {"live_schedules": 0},
}


def ledger(**changed: Any) -> Ledger:
    """Of a client whose requests are those between the two scrapes."""
    books = Ledger(answered=Counter(full=2, fast=3), refused=Counter({400: 2, 429: 1}), finished=5, output_tokens=40)
    for name, value in changed.items():
        setattr(books, name, value)
    return books


def checks(books: Ledger, after: str = AFTER, state: dict[str, Any] = STATE) -> dict[str, Check]:
    found = compare(books, parse(BEFORE), parse(after), state, generation=3, static_na={"fast": 2.0}, top_k=6)
    return {check.name: check for check in found}


def failed(*args: Any, **more: Any) -> list[str]:
    return [name for name, check in checks(*args, **more).items() if not check.ok]


def test_books_that_agree() -> None:
    assert failed(ledger()) == []
    assert len(checks(ledger())) == 11


def test_only_our_metrics_are_read_and_only_what_moved() -> None:
    assert moved(parse(BEFORE), parse(AFTER), "sglang_moe_opt_requests_total", "profile") == {"full": 2, "fast": 3}
    assert moved(parse(AFTER), parse(AFTER), "sglang_moe_opt_requests_total", "profile") == {}
    assert {name for name, _ in parse(BEFORE)} == {
        "sglang_moe_opt_requests_total",
        "sglang_moe_opt_refused_requests_total",
    }


def test_samples_of_several_processes_are_summed() -> None:
    text = "\n".join(f'sglang_moe_opt_tokens_total{{pid="{pid}",phase="decode"}} {pid}.0' for pid in (2, 3))
    assert moved(Counter(), parse(text), "sglang_moe_opt_tokens_total", "phase") == {"decode": 5}


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ('requests_total{profile="fast"} 3.0', 'requests_total{profile="fast"} 4.0', "requests of fast"),
        ('{profile="full"} 12.0', '{profile="full"} 11.0', "requests of full"),
        ('{status="400"} 3.0', '{status="400"} 4.0', "refusals with 400"),
        ('{status="429"} 1.0', '{status="429"} 2.0', "refusals but 400"),
        ('{status="429"} 1.0', '{status="500"} 1.0', "refusals but 400"),
        ('profile="full"} 20.0', 'profile="full"} 21.0', "tokens decoded"),
        ('profile="full"} 20.0', 'profile="full"} 19.0', "tokens decoded"),
        ('slots_kept_total{profile="fast"} 40.0', 'slots_kept_total{profile="fast"} 41.0', "experts per token of fast"),
        ("live_schedules 0.0", "live_schedules 1.0", "custom schedules left in flight, by /metrics"),
    ],
)
def test_each_counter_that_is_wrong_is_named(old: str, new: str, name: str) -> None:
    assert AFTER.count(old) == 1
    assert set(failed(ledger(), AFTER.replace(old, new))) - {"requests and refusals"} == {name}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"generation": 2}, "generation of the policy"),
        ({"custom": {"live_schedules": 1}}, "custom schedules left in flight"),
        ({"profiles": {"full": {"in_flight": 1}}}, "requests left in flight"),
    ],
)
def test_what_is_left_behind_is_named(change: dict[str, Any], name: str) -> None:
    assert failed(ledger(), state={**STATE, **change}) == [name]


def test_requests_whose_end_was_not_seen_widen_the_range() -> None:
    """They may count under a profile, or as 400; all of them together are no more than there were."""
    assert failed(ledger(answered=Counter(full=1, fast=3), unknown=1)) == []
    assert failed(ledger(refused=Counter({400: 1, 429: 1}), unknown=1)) == []
    assert failed(ledger(answered=Counter(full=1, fast=2), unknown=1)) == ["requests and refusals"]
    assert failed(ledger(refused=Counter({400: 2}), unknown=1)) == ["refusals but 400"]
    assert "requests of fast" in failed(ledger(answered=Counter(full=2, fast=4), unknown=1))
    assert "refusals with 400" in failed(ledger(refused=Counter({400: 3, 429: 1}), unknown=1))


def test_without_cut_streams_tokens_are_exact() -> None:
    assert quiet(parse(BEFORE), parse(AFTER), requests=7, tokens=6).ok
    assert not quiet(parse(BEFORE), parse(AFTER), requests=7, tokens=7).ok


def test_tokens_of_cut_streams_are_a_range() -> None:
    books = Ledger()
    books.whole(10)
    books.whole(1)
    assert books.decode_tokens() == (9, 9)  # a prompt gives the first token
    books.cut_off(seen=3, at_most=20)
    assert books.decode_tokens() == (11, 29)


def test_answers_of_a_batch_count_for_each_profile() -> None:
    books = Ledger()
    books.begun("full,custom")
    books.begun("full")
    assert books.answered == {"full": 2, "custom": 1}


def test_all_errors_count_and_some_are_kept() -> None:
    books = Ledger()
    for number in range(MAX_ERRORS_KEPT + 5):
        books.error(str(number))
    assert books.num_errors == MAX_ERRORS_KEPT + 5 and len(books.errors) == MAX_ERRORS_KEPT
