"""What a definition is, apart from how it is written: comments, docstrings, annotations and layout do not count."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterable, Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef

_DIGITS = 16


def digest(nodes: Iterable[ast.AST]) -> str:
    """Hex digits over the nodes' structure; the same under every Python version that parses them."""
    text = "".join(part for node in nodes for part in _render(node))
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def signature(function: Function) -> str:
    """How a function is called, such as ``async (a, b=1, *, c)``, with its decorators in front."""
    arguments = copy.deepcopy(function.args)
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    marks = [f"@{ast.unparse(decorator)}" for decorator in function.decorator_list]
    kind = ["async"] if isinstance(function, ast.AsyncFunctionDef) else []
    return " ".join([*marks, *kind, f"({ast.unparse(arguments)})"])


def members(node: ast.ClassDef) -> dict[str, str]:
    """Digest of each member of a class by its name: methods with their signatures, fields with their types."""
    parts: dict[str, list[ast.AST]] = {}
    for statement in node.body:
        for name in _names(statement):
            parts.setdefault(name, []).append(statement)
    return {name: digest(nodes) for name, nodes in parts.items()}


def bases(node: ast.ClassDef) -> str:
    """What a class derives from, with its decorators in front."""
    marks = [f"@{ast.unparse(decorator)}" for decorator in node.decorator_list]
    inherited = [ast.unparse(base) for base in node.bases] + [ast.unparse(keyword) for keyword in node.keywords]
    return " ".join([*marks, f"({', '.join(inherited)})"])


def _names(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [statement.name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Expr(value=ast.Constant()) | ast.Pass():
            return []
    return ["(statements)"]


def _render(value: object) -> Iterator[str]:
    """Type names and fields; what is empty or None is left out, as versions of Python differ in it."""
    if isinstance(value, ast.AST):
        if _is_docstring(value):
            return
        yield f"({type(value).__name__}"
        for name in value._fields:
            if name in ("type_comment", "type_ignores", "kind", "returns", "ctx"):
                continue
            if name == "annotation" and isinstance(value, ast.arg):
                continue
            content = getattr(value, name, None)
            if content is not None and content != []:
                yield f" {name}="
                yield from _render(content)
        yield ")"
    elif isinstance(value, list):
        for item in value:
            yield from _render(item)
            yield ","
    else:
        yield f"{type(value).__name__}:{value!r}"


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
