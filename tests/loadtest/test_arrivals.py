"""Arrivals of an open loop."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.arrivals import Arrival, poisson, trace

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:48.6805900,396,109
2023-11-16 18:15:50.6805901,5000,10
"""


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(1, 200), seconds=st.floats(0.5, 20), seed=st.integers(0, 1000))
def test_poisson_times_rise_within_the_span(rate: float, seconds: float, seed: int) -> None:
    times = poisson(rate, seconds, seed)
    assert times == sorted(times)
    assert all(0 < at < seconds for at in times)
    assert abs(len(times) - rate * seconds) < 6 * (rate * seconds) ** 0.5 + 6
    assert times == poisson(rate, seconds, seed)


def test_poisson_gaps_are_exponential() -> None:
    times = poisson(100, 100, 3)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.01, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.05)


def test_a_trace_is_replayed_at_its_speed(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(TRACE)
    found = trace(file, 2, 60, max_input=1000, max_output=50)
    assert found.arrivals[0] == Arrival(0, 374, 44)
    assert found.arrivals[1] == Arrival(1, 396, 50)
    assert found.arrivals[2].at == pytest.approx(2, abs=1e-5)
    assert found.arrivals[2].input_tokens == 1000
    assert found.clipped == 2


def test_only_the_asked_stretch_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(TRACE)
    assert len(trace(file, 1, 3, 10_000, 1000).arrivals) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TIMESTAMP,ContextTokens\n", "line 1: got .* a column GeneratedTokens"),
        (TRACE + "yesterday,1,2\n", "line 5"),
        (TRACE + "2023-11-16 18:15:51.0000000,x,2\n", "line 5"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "at least one request"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        trace(file, 1, 60, 10_000, 1000)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--trace: .*nowhere\.csv cannot be read"):
        trace(tmp_path / "nowhere.csv", 1, 60, 10, 10)


def test_times_that_go_back_are_refused_by_their_line(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(TRACE + "\n2023-11-16 18:15:40.0000000,1,2\n")
    with pytest.raises(ValueError, match=r"line 6: got .* times in order"):
        trace(file, 1, 60, 10_000, 1000)


@pytest.mark.data
@pytest.mark.parametrize(("name", "count"), [("code", 8819), ("conv", 19366)])
def test_the_published_traces(name: str, count: int, data_folder: Path) -> None:
    found = trace(data_folder / "loadtest" / f"AzureLLMInferenceTrace_{name}.csv", 1, 3600, 1 << 20, 1 << 20)
    assert len(found.arrivals) == count
    assert found.clipped == 0
