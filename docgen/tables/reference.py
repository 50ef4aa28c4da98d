"""References made from the code: keys of the policy file, rules of a schedule, options of the commands."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from docgen.blocks import Table
from docgen.results import table

_BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}


def policy_keys() -> str:
    """The top level of a policy file."""
    from sglang_moe_opt.policy import Policy

    return _model_keys(Policy)


def consolidation_keys() -> str:
    """What stands under `consolidation` in a policy file."""
    from sglang_moe_opt.policy import Consolidation

    return _model_keys(Consolidation)


def rule_keys() -> str:
    """What a profile or a hint may say of one phase."""
    from sglang_moe_opt.schedule import SkipSchedule

    fields = {field.name: field for field in dataclasses.fields(SkipSchedule)}
    meanings = _meanings(SkipSchedule, list(fields))
    rows = [[f"`{name}`", _default(field.default), meanings[name]] for name, field in fields.items()]
    return table(["key", "default", "meaning"], rows)


def auto_keys() -> str:
    """What stands under `auto` in a profile."""
    from sglang_moe_opt.auto.profile import KEYS, AutoRule

    fields = {field.name: field for field in dataclasses.fields(AutoRule)}
    defaults = {"prefill": "`full`", "levels": "needed"}
    rows = [[f"`{key}`", defaults.get(key) or _default(fields[key].default)] for key in KEYS]
    return table(["key", "default"], rows)


def options(*path: str) -> str:
    """The options of a command, such as `prune plan`."""
    import typer.main

    from sglang_moe_opt.cli.main import build_app

    command: Any = typer.main.get_command(build_app())
    for name in path:
        command = command.commands[name]
    return table(["option", "default", ""], map(_option, command.params))


def _option(option: Any) -> list[str]:
    if option.param_type_name == "argument":
        names = f"`{option.metavar or option.name.upper()}`"
    else:
        names = ", ".join(f"`{name}`" for name in option.opts)
    text = _cell(option.help or "") + (f" Environment: `{option.envvar}`." if option.envvar else "")
    text += " Repeatable." if option.multiple and "epeatable" not in text else ""
    if option.required:
        return [names, "needed", text]
    plain = (not option.default and option.default != 0) or option.default is False
    return [names, "" if plain else f"`{option.default}`", text]


def _model_keys(model: type[BaseModel]) -> str:
    meanings = _meanings(model, list(model.model_fields))
    rows = []
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        rows.append([f"`{name}`", _kind(field.annotation, field.metadata), _default(default), meanings[name]])
    return table(["key", "value", "default", "meaning"], rows)


def _kind(annotation: Any, metadata: Sequence[Any]) -> str:
    """Type and bounds in words: `int from 1 to 1024, or null`."""
    bounds = [
        text.format(getattr(bound, key)) for key, text in _BOUNDS.items() for bound in metadata if hasattr(bound, key)
    ]
    nullable = NoneType in get_args(annotation)
    (kind,) = [arm for arm in get_args(annotation) if arm is not NoneType] if nullable else [annotation]
    words = {bool: "true or false", str: "text", int: "integer", float: "number", dict: "object"}
    name = words.get(get_origin(kind) or kind, "object")
    return " ".join([name, *bounds]) + (", or null" if nullable else "")


def _default(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`"


def _meanings(owner: type, names: Sequence[str]) -> dict[str, str]:
    """What a class's docstring says of each field, `name: text`. Raises LookupError for a field it is silent about."""
    items = re.sub(r"\n +", " ", inspect.cleandoc(owner.__doc__ or ""))  # a field's further lines are indented
    by_line = all(f"\n{name}: " in items for name in names)
    marks = [(found.start(), found[1]) for found in re.finditer(rf"\b({'|'.join(names)}):\s", items)]
    ends = [start for start, _ in marks[1:]] + [len(items)]
    meanings: dict[str, str] = {}
    for (start, name), end in zip(marks, ends, strict=True):
        said = items[start + len(name) + 2 : end]
        if by_line:
            said = said.split("\n")[0]
        meanings.setdefault(name, _cell(" ".join(said.split()).rstrip("; .")))
    for name in names:
        if name not in meanings:
            raise LookupError(f"the docstring of {owner.__name__} has no line for {name!r}, expected '{name}: ...'")
    return meanings


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


TABLES: dict[str, Table] = {
    "policy_keys": policy_keys,
    "consolidation_keys": consolidation_keys,
    "rule_keys": rule_keys,
    "auto_keys": auto_keys,
    "options": options,
}
