"""What the server says of itself: a line of text in SGLang's log, or one JSON object a line on stderr."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
from datetime import UTC, datetime
from typing import Any, Final

from sglang_moe_opt.engine.settings import JSON_LOG, Settings
from sglang_moe_opt.fields import show
from sglang_moe_opt.hints import HintError

logger = logging.getLogger(__name__)
SOURCE: Final = "sglang-moe-opt"


def emit(event: str, text: str, *, is_error: bool = False, **fields: Any) -> None:
    """Report one event.

    Args:
        event: its name, such as ``policy_reloaded``.
        text: one line for people, where the log is not JSON.
        is_error: something did not work.
        fields: JSON-ready details.
    """
    level = logging.WARNING if is_error else logging.INFO
    if Settings.from_env().log != JSON_LOG:
        logger.log(level, "%s: %s", SOURCE, text)
    elif logger.isEnabledFor(level):
        head = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "source": SOURCE,
            "level": logging.getLevelName(level).lower(),
            "event": event,
            "process": multiprocessing.current_process().name,
            "pid": os.getpid(),
        }
        # One write, so that lines of several processes do not run into each other.
        sys.stderr.write(json.dumps({**head, **fields}) + "\n")
        sys.stderr.flush()


def request_refused(error: HintError) -> None:
    """A request with a bad hint, in the JSON log only: elsewhere the access log's line must do."""
    if Settings.from_env().log == JSON_LOG:
        value = show(error.value)
        emit("request_refused", "", status=error.status, field=error.field, value=value, allowed=error.allowed)
