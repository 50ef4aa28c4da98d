"""DeepSeek-V2 and V3: SGLang's own classes."""

from sglang.srt.models.deepseek_v2 import EntryClass

__all__ = ["EntryClass"]
