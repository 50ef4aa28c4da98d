"""Do the server's counters agree with what the client sent? Pure: two scrapes and a ledger in, checks out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from loadtest.soak.ledger import Ledger
from sglang_moe_opt.exposition import samples

Series = tuple[str, frozenset[tuple[str, str]]]
_OURS: Final = "sglang_moe_opt_"
_LEFT: Final = 400
_OFTEN_ADDED: Final = frozenset({"pid"})


@dataclass(frozen=True)
class Check:
    """One comparison: what the client's books say (a value or a range), what the server's do."""

    name: str
    expected: Any
    found: Any
    ok: bool

    @classmethod
    def equal(cls, name: str, expected: Any, found: Any) -> Check:
        """Both are the same."""
        return cls(name, expected, found, expected == found)

    @classmethod
    def within(cls, name: str, low: float, high: float, found: float) -> Check:
        """From `low` to `high`."""
        return cls(name, [low, high], found, low <= found <= high)


def parse(text: str) -> Counter[Series]:
    """Our counters in an exposition of Prometheus, summed over the processes."""
    found: Counter[Series] = Counter()
    for sample in samples(text):
        if sample.name.startswith(_OURS):
            kept = frozenset((key, item) for key, item in sample.labels.items() if key not in _OFTEN_ADDED)
            found[sample.name, kept] += sample.value  # type: ignore[assignment]
    return found


def moved(before: Counter[Series], after: Counter[Series], name: str, by: str | None = None) -> dict[str, int]:
    """By how much the samples of a counter moved, summed by a label; under "" where `by` is None."""
    sums: Counter[str] = Counter()
    for (metric, labels), value in after.items():
        if metric == name:
            key = dict(labels).get(by, "") if by else ""
            sums[key] += round(value - before.get((metric, labels), 0))
    return {key: number for key, number in sums.items() if number}


def quiet(before: Counter[Series], after: Counter[Series], requests: int, tokens: int) -> Check:
    """Where nothing was cut off, the decoded tokens are an exact number: so many requests of so many tokens each."""
    decoded = moved(before, after, _name("tokens"), "phase").get("decode", 0)
    return Check.equal("tokens decoded before the load", requests * (tokens - 1), decoded)


def compare(
    ledger: Ledger,
    before: Counter[Series],
    after: Counter[Series],
    state: Mapping[str, Any],
    *,
    generation: int,
    static_na: Mapping[str, float],
    top_k: int,
) -> list[Check]:
    """All checks.

    Args:
        ledger: of the client.
        before, after: scrapes around the soak, the server being idle.
        state: what GET /moe_opt/profiles said at the end.
        generation: of the policy, as the client reloaded it.
        static_na: experts per token of the profiles that keep a fixed number and were never redefined.
        top_k: of the model.
    """
    checks = [*_requests(ledger, before, after), *_refusals(ledger, before, after)]
    decoded = moved(before, after, _name("tokens"), "phase").get("decode", 0)
    checks.append(Check.within("tokens decoded", *ledger.decode_tokens(), decoded))
    kept, offered = (moved(before, after, _name(name), "profile") for name in ("slots_kept", "slots_offered"))
    for profile, na in static_na.items():
        if offered.get(profile):
            found = round(kept.get(profile, 0) / offered[profile] * top_k, 6)
            checks.append(Check.equal(f"experts per token of {profile}", float(na), found))
    live = sum(value for (name, _), value in after.items() if name == "sglang_moe_opt_live_schedules")
    checks.append(Check.equal("custom schedules left in flight, by /metrics", 0, int(live)))
    checks.append(Check.equal("custom schedules left in flight", 0, state["custom"]["live_schedules"]))
    running = {name: one["in_flight"] for name, one in state["profiles"].items() if one["in_flight"]}
    checks.append(Check.equal("requests left in flight", {}, running))
    checks.append(Check.equal("generation of the policy", generation, state["generation"]))
    return checks


def _requests(ledger: Ledger, before: Counter[Series], after: Counter[Series]) -> list[Check]:
    found = moved(before, after, _name("requests"), "profile")
    sent = ledger.answered
    return [_seen(f"requests of {name}", sent[name], ledger, found.get(name, 0)) for name in sorted({*found, *sent})]


def _refusals(ledger: Ledger, before: Counter[Series], after: Counter[Series]) -> list[Check]:
    """SGLang answers a client that has left with 400, which nobody receives: only those may be more than were seen."""
    found = {
        int(status): number for status, number in moved(before, after, _name("refused_requests"), "status").items()
    }
    others = {status: number for status, number in ledger.refused.items() if status != _LEFT}
    total = sum(found.values()) + sum(moved(before, after, _name("requests"), "profile").values())
    return [
        Check.equal("refusals but 400", others, {status: n for status, n in found.items() if status != _LEFT}),
        _seen("refusals with 400", ledger.refused[_LEFT], ledger, found.get(_LEFT, 0)),
        _seen("requests and refusals", ledger.answered.total() + ledger.refused.total(), ledger, total),
    ]


def _seen(name: str, number: int, ledger: Ledger, found: int) -> Check:
    """What the client saw; a request whose end it did not see may count there or elsewhere."""
    if ledger.unknown:
        return Check.within(name, number, number + ledger.unknown, found)
    return Check.equal(name, number, found)


def _name(name: str) -> str:
    return f"{_OURS}{name}_total"
