"""What counts in a definition and what does not."""

from __future__ import annotations

import ast

import pytest

from sglang_moe_opt.compat import fingerprint

WRITTEN = '''
def f(a: int, *, b: str = "x") -> int:
    """What it does."""
    if a > 1:  # why
        return a
    return 0
'''
LIKE_IT = """
def f(a, *, b='x'):
    # another remark
    if (a >
            1):
        return a

    return 0
"""


def function(text: str) -> fingerprint.Function:
    (node,) = ast.parse(text).body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return node


def body(function: fingerprint.Function) -> str:
    return fingerprint.digest(function.body)


def test_comments_docstrings_annotations_and_layout_do_not_count() -> None:
    one, other = function(WRITTEN), function(LIKE_IT)
    assert body(one) == body(other)
    assert fingerprint.signature(one) == fingerprint.signature(other) == "(a, *, b='x')"


@pytest.mark.parametrize(
    "changed", [("a > 1", "a >= 1"), ("return a", "return 1"), ("return 0", "return None"), ("if a", "while a")]
)
def test_what_is_done_counts(changed: tuple[str, str]) -> None:
    assert body(function(WRITTEN)) != body(function(WRITTEN.replace(*changed)))


def test_decorators_and_kind_belong_to_the_signature() -> None:
    assert fingerprint.signature(function("@a.b(1)\nasync def f(self, *args, **kw): ...")) == (
        "@a.b(1) async (self, *args, **kw)"
    )


def test_members_of_a_class() -> None:
    text = "class A(B, x=1):\n    n: int = 1\n    def f(self): ...\n    if n:\n        m = 2\n"
    (node,) = ast.parse(text).body
    (other,) = ast.parse(text.replace("int = 1", "int = 2")).body
    assert isinstance(node, ast.ClassDef) and isinstance(other, ast.ClassDef)
    one, two = fingerprint.members(node), fingerprint.members(other)
    assert list(one) == ["n", "f", "(statements)"]
    assert {name for name in one if one[name] != two[name]} == {"n"}
    assert fingerprint.bases(node) == "(B, x=1)"


def test_the_digest_is_the_same_in_every_python() -> None:
    """Written down: versions of Python differ in how they dump and print a tree."""
    text = 'def f(x, /, *a):\n    y = f"{x!r:>{a[0]}} of {1_000}" "end"\n'
    text += '    return [*a, y, None, 1.5, b"z", ..., lambda: x]\n'
    assert body(function(text)) == "8ce5a70fae8bd8fb"
