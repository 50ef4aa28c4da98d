"""Counts the distinct custom schedules of the requests in flight, so that their number can be limited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

from sglang_moe_opt.hints import FIELD, HintError, ResolvedHint

Schedule = tuple[str, str]
Key = tuple[str, Schedule]
"""A client's address and one of its schedules."""
Outer = TypeVar("Outer")
Inner = TypeVar("Inner")


class InFlight:
    """Requests between admission and the end of their response, by what they run under."""

    def __init__(self) -> None:
        self._requests: Counter[ResolvedHint] = Counter()

    def add(self, hint: ResolvedHint) -> None:
        """Count one request in."""
        self._requests[hint] += 1

    def remove(self, hint: ResolvedHint) -> None:
        """Count one request out."""
        self._requests[hint] -= 1
        if self._requests[hint] <= 0:
            del self._requests[hint]

    def by_profile(self) -> Counter[str]:
        """Requests of each profile."""
        counts: Counter[str] = Counter()
        for hint, number in self._requests.items():
            counts[hint.profile] += number
        return counts

    def profiles_beside(self, known: Iterable[ResolvedHint]) -> int:
        """Distinct schedules of profiles in flight that are none of these: of policies that were replaced."""
        return len({hint for hint in self._requests if not hint.is_custom and not hint.is_full} - set(known))


class LiveSchedules:
    """Distinct custom schedules at a time, counted from admission until the response has been sent.

    Profiles of the policy do not count.

    Attributes:
        limit: largest number of distinct schedules.
        per_client: largest number of one client (address); None: no such limit.
        in_flight: all requests, for what the server says of itself.
    """

    def __init__(self, limit: int, per_client: int | None = None) -> None:
        self.limit, self.per_client = limit, per_client
        self.in_flight = InFlight()
        self._requests: Counter[Key] = Counter()
        self._clients: dict[Schedule, Counter[str]] = {}
        self._schedules: dict[str, Counter[Schedule]] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def acquire(self, hint: ResolvedHint, client: str = "") -> Key | None:
        """Count a request in; returns what to release, or None where the hint does not count.

        Raises:
            HintError: with status 429, when it would be one schedule too many.
        """
        if not hint.is_custom or hint.is_full:
            return None
        schedule = (hint.prefill.digest, hint.decode.digest)
        own: Counter[Schedule] = self._schedules.get(client, Counter())
        if self.per_client is not None and schedule not in own and len(own) >= self.per_client:
            raise _too_many(hint, f"at most {self.per_client} of one client", "max_live_schedules_per_client")
        if schedule not in self._clients and len(self._clients) >= self.limit:
            raise _too_many(hint, f"at most {self.limit}", "max_live_schedules")
        self._schedules.setdefault(client, Counter())[schedule] += 1
        self._clients.setdefault(schedule, Counter())[client] += 1
        return client, schedule

    def release(self, key: Key) -> None:
        """Count one request out."""
        client, schedule = key
        _drop(self._schedules, client, schedule)
        _drop(self._clients, schedule, client)


def _drop(counts: dict[Outer, Counter[Inner]], outer: Outer, inner: Inner) -> None:
    """Count down, and forget what has come to nothing."""
    counts[outer][inner] -= 1
    if counts[outer][inner] <= 0:
        del counts[outer][inner]
    if not counts[outer]:
        del counts[outer]


def _too_many(hint: ResolvedHint, most: str, field: str) -> HintError:
    allowed = f"{most} distinct custom schedules at a time (policy {field}); retry later or name a profile"
    return HintError(FIELD, hint.schedule.to_object(), allowed, status=429)
