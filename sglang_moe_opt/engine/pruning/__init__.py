"""Serving with a part of each layer's experts: what a plan removes is neither allocated nor read from disk."""

from sglang_moe_opt.engine.pruning.active import Pruning, adopt_stored_plan, get_pruning, stored_plan

__all__ = ["Pruning", "adopt_stored_plan", "get_pruning", "stored_plan"]
