"""Serving with a part of each layer's experts: what a plan removes is neither allocated nor read from disk."""

from sglang_moe_opt.engine.pruning.active import Pruning, get_pruning

__all__ = ["Pruning", "get_pruning"]
