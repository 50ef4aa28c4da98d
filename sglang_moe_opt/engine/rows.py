"""Which row of the routing table holds which schedule: a cache whose device addresses never move."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from sglang_moe_opt.layer_table import LayerTable
from sglang_moe_opt.policy import Policy, PolicyError

ROW_CAPACITY = 1024
"""Schedules that one batch can hold; requests are limited far below it by the policy's max_live_schedules."""

NONE_ROW = 0
"""Row of padded tokens: every routed slot is dropped, so padding activates no expert."""
FULL_ROW = 1
"""Row of the unmodified model."""
_FIRST_FREE = 2


class RowCache:
    """Maps (label, schedule) to a row of a table with a fixed number of rows; the least recently used row gives way.

    Rows are assigned on the host; what must be written to the device is collected until :meth:`take_pending`, so
    that the caller can write it on the stream of the forward pass, after all steps that still read the old content.

    Args:
        capacity: rows of the device table, the two reserved ones included.
    """

    def __init__(self, capacity: int) -> None:
        self._rows: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._free = list(range(capacity - 1, _FIRST_FREE - 1, -1))
        self._pending: dict[int, LayerTable] = {}
        self.labels: dict[int, str] = {FULL_ROW: "full"}

    def assign(self, label: str, table: LayerTable) -> int:
        """Row of ``table``, shown under ``label`` in the metrics. O(1); a full table has a row of its own."""
        if table.is_full:
            return FULL_ROW
        key = (label, table.digest)
        row = self._rows.get(key)
        if row is None:
            row = self._free.pop() if self._free else self._rows.popitem(last=False)[1]
            self._rows[key] = row
            self._pending[row] = table
            self.labels[row] = label
        else:
            self._rows.move_to_end(key)
        return row

    def take_pending(self) -> Iterable[tuple[int, LayerTable]]:
        """Rows assigned since the last call with the table to write there."""
        if not self._pending:
            return ()
        pending, self._pending = self._pending, {}
        return pending.items()


def check_capacity(policy: Policy, others: int = 0) -> None:
    """Raise PolicyError where the policy lets more schedules into one batch than the table has rows.

    Args:
        policy: of new requests.
        others: schedules beside them that requests in flight run under: of an earlier policy.
    """
    levels = sum(len(auto.rule.levels) for auto in policy.autos.values())
    most = (ROW_CAPACITY - _FIRST_FREE - levels) // 2 - len(policy.profiles) - others  # each may have two phases
    if policy.max_live_schedules > most:
        raise PolicyError("max_live_schedules", policy.max_live_schedules, f"an integer from 1 to {most}")
