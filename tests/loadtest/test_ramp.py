"""A ramp: tokens fall to stages, users come and go, and the last profile meets the best of the others."""

from __future__ import annotations

import pytest

from eval.schedules import Labelled
from loadtest.ramp import climb, result, stage_rates
from loadtest.record import Record
from loadtest.sse_server.process import sse_server
from loadtest.sse_server.schedule import Fault, Schedule
from loadtest.target import Target


def record(start: float, arrivals: tuple[float, ...], tokens: int) -> Record:
    return Record("auto", start, arrivals, 9, 4, tokens)


def test_tokens_count_in_the_stage_in_which_they_arrive() -> None:
    records = [record(0.5, (0.1, 0.4, 1.0, 5.0), 8), record(1.9, (0.05, 0.2), 2)]
    assert stage_rates(records, stages=2, seconds=2) == [(3 * 2 + 1) / 2, 1 / 2]


def test_the_best_fixed_profile_is_that_of_the_stage() -> None:
    rates = {"full": [[10, 100], [10, 100]], "fast": [[20, 90], [20, 90]], "auto": [[19, 99], [20, 98]]}
    first, second = result([1, 8], rates, 1, 4, 4)["stages"]
    assert (first["best_fixed"], second["best_fixed"]) == ("fast", "full")
    assert first["ratio"]["all"] == [0.95, 1.0]
    assert second["ratio"]["all"] == [0.99, 0.98]


SLOW = Schedule(ttft_ms=(10,), gap_ms=(10,))


@pytest.mark.server
def test_users_come_and_go_with_the_stages() -> None:
    with sse_server(SLOW) as served:
        target = Target(served.url, "generate", "m", None)
        records = climb(target, Labelled("full", "full"), [1, 4, 1], 0.6, [[1, 2, 3]], output_len=8)

    def running(at: float) -> int:
        return sum(record.start <= at < record.start + record.end for record in records)

    # Bounds that hold however late a busy machine is: nobody begins in a stage that does not want them.
    assert max(running(step / 100) for step in range(60)) == 1
    assert 2 <= max(running(0.6 + step / 100) for step in range(60)) <= 4
    assert all(record.ok for record in records)
    begun = [sum(low <= record.start < low + 0.6 for record in records) for low in (0, 0.6, 1.2)]
    assert begun[1] > begun[0]
    assert max(record.start for record in records) < 1.8 + 0.2
    assert sum(stage_rates(records, 4, 0.6)) * 0.6 <= 8 * len(records) + 1e-6


@pytest.mark.server
def test_a_ramp_whose_requests_fail_is_none() -> None:
    with sse_server(SLOW, [Fault("http500", 2)]) as served:
        target = Target(served.url, "generate", "m", None)
        with pytest.raises(RuntimeError, match=r"full: \d+ of \d+ requests failed, the first: HTTP 500"):
            climb(target, Labelled("full", "full"), [2], 0.3, [[1, 2, 3]], output_len=4)
