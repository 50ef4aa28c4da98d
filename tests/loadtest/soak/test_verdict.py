"""What fails a soak."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from loadtest.soak.books import Check
from loadtest.soak.ledger import Ledger
from loadtest.soak.memory import MIB, Series
from loadtest.soak.sentinels import Sentinels
from loadtest.soak.verdict import Settings, lines, summarise

SETTINGS = Settings(30, 32, 5, 0.25, 32, 0)


def memory(mib_per_hour: float) -> Series:
    seconds = [2.0 * step for step in range(900)]
    return Series("scheduler", 7, seconds, [int(MIB * (500 + mib_per_hour * at / 3600)) for at in seconds])


def books(**changed: Any) -> Ledger:
    ledger = Ledger(sent=Counter({"profile": 9, "bad hint": 1}), finished=9, output_tokens=90, sentinels=3)
    for name, value in changed.items():
        setattr(ledger, name, value)
    return ledger


def result(ledger: Ledger | None = None, check: Check | None = None, growth: float = 0.0) -> dict[str, Any]:
    checks = [check or Check.equal("generation of the policy", 3, 3)]
    return summarise(SETTINGS, 1800.0, ledger or books(), {"reloaded": 2}, checks, [memory(growth)])


def test_a_soak_that_passes() -> None:
    found = result()
    assert found["passed"] and found["failures"] == []
    assert lines(found)[-1] == "passed" and lines(found)[0].startswith("10 requests in 30.0 min")
    assert found["memory"][0]["outcome"] == "flat" and len(found["memory"][0]["rss_mib"]) == 900


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"ledger": books(num_errors=2, errors=["HTTP 500", "x"])}, "2 errors, the first: HTTP 500"),
        ({"ledger": books(finished=0)}, "no answer that could be compared"),
        ({"ledger": books(sentinels=0)}, "no answer that could be compared"),
        ({"check": Check.within("tokens decoded", 5, 9, 10)}, "tokens decoded: client [5, 9], server 10"),
        ({"growth": 100.0}, "memory of scheduler (7): grows, +100.0 MiB/h (+100.0 to +100.0), allowed 32"),
    ],
)
def test_each_failure_is_said(arguments: dict[str, Any], said: str) -> None:
    found = result(**arguments)
    assert not found["passed"] and found["failures"] == [said]
    assert lines(found)[-2:] == [f"FAILED: {said}", "failed"]


def test_answers_are_compared_by_definition() -> None:
    known = Sentinels()
    known.learn((1, 2), "turning", "3", [7, 8])
    known.learn((1, 2), "turning", "2", [7, 9])
    assert known.wrong((1, 2), "turning", "3", [7, 8]) is None
    assert known.wrong((1, 2), "turning", "2", (7, 9)) is None
    assert known.wrong((1, 2), "turning", "2", [7, 8]) == (
        "turning with 2 experts gave other tokens than before, which is the answer with 3: [7, 8]"
    )
    assert "never defined so: ['2', '3']" in str(known.wrong((1, 2), "turning", "4", [7, 8]))
