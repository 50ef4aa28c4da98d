"""What our own code takes from SGLang, read from its source: nothing is listed twice, so nothing can be forgotten.

Hooks are found where they are declared (``Hook(...)``), imports where they are made, server flags and fields of the
server's arguments where they are written, and attributes where the engine reads them off SGLang's objects, which are
the parameters annotated ``Any``.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sglang_moe_opt.compat.attributes import attribute_uses
from sglang_moe_opt.compat.calls import find_function
from sglang_moe_opt.compat.fingerprint import Function

_ROOT: Final = Path(__file__).resolve().parents[2]
_PACKAGES: Final = ("sglang_moe_opt", "loadtest", "eval")
_FLAG: Final = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)+(?![\w-])")
_OWN_FLAG: Final = re.compile(r"--moe-(opt|skip|prune)-")
_SPEAKS_OF_FLAGS: Final = ("sglang_moe_opt/engine/", "sglang_moe_opt/launch.py", "loadtest/servers.py")
_SPEAKS_OF_SGLANG: Final = re.compile(rb"\b(from|import) sglang[.\s]|SGLANG_")
_FIELD_TABLES: Final = ("ServerFields", "Refusal", "tuple[Refusal, ...]")
"""Annotations of the constants that name fields of the server's arguments (``engine/unsupported.py``)."""
_ENVIRONMENT: Final = re.compile(r"SGLANG_(?!MOE_OPT)[A-Z_]+")


@dataclass(frozen=True)
class HookUse:
    """A hook as it is declared, and the function of ours that it runs."""

    target: str
    kind: str
    function: str
    reason: str


@dataclass(frozen=True)
class AttributeUse:
    """An attribute that is read off one of SGLang's objects; ``owner`` is its class where a hook's target tells."""

    name: str
    owner: str | None


@dataclass(frozen=True)
class Reliance:
    """All of it; every tuple is sorted and holds nothing twice.

    Attributes:
        hooks: in the order of the files.
        imports: dotted names that are imported from SGLang, or read off a module or class that is.
        attributes: of SGLang's objects.
        fields: of ``ServerArgs``, by which a feature is refused.
        flags: of ``sglang serve``, set by us or named in an error.
        environment: variables of SGLang's.
    """

    hooks: tuple[HookUse, ...]
    imports: tuple[str, ...]
    attributes: tuple[AttributeUse, ...]
    fields: tuple[str, ...]
    flags: tuple[str, ...]
    environment: tuple[str, ...]


@functools.cache
def read_reliance(root: Path = _ROOT) -> Reliance:
    """Read our packages below ``root``."""
    trees = dict(_trees(root))
    hooks = tuple(hook for tree in trees.values() for hook in _hooks(tree))
    engine = {path: tree for path, tree in trees.items() if path.startswith("sglang_moe_opt/engine/")}
    owners = {hook.function: hook for hook in hooks}
    attributes = set()
    for path, tree in engine.items():
        module = path.removeprefix("sglang_moe_opt/engine/").removesuffix(".py").removesuffix("/__init__")
        for function, name, is_receiver in attribute_uses(tree):
            hook = owners.get(f"{module.replace('/', '.')}:{function}")
            owner = None if hook is None or not is_receiver(hook.kind) else _class_of(hook.target)
            attributes.add(AttributeUse(name, owner))
    exact = {use.name for use in attributes if use.owner}
    return Reliance(
        hooks=hooks,
        imports=_sorted(name for tree in trees.values() for name in _imports(tree)),
        attributes=tuple(
            sorted(
                (use for use in attributes if use.owner or use.name not in exact),
                key=lambda use: (use.name, use.owner or ""),
            )
        ),
        fields=_sorted(name for tree in engine.values() for name in _fields(tree)),
        flags=_sorted(
            flag for path, tree in trees.items() if path.startswith(_SPEAKS_OF_FLAGS) for flag in _flags(tree)
        ),
        environment=_sorted(
            name
            for path, tree in trees.items()
            if not path.startswith("sglang_moe_opt/compat/")
            for name in _strings(tree)
            if _ENVIRONMENT.fullmatch(name)
        ),
    )


def read_hooks(root: Path = _ROOT) -> tuple[HookUse, ...]:
    """The hooks alone, which takes a tenth of the time."""
    files = sorted((root / "sglang_moe_opt" / "engine").rglob("*.py"))
    return tuple(hook for file in files for hook in _hooks(ast.parse(file.read_bytes())))


def hook_function(hook: HookUse, root: Path = _ROOT) -> Function | None:
    """The function of ours that a hook runs; None where there is none."""
    module, name = hook.function.split(":")
    place = root / "sglang_moe_opt" / "engine" / module.replace(".", "/")
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return find_function(ast.parse(file.read_bytes()), name) if file.is_file() else None


def _trees(root: Path) -> Iterator[tuple[str, ast.Module]]:
    for package in _PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            path, content = file.relative_to(root).as_posix(), file.read_bytes()
            if path.startswith(_SPEAKS_OF_FLAGS) or _SPEAKS_OF_SGLANG.search(content):
                yield path, ast.parse(content)


def _sorted(names: Iterator[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


def _hooks(tree: ast.Module) -> Iterator[HookUse]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Hook":
            values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if len(values) != 4 or node.keywords:
                raise ValueError(f"line {node.lineno}: a Hook is written with four texts: {ast.unparse(node)}")
            yield HookUse(*(str(value) for value in values))


def _class_of(target: str) -> str | None:
    """The class of a hooked method; None for a function of a module."""
    owner = target.rpartition(".")[0]
    return owner if owner.rpartition(".")[2][:1].isupper() else None


def _imports(tree: ast.Module) -> Iterator[str]:
    """Names taken from SGLang; where a module or class is taken, also what is read off it."""
    origin: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang":
            origin |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            origin |= {a.asname or a.name: a.name for a in node.names if a.name.split(".")[0] == "sglang"}
    yield from origin.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in origin:
            yield f"{origin[node.value.id]}.{node.attr}"


def _fields(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.annotation) in _FIELD_TABLES:
            of_refusals = "Refusal" in ast.unparse(node.annotation)
            tables = [t for t in ast.walk(node.value) if isinstance(t, ast.Tuple)]
            for table in tables:
                texts = [e.value for e in table.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
                if of_refusals and len(table.elts) == 3 and not isinstance(table.elts[1], ast.Constant):
                    yield from texts[:1]
                elif not of_refusals:
                    yield from texts


def _flags(tree: ast.Module) -> Iterator[str]:
    for text in _strings(tree):
        yield from (flag for flag in _FLAG.findall(text) if not _OWN_FLAG.match(flag))


def _strings(tree: ast.Module) -> Iterator[str]:
    """Constant texts, docstrings left out."""
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value
