"""Every message that the documentation quotes is one that the code can still give."""

from __future__ import annotations

from pathlib import Path

import pytest

from docgen.messages import is_message, quoted

PAGE = "docs/troubleshooting.md"


def test_every_quoted_message_exists(project_root: Path) -> None:
    lines = quoted((project_root / PAGE).read_text(encoding="utf-8"))
    assert len(lines) > 30
    gone = [line for line in lines if not is_message(line)]
    assert not gone, f"{PAGE} quotes what the code no longer says: {gone}"


@pytest.mark.parametrize(
    "line",
    [
        "custom_params.moe_skip.na: got 'x', allowed: an integer between 1 and 6",
        "--model: got 'x', allowed: whatever you like",
        "expert skipping does not work on Tuesdays",
        "http://127.0.0.1:30000: no answer: allowed",
        "x, allowed: anything",
    ],
)
def test_invented_messages_are_found(line: str) -> None:
    assert not is_message(line)


def test_only_text_blocks_are_messages() -> None:
    assert quoted("```\nshell\n```\n```text\none\n\ntwo\n```\nprose\n```yaml\na: b\n```\n") == ["one", "two"]
