"""Counts the distinct custom schedules of the requests in flight, so that their number can be limited."""

from __future__ import annotations

from collections import Counter

from sglang_moe_opt.hints import FIELD, HintError, ResolvedHint

Key = tuple[str, str]


class LiveSchedules:
    """Distinct custom schedules at a time, counted from admission until the response has been sent.

    Args:
        limit: largest number of distinct schedules; profiles of the policy do not count.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._requests: Counter[Key] = Counter()

    def __len__(self) -> int:
        return len(self._requests)

    def acquire(self, hint: ResolvedHint) -> Key | None:
        """Count a request in; returns what to release, or None where the hint does not count.

        Raises:
            HintError: with status 429, when it would be one schedule too many.
        """
        if not hint.is_custom or hint.is_full:
            return None
        key = (hint.prefill.digest, hint.decode.digest)
        if key not in self._requests and len(self._requests) >= self._limit:
            raise HintError(
                FIELD,
                hint.schedule.to_object(),
                f"at most {self._limit} distinct custom schedules at a time (policy max_live_schedules); "
                "retry later or name a profile",
                status=429,
            )
        self._requests[key] += 1
        return key

    def release(self, key: Key) -> None:
        """Count one request out."""
        self._requests[key] -= 1
        if self._requests[key] <= 0:
            del self._requests[key]
