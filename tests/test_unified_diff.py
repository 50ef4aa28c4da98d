"""Unified diffs: exact at their lines, reversible, and malformed ones refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.unified_diff import PatchError, parse_diff
from tests.diffs import diff_of


def test_context_must_match_at_the_named_line() -> None:
    (diff,) = parse_diff(diff_of("sglang/x.py", b"a\nb\nc\n", b"a\nB\nc\n").encode())
    assert diff.apply(b"a\nb\nc\n") == b"a\nB\nc\n"
    with pytest.raises(PatchError, match=r"sglang/x\.py: line 1 is not what the patch expects"):
        diff.apply(b"new\na\nb\nc\n")


@given(*[st.lists(st.sampled_from([b"\n", b"\r", b"a", b"b", b"-", b"+", b"@@ ", b"\\", b"--- "])).map(b"".join)] * 2)
def test_any_diff_goes_forth_and_back(before: bytes, after: bytes) -> None:
    if before == after:
        return
    (diff,) = parse_diff(diff_of("sglang/x", before, after).encode())
    assert diff.apply(before) == after
    assert diff.reversed().apply(after) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no diff at all\n", "holds no unified diff"),
        ("--- /dev/null\n+++ b/sglang/new.py\n@@ -0,0 +1 @@\n+x\n", "creates or deletes a file"),
        ("--- a/sglang/x.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n", "creates or deletes a file"),
        ("--- a/sglang/x.py\n+++ b/sglang/y.py\n@@ -1 +1 @@\n-x\n+y\n", "renames"),
        ("--- a/../etc/passwd\n+++ b/../etc/passwd\n@@ -1 +1 @@\n-x\n+y\n", "paths go from sglang/ on"),
        ("--- a/sglang/../../x\n+++ b/sglang/../../x\n@@ -1 +1 @@\n-x\n+y\n", "paths go from sglang/ on"),
        ("--- /sglang/x.py\n+++ /sglang/x.py\n@@ -1 +1 @@\n-x\n+y\n", "paths go from sglang/ on"),
        ("--- a/sglang/x.py\n+++ b/sglang/x.py\n", "has no hunk"),
        ("--- a/sglang/x.py\n+++ b/sglang/x.py\n@@ -1,3 +1 @@\n-x\n+y\n", "says 3 old and 1 new lines"),
        ("--- a/sglang/x.py\n+++ b/sglang/x.py\n@@ broken @@\n-x\n+y\n", "not a hunk header"),
        ("@@ -1 +1 @@\n-x\n+y\n", "a hunk without a file"),
    ],
)
def test_malformed_patches_are_refused(text: str, message: str) -> None:
    with pytest.raises(PatchError, match=message):
        parse_diff(text.encode())
