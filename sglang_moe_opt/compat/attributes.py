"""Attributes that our engine reads off SGLang's objects, and which of SGLang's classes have them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from sglang_moe_opt.compat.source import Source
from sglang_moe_opt.compat.symbols import Symbol, bound_names, class_chain, find, statements

_BUILTIN = frozenset(name for kind in (dict, list, str, set, tuple) for name in dir(kind))
_PREFIXES = ("moe_opt", "_moe_opt")
"""Attributes that we set ourselves."""

Use = tuple[str, str, Callable[[str], bool]]


def attribute_uses(tree: ast.Module) -> Iterator[Use]:
    """What is read off SGLang's objects in a file of the engine: off its parameters annotated ``Any`` and what comes
    of them.

    Yields:
        The function's name, the attribute's, and whether it is read off the object whose method is hooked, given the
        hook's kind.
    """
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            ours = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            tracked = {a.arg for a in ours if a.annotation is not None and ast.unparse(a.annotation) == "Any"}
            positional = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
            for _ in range(3):  # names are followed through assignments, in whatever order ast.walk finds them
                for node in ast.walk(function):
                    tracked |= _taken_from(node, tracked)
            for node in ast.walk(function):
                name, value = _read(node)
                if name and value is not None and _root(value) in tracked and _is_upstreams(name):
                    yield function.name, name, _receiver_test(value, positional)


def _is_upstreams(name: str) -> bool:
    return name not in _BUILTIN and not name.startswith(_PREFIXES)


def _receiver_test(value: ast.expr, positional: list[str]) -> Callable[[str], bool]:
    def is_receiver(kind: str) -> bool:
        place = 0 if kind == "BEFORE" else 1
        return isinstance(value, ast.Name) and positional[place : place + 1] == [value.id]

    return is_receiver


def _read(node: ast.AST) -> tuple[str, ast.expr | None]:
    if isinstance(node, ast.Attribute):
        return node.attr, node.value
    match node:
        case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[value, ast.Constant(value=str(name)), *_]):
            return name, value
    return "", None


def _root(node: ast.expr) -> str | None:
    """The name that an expression such as ``a.b[0].c()`` starts from."""
    while True:
        match node:
            case ast.Attribute(value=inner) | ast.Subscript(value=inner) | ast.Await(value=inner):
                node = inner
            case ast.Call(func=ast.Attribute() as inner):
                node = inner
            case ast.Call(func=ast.Name(id="getattr"), args=[inner, *_]):
                node = inner
            case ast.IfExp(body=inner):
                node = inner
            case ast.Name(id=name):
                return name
            case _:
                return None


def _taken_from(node: ast.AST, tracked: set[str]) -> set[str]:
    match node:
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)) if len(names) == len(values):
            pairs = list(zip(names, values, strict=True))
        case ast.Assign(targets=[target], value=value) | ast.NamedExpr(target=target, value=value):
            pairs = [(target, value)]
        case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
            pairs = [(target, value)]
        case _:
            return set()
    found = set()
    for target, value in pairs:
        if _root(value) in tracked:
            found |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return found


def class_attributes(source: Source, symbol: Symbol) -> dict[str, ast.stmt]:
    """What objects of a class have, its bases within SGLang included: members, and what its methods set on ``self``."""
    found: dict[str, ast.stmt] = {}
    for current in class_chain(source, symbol):
        for name, statement in own_attributes(current.node).items():
            found.setdefault(name, statement)
    return found


def own_attributes(node: ast.AST) -> dict[str, ast.stmt]:
    """The same of one class alone."""
    found: dict[str, ast.stmt] = {}
    for statement in statements(node):
        for name in bound_names(statement):
            found.setdefault(name, statement)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
            for target in (part for t in targets for part in ast.walk(t)):
                match target:
                    case ast.Attribute(value=ast.Name(id="self"), attr=name):
                        found.setdefault(name, inner)
    return found


def known_classes(source: Source, modules: set[str]) -> dict[str, Symbol]:
    """Classes of these modules, and those that they import by name."""
    found: dict[str, Symbol] = {}
    for module in sorted(modules):
        tree = source.tree(module)
        for statement in [] if tree is None else statements(tree):
            if isinstance(statement, ast.ClassDef):
                found[f"{module}.{statement.name}"] = Symbol(module, statement.name, statement)
            elif isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("sglang."):
                for alias in statement.names:
                    if alias.name[:1].isupper() and not alias.name.isupper():
                        symbol = find(source, f"{statement.module}.{alias.name}")
                        if symbol is not None and isinstance(symbol.node, ast.ClassDef):
                            found[symbol.dotted] = symbol
    return found
