"""Reading a server's `/metrics`."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def samples(text: str) -> Iterator[Sample]:
    """All samples, with their `name`, `labels` and `value`. Raises ValueError where the text is no exposition."""
    for family in text_string_to_metric_families(text):
        yield from family.samples


def total(text: str, name: str, **labels: str) -> float | None:
    """Sum of the samples of this name that carry these labels; None where there are none. Raises ValueError."""
    wanted = labels.items()
    found = [one.value for one in samples(text) if one.name == name and wanted <= one.labels.items()]
    return sum(found) if found else None
