"""Bits per byte over distinct experts, plain skipping against consolidation, one panel for each batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from sglang_moe_opt.pyplot import pyplot

FAMILIES = (
    ("own ", "consolidated, own k0", "o", "#c1440e"),
    ("cap", "consolidated with a cap", "s", "#2a7f62"),
)


def png(model: str, by_batch: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """The figure of a result's rows by batch size."""
    plots = pyplot()
    figure, axes = plots.subplots(1, len(by_batch), figsize=(6 * len(by_batch), 4.5), squeeze=False, sharey=True)
    for axis, (batch, rows) in zip(axes[0], by_batch.items(), strict=True):
        plain = [row for row in rows if row["arm"].startswith("na=")]
        _draw(axis, plain, "plain skipping", "-D", "#555555")
        joint = [
            row for row in rows if row not in plain and "in groups" not in row["arm"] and "share" not in row["arm"]
        ]
        capped = [row for row in joint if "cap" in row["arm"]]
        _draw(axis, [row for row in joint if row not in capped], FAMILIES[0][1], "-o", FAMILIES[0][3])
        _draw(axis, capped, FAMILIES[1][1], "s", FAMILIES[1][3])
        axis.set_title(f"{model}, {batch} sequences")
        axis.set_xlabel("distinct experts of a layer-step")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("change of bits per byte, %")
    axes[0][0].legend()
    figure.tight_layout()
    out = BytesIO()
    figure.savefig(out, format="png", dpi=110)
    plots.close(figure)
    return out.getvalue()


def _draw(axis: Any, rows: Sequence[Mapping[str, Any]], label: str, style: str, color: str) -> None:
    x = [row["distinct_experts"] for row in rows]
    changes = [row["change_percent"] or {"value": 0.0, "interval": [0.0, 0.0]} for row in rows]
    y = [change["value"] for change in changes]
    errors = [[c["value"] - c["interval"][0] for c in changes], [c["interval"][1] - c["value"] for c in changes]]
    axis.errorbar(x, y, yerr=errors, fmt=style, color=color, label=label, capsize=2, markersize=5)
    for row, at, value in zip(rows, x, y, strict=True):
        axis.annotate(row["arm"], (at, value), fontsize=7, xytext=(4, 4), textcoords="offset points")
