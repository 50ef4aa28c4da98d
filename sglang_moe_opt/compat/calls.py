"""Can our hook be called as SGLang calls what it hooks? Both signatures are read from source."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

from sglang_moe_opt.compat.fingerprint import Function

_FIRST = {"AFTER": ["result"], "AROUND": ["original"], "BEFORE": []}


def misfit(kind: str, ours: Function, theirs: Function) -> str | None:
    """Why a hook cannot be called in the place of what it hooks; None where it can.

    Tried are the calls with the fewest arguments, with all by position and with all by name. What has the same name on
    both sides must hold the same thing.
    """
    own, upstream = signature_of(ours), signature_of(theirs)
    first = _FIRST[kind]
    for args, kwargs in calls(upstream):
        try:
            bound = own.bind(*first, *args, **kwargs).arguments
        except TypeError as error:
            return str(error)
        for name, value in bound.items():
            if name in upstream.parameters and upstream.parameters[name].kind not in _CATCH_ALL and value != name:
                return f"our {name!r} would get {value!r}"
    return None


def signature_of(function: Function) -> inspect.Signature:
    """The signature of a function's definition; defaults are only known to be there."""
    a = function.args
    positional = [*a.posonlyargs, *a.args]
    plain = len(positional) - len(a.defaults)
    parameters = []
    for index, argument in enumerate(positional):
        kind = (
            inspect.Parameter.POSITIONAL_ONLY if index < len(a.posonlyargs) else inspect.Parameter.POSITIONAL_OR_KEYWORD
        )
        parameters.append(inspect.Parameter(argument.arg, kind, default=_default(index >= plain)))
    if a.vararg:
        parameters.append(inspect.Parameter(a.vararg.arg, inspect.Parameter.VAR_POSITIONAL))
    for argument, default in zip(a.kwonlyargs, a.kw_defaults, strict=True):
        by_name = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(argument.arg, by_name, default=_default(default is not None)))
    if a.kwarg:
        parameters.append(inspect.Parameter(a.kwarg.arg, inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)


def calls(signature: inspect.Signature) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The ways to call a function; each argument is its parameter's name. ``self`` and ``cls`` have none."""
    parameters = signature.parameters.values()
    ordered = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = {p.name: p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    required = {p.name: p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    yield [p.name for p in ordered if p.default is p.empty], required
    yield [p.name for p in ordered], named
    receiver = [p.name for p in ordered[:1] if p.name in ("self", "cls")]
    yield receiver, {p.name: p.name for p in ordered[len(receiver) :]} | named


_CATCH_ALL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _default(has: bool) -> object:
    return ... if has else inspect.Parameter.empty


def find_function(tree: ast.Module, name: str) -> Function | None:
    """A function at the top of one of our modules."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return node
    return None
