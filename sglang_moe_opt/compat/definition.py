"""One definition of SGLang's as it is recorded and compared."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict

from sglang_moe_opt.compat import fingerprint
from sglang_moe_opt.compat.fingerprint import Function
from sglang_moe_opt.compat.source import Source
from sglang_moe_opt.compat.symbols import Symbol, statements

ARGUMENTS: Final = "sglang.srt.server_args"
_NAMESPACES: Final = "sglang/srt/arg_groups/fields/"


class Definition(BaseModel):
    """A function, class, variable or module.

    Attributes:
        at: the dotted place of the definition; differs from the name it is used by where that is a re-export.
        kind: what it is.
        signature: of a function; bases of a class.
        body: digest of what a function does, or of a variable's value.
        members: digests of a class's members.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    at: str
    kind: str
    signature: str = ""
    body: str = ""
    members: Mapping[str, str] = {}


def define(symbol: Symbol) -> Definition:
    """What is recorded of a definition."""
    node = symbol.node
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            same = functions_of(symbol)
            return Definition(
                at=symbol.dotted,
                kind="function",
                signature=" | ".join(dict.fromkeys(fingerprint.signature(function) for function in same)),
                body=fingerprint.digest(statement for function in same for statement in function.body),
            )
        case ast.ClassDef():
            members = fingerprint.members(node)
            return Definition(at=symbol.dotted, kind="class", signature=fingerprint.bases(node), members=members)
        case ast.Module():
            return Definition(at=symbol.dotted, kind="module")
        case ast.ImportFrom():
            return Definition(at=symbol.dotted, kind=f"name from {node.module}")
    return Definition(at=symbol.dotted, kind="variable", body=fingerprint.digest([node]))


def functions_of(symbol: Symbol) -> list[Function]:
    """Every definition of the function's name in its class or module: under `if`, or one after the other."""
    name = symbol.name.rpartition(".")[2]
    if symbol.owner is None:
        return [symbol.node] if isinstance(symbol.node, ast.FunctionDef | ast.AsyncFunctionDef) else []
    found = [node for node in statements(symbol.owner) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [node for node in found if node.name == name]


def server_fields(source: Source) -> dict[str, str]:
    """Fields of the server's arguments with type and default, such as ``Optional[int] = None``."""
    found: dict[str, str] = {}
    for module in _argument_modules(source):
        tree = source.tree(module)
        for node in [] if tree is None else ast.walk(tree):
            if isinstance(node, ast.ClassDef) and (module != ARGUMENTS or node.name == "ServerArgs"):
                for statement in node.body:
                    match statement:
                        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                            default = "" if value is None else f" = {ast.unparse(value)}"
                            found[name] = ast.unparse(_plain_type(annotation)) + default
    return found


def server_flags(source: Source) -> frozenset[str]:
    """Flags of ``sglang serve``: written out, or made of a field's name."""
    found = {"--" + name.replace("_", "-") for name in server_fields(source)}
    for module in _argument_modules(source):
        for node in ast.walk(source.tree(module) or ast.Module([], [])):
            match node:
                case ast.Call(args=arguments, keywords=keywords):
                    parts = [*arguments, *(keyword.value for keyword in keywords if keyword.arg != "help")]
                    for part in (inner for p in parts if not isinstance(p, ast.Call) for inner in ast.walk(p)):
                        match part:
                            case ast.Constant(value=str(text)) if text.startswith("--") and " " not in text:
                                found.add(text)
    return frozenset(found)


def _plain_type(annotation: ast.expr) -> ast.expr:
    """``T`` of ``A[T, ...]`` or ``Annotated[T, ...]``: help texts do not count."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="A" | "Annotated"), slice=ast.Tuple(elts=[first, *_])):
            return first
    return annotation


def _argument_modules(source: Source) -> list[str]:
    paths = [path for path in source.paths if path.startswith(_NAMESPACES)]
    return [ARGUMENTS, *(path.removesuffix(".py").replace("/", ".") for path in paths if "__init__" not in path)]
