"""What a search on a model leaves behind: one JSON-ready summary, and tables and plots made from it alone. Pure.

summary.json        everything below; losses in percent of bits per byte above the full model
  winner            rule, hint, layers, rescale, mean_na, share of the full model's bytes of expert weights, loss on
                    both texts; by weight, layers are what is kept on average and mean_na what the engine kept
  compared[]        every plain schedule on the deciding text: hint, loss, and winner - it with the 95 % interval
  rescales[]        one uniform schedule under different rescales, on the text to fit on
  front[]           predicted best for each amount of the budget
  costs             the fitted model and its error on mixes that were left out
  by_weight         of a search with a sample of router weights: see by_weight_results
  measured          schedules and tokens computed, seconds
sensitivities.json  every schedule that was measured
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sglang_moe_opt.files import replace_atomically, write_atomically
from sglang_moe_opt.pyplot import NoMatplotlibError, pyplot
from sglang_moe_opt.search import by_weight_results
from sglang_moe_opt.search.by_weight import ByWeight, Judged
from sglang_moe_opt.search.by_weight_results import interval
from sglang_moe_opt.search.candidate import Candidate
from sglang_moe_opt.search.model_search import Search
from sglang_moe_opt.search.outcome import Found
from sglang_moe_opt.search.sensitivity import as_rows

SUMMARY, TABLE, SENSITIVITIES, PLOT = "summary.json", "summary.md", "sensitivities.json", "search.png"


def summary(
    search: Search, found: Found, expert_bytes: int, judged: Judged | None = None, sampled_tokens: int = 0
) -> dict[str, Any]:
    """The search as a JSON-ready object.

    Args:
        search: that has run.
        found: what it ended with.
        expert_bytes: of one routed expert.
        judged: schedules by weight, where they were tried.
        sampled_tokens: that their thresholds were made from.
    """
    fit_text, check_text, full = search.fit_text, search.check_text, search.space.full
    winner = judged.best if judged is not None and judged.wins and judged.best is not None else found.winner
    per_token = fit_text.per_token(full)
    neighbours = found.costs.neighbours
    terms = [
        {str(na): round(found.costs.loss(float(term)), 6) for na, term in zip(found.costs.levels, row, strict=True)}
        for row in found.costs.terms
    ]
    report: dict[str, Any] = {
        "format": "moe-opt-schedule-search",
        "version": 1,
        "budget": {"kind": search.budget.kind, "wanted": search.max_loss or search.budget.wanted},
        "winner": _winner(search, found, expert_bytes, judged),
        "finalists": as_rows(check_text, full, found.finalists),
        "compared": [
            {
                "kind": kind,
                "layers": list(one.layers),
                "rescale": one.rescale,
                "mean_na": round(one.mean_na, 4),
                "hint": one.hint,
                "loss_percent": interval(check_text.percent(one, full)),
                "winner_minus_it_percent": interval(check_text.percent(winner, one)),
            }
            for kind, one in _compared(found)
        ],
        "rescales": as_rows(fit_text, full, found.rescales),
        "front": [
            {
                "layers": list(one.layers),
                "mean_na": round(sum(one.layers) / len(one.layers), 4),
                "predicted_percent": round(100 * one.loss / per_token, 4),
            }
            for one in found.front(float(search.budget.weights[-1]) * search.space.layers)
        ],
        "costs": {
            "nats_per_token": terms,
            "curvature": round(found.costs.curvature, 4),
            "neighbours": None if neighbours is None else [round(float(q), 4) for q in neighbours],
            "error_on_left_out_mixes": round(found.costs.error, 6),
        },
        "measured": {
            "fit_text": {"tokens": fit_text.tokens, "pieces": len(fit_text.pieces), "schedules": len(fit_text.nats)},
            "check_text": {
                "tokens": check_text.tokens,
                "pieces": len(check_text.pieces),
                "schedules": len(check_text.nats),
            },
            "tokens": fit_text.asked + check_text.asked,
            "nats_per_token_full": round(per_token, 6),
        },
    }
    if judged is not None:
        report["by_weight"] = by_weight_results.to_object(search, found, judged, sampled_tokens)
    return report


def _winner(search: Search, found: Found, expert_bytes: int, judged: Judged | None) -> dict[str, Any]:
    """The part `winner`."""
    one, full, layers = found.winner, search.space.full, search.space.layers
    if judged is not None and judged.wins:
        row = by_weight_results.best_row(search, judged)
        return {
            **row,
            "expert_bytes_per_token": round(judged.fit_na * layers * expert_bytes),
            "share_of_full": round(judged.fit_na * layers / full.total, 4),
        }
    return {
        **by_weight_results.rank_row(search, one),
        "expert_bytes_per_token": one.total * expert_bytes,
        "share_of_full": round(one.total / full.total, 4),
        "loss_percent_on_fit_text": interval(search.fit_text.percent(one, full)),
        "predicted_percent": round(100 * found.costs.predict(one.layers) / search.fit_text.per_token(full), 4),
    }


def write(folder: Path, search: Search, report: dict[str, Any]) -> list[Path]:
    """Write all files of a summary; the plot where matplotlib is installed."""
    fit_text, check_text, full = search.fit_text, search.check_text, search.space.full
    rows = {
        text.name: as_rows(text, full, (one for one in text.nats if one != full and not isinstance(one, ByWeight)))
        for text in (fit_text, check_text)
    }
    write_atomically(folder / SENSITIVITIES, json.dumps(rows, indent=1) + "\n")
    write_atomically(folder / SUMMARY, json.dumps(report, indent=2) + "\n")
    write_atomically(folder / TABLE, page(report))
    written = [folder / name for name in (SUMMARY, TABLE, SENSITIVITIES)]
    try:
        replace_atomically(folder / PLOT, lambda path: _plot(report, rows[fit_text.name], search.space.top_k, path))
    except NoMatplotlibError:
        return written
    return [*written, folder / PLOT]


def page(report: dict[str, Any]) -> str:
    """summary.md."""
    winner, measured = report["winner"], report["measured"]
    budget = report["budget"]
    lines = [
        f"# {report.get('model', 'model')}: schedule for {budget['kind'].replace('_', ' ')} {budget['wanted']:g}",
        "",
        "Loss in percent of bits per byte above the full model on the text that decides, with 95 % intervals.",
        "",
        "| schedule | layers | rescale | mean na | loss, % | winner - it, % |",
        "|---|---|---|---:|---:|---:|",
        f"| found{' by weight' * (winner['rule'] != 'rank')} | {_layers(winner)} | {winner['rescale']} "
        f"| {winner['mean_na']:.2f} | {_text(winner['loss_percent'])} | |",
    ]
    part = report.get("by_weight")
    lines += [
        f"| {name} | {_layers(row)} | {row['rescale']} | {row['mean_na']:.2f} | {_text(row['loss_percent'])} | |"
        for name, row in (by_weight_results.rows(part) if part else [])
    ]
    lines += [
        f"| {row['kind']} | {_layers(row)} | {row['rescale']} | {row['mean_na']:.2f} | {_text(row['loss_percent'])} "
        f"| {_text(row['winner_minus_it_percent'])} |"
        for row in report["compared"]
    ]
    lines += by_weight_results.lines(part) if part else []
    lines += [
        "",
        f"{measured['tokens']:,} tokens computed; {measured['fit_text']['schedules']} schedules on "
        f"{measured['fit_text']['tokens']:,} tokens, {measured['check_text']['schedules']} on "
        f"{measured['check_text']['tokens']:,} others"
        + (f"; {report['seconds'] / 60:.1f} minutes" if "seconds" in report else "")
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _compared(found: Found) -> list[tuple[str, Candidate]]:
    rows = [(kind, one) for kind, ones in found.plain.items() for one in ones]
    return rows + [(kind, one) for kind, ones in found.scaled.items() for one in ones if one.rescale != "router"]


def _layers(row: dict[str, Any]) -> str:
    return " ".join(map(str, row["layers"]))


def _text(value: dict[str, Any]) -> str:
    low, high = value["interval_95"]
    return f"{value['value']:+.3f} ({low:+.3f} to {high:+.3f})"


def _plot(report: dict[str, Any], rows: list[dict[str, Any]], top_k: int, path: Path) -> None:
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.2), dpi=144, layout="constrained")
    _plot_singles(left, report, rows, top_k)
    _plot_front(right, report, rows)
    figure.savefig(path, format="png")
    plt.close(figure)


def _rank_rescale(report: dict[str, Any]) -> Any:
    """Under which most schedules were measured: that of the winner by rank."""
    return report["by_weight"]["rank_winner"]["rescale"] if "by_weight" in report else report["winner"]["rescale"]


def _plot_singles(axes: Any, report: dict[str, Any], rows: list[dict[str, Any]], top_k: int) -> None:
    from matplotlib import colormaps

    count = len(report["winner"]["layers"])
    for layer in range(count):
        own = [
            (row["layers"][layer], row["percent"], row["percent"] - row["percent_95"][0])
            for row in rows
            if row["layers"][layer] < top_k
            and row["layers"].count(top_k) == count - 1
            and row["rescale"] == _rank_rescale(report)
        ]
        if own:
            x, y, half = zip(*sorted(own), strict=True)
            axes.errorbar(
                x,
                y,
                yerr=half,
                marker="o",
                ms=3,
                lw=1,
                label=f"MoE layer {layer + 1}" if count <= 10 else None,
                color=colormaps["viridis"](layer / max(1, count - 1)),
            )
    axes.set(xlabel="na of this layer, the others full", ylabel="loss, % of bits per byte", title="Each layer alone")
    axes.grid(alpha=0.25)
    if count <= 10:
        axes.legend(fontsize=8, frameon=False)


def _plot_front(axes: Any, report: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    own = _rank_rescale(report)
    for is_own, label, color in ((False, "measured, other rescale", "0.8"), (True, "measured", "#1950e5")):
        points = [(r["mean_na"], r["percent"]) for r in rows if (r["rescale"] == own) == is_own]
        if points:
            axes.scatter(*zip(*points, strict=True), s=9, color=color, label=label, zorder=1 + is_own)
    best = report["front"]
    axes.plot(
        [r["mean_na"] for r in best], [r["predicted_percent"] for r in best], color="0.4", lw=1, label="predicted best"
    )
    winner = report["winner"]
    axes.scatter(
        winner["mean_na"],
        winner["loss_percent_on_fit_text"]["value"],
        s=90,
        facecolors="none",
        edgecolors="black",
        label="found",
        zorder=4,
    )
    measured = [r["percent"] for r in rows]
    # What is far worse than the schedule found would press all that matters into one line.
    highest = min(1.1 * max(measured), max(6 * winner["loss_percent_on_fit_text"]["value"], 0.01))
    axes.set_ylim(min(0.0, *measured), highest)
    axes.set(xlabel="mean na", ylabel="loss, % of bits per byte", title="Measured schedules and predicted front")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
