"""What the stage by weight adds to a search's results: JSON-ready rows, and lines of the page. Pure.

by_weight             in summary.json of a search with --statistics
  won                 whether the search's winner is by weight
  verdict             the same in words
  best                layers (experts to be kept on average), rescale, hint, loss on both texts, mean_na on both,
                      minus_rank_percent: its paired difference from the best schedule by rank
  rank                that schedule; rank_winner: the search's winner by rank, often the same
  tried[]             every table and rescale: how often thresholds were moved, experts kept, loss on the deciding text
  headroom            share above the budget that the mean may have on the text to fit on, and on the one that decides
"""

from __future__ import annotations

from typing import Any

from sglang_moe_opt.search.by_weight import CHECK_HEADROOM, HEADROOM, ByWeight, Judged, Tried
from sglang_moe_opt.search.candidate import Candidate
from sglang_moe_opt.search.model_search import Search
from sglang_moe_opt.search.outcome import Found
from sglang_moe_opt.search.sensitivity import Difference


def to_object(search: Search, found: Found, judged: Judged, sampled_tokens: int) -> dict[str, Any]:
    """The part `by_weight` of a summary; `sampled_tokens` is how many thresholds were made from."""
    return {
        "won": judged.wins,
        "verdict": verdict(judged),
        "best": None if judged.best is None else best_row(search, judged),
        "rank": rank_row(search, judged.rank),
        "rank_winner": rank_row(search, found.winner),
        "tried": [_tried_row(search, each) for each in judged.tried],
        "headroom": {"fit_text": HEADROOM, "check_text": CHECK_HEADROOM},
        "sampled_tokens": sampled_tokens,
    }


def best_row(search: Search, judged: Judged) -> dict[str, Any]:
    """The best schedule by weight."""
    best, check, full = judged.best, search.check_text, search.space.full
    assert best is not None
    return {
        "rule": "min_weight",
        "layers": list(best.layers),
        "rescale": best.way,
        "mean_na": round(judged.fit_na, 4),
        "mean_na_on_check_text": round(judged.check_na, 4),
        "hint": best.hint,
        "loss_percent": interval(check.percent(best, full)),
        "loss_percent_on_fit_text": interval(search.fit_text.percent(best, full)),
        "minus_rank_percent": interval(check.percent(best, judged.rank)),
    }


def verdict(judged: Judged) -> str:
    """Which rule won and why, in one sentence."""
    if judged.best is None:
        return "by rank: no thresholds kept to their table"
    kept = (
        f"it keeps {judged.fit_na:.3f} experts on the text to fit on and {judged.check_na:.3f} on the one that decides"
    )
    if judged.wins:
        return f"by weight: {kept}"
    above = judged.check_na / judged.best.mean_na - 1
    if above > CHECK_HEADROOM:
        return f"by rank: the best by weight is {100 * above:.1f} % above the budget; {kept}"
    return f"by rank: the best by weight is not better for certain; {kept}"


def lines(part: dict[str, Any]) -> list[str]:
    """What a page says of it, below the table."""
    found = [f"Decided {part['verdict']}."]
    if (best := part["best"]) is not None:
        rank, (low, high) = part["rank"], best["minus_rank_percent"]["interval_95"]
        found[0] += (
            f" Best by weight minus best by rank ({' '.join(map(str, rank['layers']))}, {rank['rescale']}): "
            f"{best['minus_rank_percent']['value']:+.3f} % ({low:+.3f} to {high:+.3f})."
        )
    return ["", *found]


def rows(part: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Rows of a page's table beside the winner: (name, row with layers, rescale, mean_na and loss_percent)."""
    others = [] if part["won"] or part["best"] is None else [("best by weight", part["best"])]
    return [*others, *([("best by rank", part["rank"])] if part["won"] else [])]


def interval(difference: Difference) -> dict[str, Any]:
    """A difference with its 95 % interval, rounded."""
    return {"value": round(difference.value, 4), "interval_95": [round(end, 4) for end in difference.interval]}


def rank_row(search: Search, one: Candidate) -> dict[str, Any]:
    """A schedule by rank."""
    return {
        "rule": "rank",
        "layers": list(one.layers),
        "rescale": one.rescale,
        "mean_na": round(one.mean_na, 4),
        "hint": one.hint,
        "loss_percent": interval(search.check_text.percent(one, search.space.full)),
    }


def _tried_row(search: Search, each: Tried) -> dict[str, Any]:
    one: ByWeight | None = each.one
    return {
        "layers": list(each.layers),
        "rescale": each.way,
        "rounds": len(each.rounds),
        "mean_na": round(each.mean_na, 4),
        "hint": None if one is None else one.hint,
        "loss_percent": None if one is None else interval(search.check_text.percent(one, search.space.full)),
    }
