"""Fixtures of the tests against a real server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# importlib mode puts no test folder on the path; the helpers beside this file are imported by their own names.
sys.path.insert(0, str(Path(__file__).parent))

from server import V2, Kind, Server, Servers, start_servers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of one server together: each is started once, though only two are alive at a time."""
    here = [index for index, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    kinds = {items[index]: _kinds(items[index]) for index in here}
    places = {
        kind: place for place, kind in enumerate(dict.fromkeys(kind for found in kinds.values() for kind in found))
    }

    def rank(item: pytest.Item) -> tuple[int, bool, int]:
        # A test that compares two servers comes after the tests of its first one, while that is still alive.
        first, last = kinds[item][0], kinds[item][-1]
        return places[first], first != last, places[last]

    for index, item in zip(here, sorted(kinds, key=rank), strict=True):
        items[index] = item


def _kinds(item: pytest.Item) -> list[Kind]:
    """Servers that a test says it uses: by the fixture ``v2`` and by its parameters."""
    shared = [V2] if "v2" in getattr(item, "fixturenames", ()) else []
    callspec = getattr(item, "callspec", None)
    named = [value for value in callspec.params.values() if isinstance(value, Kind)] if callspec else []
    return [*shared, *named] or [V2]


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
