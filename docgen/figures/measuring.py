"""docs/measuring.md."""

from docgen.figures.lookups import parameters
from docgen.sentences import Sentence

SENTENCES = (Sentence("docs/measuring.md", "accuracy of two models of {parameters:.0f} M parameters", parameters),)
