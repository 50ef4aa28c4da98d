"""Fixtures of the tests against a real server."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

# importlib mode puts no test folder on the path; the helpers beside this file are imported by their own names.
sys.path.insert(0, str(Path(__file__).parent))

from server import V2, Kind, Server, Servers, start_servers

START_S, TEST_S, OWN_SERVERS_S = 30, 2, 80
"""Roughly what a start of a shared server takes, a test with one, and a test that starts servers of its own."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests so that each server is started once, though only two are alive at a time.

    What shares a server, or compares two, is a group that one process runs. The groups that take longest come first
    (`tools/run_tests.py` keeps that order), so that two processes end at about the same time.
    """
    here = [index for index, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    kinds = {items[index]: _kinds(items[index]) for index in here}
    places = {kind: place for place, kind in enumerate(dict.fromkeys(chain.from_iterable(kinds.values())))}
    homes: dict[Kind, Kind] = {}
    for own in sorted(filter(None, kinds.values()), key=len, reverse=True):
        homes |= dict.fromkeys(own, homes.get(own[0], own[0]))
    names = {home: f"{home.model}.{places[home]}" for home in homes.values()}
    groups = {item: names[homes[own[0]]] if own else item.nodeid for item, own in kinds.items()}
    seconds = Counter({names[home]: START_S * count for home, count in Counter(homes.values()).items()})
    for item, own in kinds.items():
        seconds[groups[item]] += TEST_S if own else OWN_SERVERS_S

    def rank(item: pytest.Item) -> tuple[int, str, int, int]:
        # A test that compares two servers comes before those of its second one alone: its first is still alive.
        group, own = groups[item], kinds[item]
        return -seconds[group], group, places[own[-1]] if own else 0, -len(own)

    for index, item in zip(here, sorted(kinds, key=rank), strict=True):
        items[index] = item
        if kinds[item]:
            item.add_marker(pytest.mark.xdist_group(groups[item]))


def _kinds(item: pytest.Item) -> list[Kind]:
    """Servers that a test says it uses: by the fixture ``v2`` and by its parameters; none where it starts its own."""
    names = getattr(item, "fixturenames", ())
    callspec = getattr(item, "callspec", None)
    named = [value for value in callspec.params.values() if isinstance(value, Kind)] if callspec else []
    own = [*([V2] if "v2" in names else []), *named]
    assert own or "servers" not in names, f"{item.nodeid} does not say which servers it uses"
    return own


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Starts servers on demand."""
    yield from start_servers(tmp_path_factory.mktemp("servers"))


@pytest.fixture
def v2(servers: Servers) -> Server:
    """The server that most tests share: random DeepSeek-V2 in fp32 with the policy of the tests, its cache empty."""
    server = servers.get(V2)
    server.flush_cache()
    return server
