"""Models that SGLang finds here first ($SGLANG_EXTERNAL_MODEL_PACKAGE), and its own 250 modules only for others.

Each process of a server would import them all, which takes longer than everything else that a small model needs.
"""
