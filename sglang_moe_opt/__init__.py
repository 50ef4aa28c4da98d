"""Expert skipping and pruning for fine-grained mixture-of-experts models on SGLang."""

__version__ = "0.1.0"
