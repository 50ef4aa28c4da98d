"""Every table by the name that a block gives it: one file for each kind of result."""

from docgen.blocks import Table
from docgen.tables import accuracy, by_weight, catalogue, consolidation, found, predictions, reference, soak, speed

TABLES: dict[str, Table] = {
    **accuracy.TABLES,
    **by_weight.TABLES,
    **catalogue.TABLES,
    **consolidation.TABLES,
    **found.TABLES,
    **predictions.TABLES,
    **reference.TABLES,
    **soak.TABLES,
    **speed.TABLES,
}

__all__ = ["TABLES"]
