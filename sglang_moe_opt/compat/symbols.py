"""Where a dotted name is defined: through packages, classes and their bases, re-exports and star imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from sglang_moe_opt.compat.source import PACKAGE, Source

_DEPTH = 8


@dataclass(frozen=True, eq=False)
class Symbol:
    """A definition.

    Attributes:
        module: where it is defined, not where it was asked for.
        name: within the module, such as ``TopK.forward``; empty for the module itself.
        node: the last statement of that module that defines it.
        owner: the class in which it is defined; None at the top of a module.
    """

    module: str
    name: str
    node: ast.AST
    owner: ast.ClassDef | None = None

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


def find(source: Source, dotted: str, depth: int = _DEPTH) -> Symbol | None:
    """The definition behind a dotted name, at most `depth` names on; None where it leads to none, or out of SGLang."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if source.path_of(module) is not None:
            tree = source.tree(module)
            return None if tree is None else _in_module(source, module, tree, parts[length:], depth)
    return None


def find_moved(source: Source, dotted: str) -> list[str]:
    """Where a name that is gone may be now: the same class and method, or the same name, in other modules."""
    *path, last = dotted.split(".")
    owner = path[-1] if path and path[-1][:1].isupper() else None
    found = []
    for module in source.modules_defining(owner or last):
        symbol = find(source, f"{module}.{owner}.{last}" if owner else f"{module}.{last}")
        if symbol is not None and symbol.module == module and symbol.dotted != dotted:
            found.append(symbol.dotted)
    return sorted(found)


def resolve_in(source: Source, module: str, expression: str) -> Symbol | None:
    """What a dotted expression means inside a module, such as the name of a base class."""
    tree = source.tree(module)
    return None if tree is None else _in_module(source, module, tree, expression.split("."), _DEPTH)


def class_chain(source: Source, symbol: Symbol) -> Iterator[Symbol]:
    """A class and what it derives from within SGLang, nearest first."""
    seen: set[str] = set()
    waiting = [symbol]
    while waiting:
        current = waiting.pop(0)
        if current.dotted in seen or not isinstance(current.node, ast.ClassDef):
            continue
        seen.add(current.dotted)
        yield current
        for base in current.node.bases:
            name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
            if (parent := resolve_in(source, current.module, name)) is not None:
                waiting.append(parent)


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    """Statements of a module or class, with those under its `if`, `with` and `try`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
            if isinstance(child, ast.If | ast.Try | ast.With):
                yield from statements(child)
        elif isinstance(child, ast.ExceptHandler):
            yield from statements(child)


def _in_module(source: Source, module: str, tree: ast.Module, names: list[str], depth: int) -> Symbol | None:
    if not names:
        return Symbol(module, "", tree)
    name, rest = names[0], names[1:]
    found: Symbol | None = None
    stars = []
    for statement in statements(tree):
        match statement:
            case ast.ClassDef(name=defined) if defined == name:
                found = _in_class(source, Symbol(module, name, statement), rest)
            case ast.ImportFrom():
                origin = _origin(source, module, statement)
                for alias in statement.names:
                    if alias.name == "*":
                        stars.append(origin)
                    elif (alias.asname or alias.name) == name and depth:
                        target = find(source, ".".join([origin, alias.name, *rest]), depth - 1)
                        found = target or _foreign(module, name, statement, origin, rest) or found
            case ast.Import():
                for alias in statement.names:
                    if (alias.asname or alias.name.split(".")[0]) == name and depth:
                        dotted = ".".join([alias.name if alias.asname else name, *rest])
                        found = find(source, dotted, depth - 1) or found
            case ast.Assign(value=ast.Name(id=other) | ast.IfExp(orelse=ast.Name(id=other))) if (
                not rest and name in bound_names(statement)
            ):
                original = _in_module(source, module, tree, [other], depth - 1) if depth and other != name else None
                found = original or Symbol(module, name, statement)
            case _ if not rest and name in bound_names(statement):
                found = Symbol(module, name, statement)
    if found is None and depth:
        for origin in stars:
            tree_ = source.tree(origin)
            found = None if tree_ is None else _in_module(source, origin, tree_, names, depth - 1)
            if found is not None:
                break
    return found


def _foreign(module: str, name: str, statement: ast.stmt, origin: str, rest: list[str]) -> Symbol | None:
    """A name that a module has from another package: known to be there, and no more."""
    return Symbol(module, name, statement) if not rest and origin.split(".")[0] != PACKAGE else None


def _in_class(source: Source, symbol: Symbol, rest: list[str]) -> Symbol | None:
    if not rest:
        return symbol
    for current in class_chain(source, symbol):
        assert isinstance(current.node, ast.ClassDef)
        for statement in reversed(list(statements(current.node))):
            if isinstance(statement, ast.ClassDef) and statement.name == rest[0]:
                return _in_class(source, Symbol(current.module, f"{current.name}.{rest[0]}", statement), rest[1:])
            if len(rest) == 1 and rest[0] in bound_names(statement):
                return Symbol(current.module, f"{current.name}.{rest[0]}", statement, current.node)
    return None


def _origin(source: Source, module: str, statement: ast.ImportFrom) -> str:
    """The absolute module of a ``from`` import."""
    if not statement.level:
        return statement.module or ""
    path = source.path_of(module) or ""
    package = module.split(".") if path.endswith("/__init__.py") else module.split(".")[:-1]
    package = package[: len(package) - statement.level + 1]
    return ".".join([*package, *([statement.module] if statement.module else [])])


def bound_names(statement: ast.stmt) -> set[str]:
    """The names that a statement defines."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {statement.name}
        case ast.Assign():
            inner = (node for target in statement.targets for node in ast.walk(target))
            return {node.id for node in inner if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case ast.Import() | ast.ImportFrom():
            return {alias.asname or alias.name for alias in statement.names}
    return set()
