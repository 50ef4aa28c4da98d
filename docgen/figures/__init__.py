"""The sentences of README.md and docs/ whose numbers come from result files: a module for each page."""

from docgen.figures import (
    consolidation,
    cpu,
    evaluation,
    found,
    loadtest,
    measuring,
    open_questions,
    policy,
    predict,
    pruning,
    readme,
)
from docgen.sentences import Sentence

SENTENCES: tuple[Sentence, ...] = (
    *readme.SENTENCES,
    *consolidation.SENTENCES,
    *cpu.SENTENCES,
    *evaluation.SENTENCES,
    *found.SENTENCES,
    *loadtest.SENTENCES,
    *measuring.SENTENCES,
    *open_questions.SENTENCES,
    *policy.SENTENCES,
    *predict.SENTENCES,
    *pruning.SENTENCES,
)

__all__ = ["SENTENCES"]
