"""`GET /moe_prune_plan`: the plan that the server runs under, or null. Else it would look like a whole model's."""

from __future__ import annotations

from typing import Any

from sglang_moe_opt.engine.pruning import get_pruning

PATH = "/moe_prune_plan"


async def served_plan() -> dict[str, Any] | None:
    """The plan, and the file that it was read from; wherever it was named: flag, environment, policy or checkpoint."""
    pruning = get_pruning()
    if pruning is None:
        return None
    return {"file": str(pruning.file.absolute()), "plan": pruning.plan.model_dump(mode="json")}
