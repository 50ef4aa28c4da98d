"""A streaming server without an engine: its tokens come at known times, or go wrong on purpose, to test clients."""

from __future__ import annotations

from loadtest.sse_server.process import Served, sse_server
from loadtest.sse_server.schedule import Fault, Schedule

__all__ = ["Fault", "Schedule", "Served", "sse_server"]
