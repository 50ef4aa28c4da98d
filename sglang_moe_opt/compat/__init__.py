"""What we rely on in SGLang, read from both sources alone: recorded for the supported one, compared with any other."""

from sglang_moe_opt.compat.check import Report, compare
from sglang_moe_opt.compat.item import Item
from sglang_moe_opt.compat.source import Source, SourceError

__all__ = ["Item", "Report", "Source", "SourceError", "compare"]
