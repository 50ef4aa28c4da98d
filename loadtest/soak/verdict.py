"""What a soak found, and whether it passed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadtest.soak.books import Check
from loadtest.soak.ledger import Ledger
from loadtest.soak.memory import Series


@dataclass(frozen=True)
class Settings:
    """How a soak was asked for.

    Attributes:
        minutes: of traffic.
        concurrency: requests at a time.
        reload_every_s: mean seconds between what the operator does.
        warm_up: share of the run before memory counts.
        allowed_mib_per_hour: growth of a process that is no leak.
        seed: of what is sent.
    """

    minutes: float
    concurrency: int
    reload_every_s: float
    warm_up: float
    allowed_mib_per_hour: float
    seed: int


def summarise(
    settings: Settings,
    seconds: float,
    ledger: Ledger,
    acts: dict[str, int],
    checks: Sequence[Check],
    memory: Sequence[Series],
) -> dict[str, Any]:
    """The results, JSON-ready; `failures` says in words what did not pass."""
    grown = [(series, series.growth(settings.warm_up * seconds, settings.allowed_mib_per_hour)) for series in memory]
    failures = [f"{ledger.num_errors} errors, the first: {ledger.errors[0]}"] if ledger.num_errors else []
    if not ledger.finished or not ledger.sentinels:
        failures.append("no answer that could be compared")
    failures += [f"{check.name}: client {check.expected}, server {check.found}" for check in checks if not check.ok]
    for series, growth in grown:
        if growth.outcome in ("grows", "undecided"):
            failures.append(
                f"memory of {series.name} ({series.pid}): {growth.outcome}, {growth.slope:+.1f} MiB/h "
                f"({growth.low:+.1f} to {growth.high:+.1f}), allowed {settings.allowed_mib_per_hour:g}"
            )
    return {
        "passed": not failures,
        "failures": failures,
        "settings": asdict(settings),
        "seconds": round(seconds, 1),
        "requests": dict(ledger.sent),
        "answered": dict(sorted(ledger.answered.items())),
        "refused": {str(status): number for status, number in sorted(ledger.refused.items())},
        "finished": ledger.finished,
        "output_tokens": ledger.output_tokens,
        "cut_streams": ledger.cut,
        "cut_before_an_answer": ledger.unknown,
        "answers_compared": ledger.sentinels,
        "operator": acts,
        "num_errors": ledger.num_errors,
        "errors": ledger.errors,
        "metrics": [asdict(check) for check in checks],
        "memory": [series.to_object(growth) for series, growth in grown],
    }


def lines(result: dict[str, Any]) -> list[str]:
    """The results for people."""
    minutes, requests, checks = result["seconds"] / 60, result["requests"], result["metrics"]
    kinds = ", ".join(f"{number} {kind}" for kind, number in requests.items())
    text = [
        f"{sum(requests.values())} requests in {minutes:.1f} min: {kinds}",
        f"{result['finished']} whole answers, {result['output_tokens']} tokens; refused as meant: {result['refused']}",
        f"{result['answers_compared']} answers compared with the known ones; operator: {result['operator']}",
        f"metrics: {sum(check['ok'] for check in checks)} of {len(checks)} checks agree",
    ]
    for one in result["memory"]:
        size, growth = one["rss_mib"], ""
        if one["slope"] is not None:
            growth = f" {one['slope']:+.1f} MiB/h ({one['low']:+.1f} to {one['high']:+.1f})"
        text.append(f"memory of {one['process']}: {size[0]:.0f} -> {size[-1]:.0f} MiB, {one['outcome']}{growth}")
    failures = [f"FAILED: {failure}" for failure in result["failures"]]
    return [*text, *failures, "passed" if result["passed"] else "failed"]
