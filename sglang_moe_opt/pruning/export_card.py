"""The README.md of an exported checkpoint: what was removed, by which method, from which model. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from sglang_moe_opt import __version__
from sglang_moe_opt.plan import PLAN_FILE, PLAN_KEY, PrunePlan
from sglang_moe_opt.pruning.pruned_layout import Form

_LICENSE_LINE: Final = re.compile(r"^license(?:_name|_link)?: .+$", re.MULTILINE)
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")

_LOADING: Final[dict[Form, str]] = {
    "stock": (
        "Every layer keeps the same number of experts, so that this is an ordinary checkpoint with a smaller\n"
        "`n_routed_experts`: kept experts are renumbered from 0 in the order of their old ids, and transformers,\n"
        "SGLang and vLLM need nothing else."
    ),
    "plugin": (
        "Layers, or a layer's groups, keep different numbers of experts. The config and the expert ids are the full\n"
        "model's; removed experts and their rows of the gates are left out. It loads with the sglang-moe-opt plugin\n"
        f"of SGLang, which finds `{PLAN_FILE}` by the entry `{PLAN_KEY}` of config.json; loaders without it stop at\n"
        "the first gate whose shape differs."
    ),
}


def model_card(
    plan: PrunePlan, form: Form, *, title: str, source: str, source_card: Path, command: Sequence[str], notes: list[str]
) -> str:
    """The text of README.md; licence lines come from the source's own card where it has any."""
    counts = [len(kept) for kept in plan.layers.values()]
    kept = f"{min(counts)}" if plan.is_uniform else f"{min(counts)} to {max(counts)}"
    facts = [
        ("source", source),
        ("fingerprint of the source", f"`{plan.model}`"),
        ("digest of the plan", f"`{plan.digest}`"),
        ("routed experts", f"{sum(counts)} of {plan.num_experts * len(counts)}; {kept} of {plan.num_experts} a layer"),
        ("replaced weights", f"sha256 `{plan.weights.sha256}`" if plan.weights else "none"),
        ("written by", f"sglang-moe-opt {__version__}"),
    ]
    rows = [f"| {layer} | {len(ids)} | {_runs(ids)} |" for layer, ids in plan.layers.items()]
    parts = [
        _front_matter(source, source_card),
        f"# {title}",
        f"{plan.name or source} with {kept} of {plan.num_experts} routed experts in each mixture-of-experts layer.",
        "\n".join(f"- {name}: {value}" for name, value in facts),
        "## Loading",
        _LOADING[form],
        *notes,
        "## Method",
        _json(plan.method),
        "## Provenance",
        _json(plan.provenance),
        *(["```\n" + " ".join(command) + "\n```"] if command else []),
        "## Kept experts",
        "\n".join(["| layer | kept | ids in the full model |", "| --- | --- | --- |", *rows]),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(source: str, source_card: Path) -> str:
    lines = ["library_name: transformers", "tags: [mixture-of-experts, pruned]"]
    if _HUB_ID.fullmatch(source):
        lines.append(f"base_model: {source}")
    if source_card.is_file():
        head = source_card.read_text(encoding="utf-8", errors="replace").split("\n---\n", 1)[0]
        lines += _LICENSE_LINE.findall(head) if head.startswith("---\n") else []
    return "\n".join(["---", *lines, "---"])


def _json(content: object) -> str:
    return f"```json\n{json.dumps(content, indent=2, ensure_ascii=False)}\n```"


def _runs(ids: Sequence[int]) -> str:
    """Ascending ids, neighbours as `3-7`."""
    starts = [ids[0], *(after for before, after in pairwise(ids) if after != before + 1)]
    ends = [*(before for before, after in pairwise(ids) if after != before + 1), ids[-1]]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
