"""What schedule searches found, judged on text that they did not see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from docgen.blocks import Table
from docgen.results import RESULTS, load, table


def found(model: str) -> str:
    """Every schedule of the searched budgets: what it loses, and what the found one loses more or less than it."""
    run = f"search_{model}"
    rows = []
    for path in sorted((RESULTS / run).glob("against-found-*.json"), reverse=True):
        report, search = load(f"{run}/{path.name}"), load(f"{run}/{path.name.replace('against-found', 'search')}")
        mine = report["schedule"]
        for kind, one in _named(search):
            row = next(row for row in report["rows"] if row["hint"] == one["hint"])
            layers, rescale = one["layers"], one["rescale"]
            scaled = f"{rescale} by layer" if rescale == "fit" else str(rescale)
            cells = [kind, " ".join(map(str, layers)), scaled, f"{row['mean_na']:.2f}"]
            rows.append([*cells, _change(row["loss_percent"]), _change(row[f"{mine}_minus_it_percent"])])
    return table(["schedule", "layers", "rescale", "mean na", "loss, %", "found - it, %"], rows)


def _named(search: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The winner, the best of the other rule where it was tried, and the plain schedules, each once."""
    tried = search["by_weight"]
    winner = search["winner"]
    yield f"**found**, {_rule(winner)}", winner
    for other in (tried["rank_winner"], tried["best"]):
        if other and other["hint"] != winner["hint"]:
            yield f"best {_rule(other)}", other
    seen = [winner["hint"], tried["rank_winner"]["hint"]]
    for one in search["compared"]:
        if one["hint"] not in seen:
            seen.append(one["hint"])
            yield one["kind"], one


def _rule(one: Mapping[str, Any]) -> str:
    return "by rank" if one["rule"] == "rank" else "by weight"


def _change(change: Mapping[str, Any] | None) -> str:
    if change is None:
        return ""
    low, high = change["interval_95"]
    return f"{change['value']:+.2f} ({low:+.2f} to {high:+.2f})"


TABLES: dict[str, Table] = {"found": found}
