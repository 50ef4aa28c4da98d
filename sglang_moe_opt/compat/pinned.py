"""`pinned.json`: what we rely on as it is in the supported SGLang; written by `moe-opt doctor --compat --record`."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sglang_moe_opt.compat.attributes import class_attributes, known_classes, own_attributes
from sglang_moe_opt.compat.definition import Definition, define, server_fields, server_flags
from sglang_moe_opt.compat.fingerprint import signature
from sglang_moe_opt.compat.reliance import Reliance
from sglang_moe_opt.compat.source import Source
from sglang_moe_opt.compat.symbols import find
from sglang_moe_opt.files import write_atomically

FILE: Final = Path(__file__).with_name("pinned.json")

_OTHERS: Final = {"to_dict"}
"""Attributes of Hugging Face's configs, which have namesakes in SGLang."""


class Pinned(BaseModel):
    """The record.

    Attributes:
        sglang: the version that it is of.
        hooks: by target.
        imports: by dotted name.
        attributes: by name, or ``class:name`` where the class is known: the classes that have it, with the signature
            where it is a method.
        fields: of the server's arguments, with type and default.
        flags: of ``sglang serve``.
        environment: variables of SGLang's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1
    sglang: str
    hooks: Mapping[str, Definition]
    imports: Mapping[str, Definition]
    attributes: Mapping[str, Mapping[str, str]]
    fields: Mapping[str, str]
    flags: tuple[str, ...]
    environment: tuple[str, ...]

    @classmethod
    def load(cls, file: Path = FILE) -> Pinned:
        """Read the record. Raises ValueError where it is missing or not whole."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise ValueError(f"{file}: {error.strerror} (moe-opt doctor --compat --record writes it)") from None
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    def save(self, file: Path = FILE) -> None:
        """Write the record, whole or not at all."""
        write_atomically(file, self.model_dump_json(indent=1) + "\n")


def record(reliance: Reliance, source: Source) -> Pinned:
    """Look up all that we rely on in one SGLang.

    Raises:
        ValueError: our code names a hook target, an import, a field, a flag or a variable that is not there.
    """
    fields, flags = server_fields(source), server_flags(source)
    missing = [f"field {name}" for name in reliance.fields if name not in fields]
    missing += [f"flag {name}" for name in reliance.flags if name not in flags]
    mentioned = source.mentions(reliance.environment)
    missing += [f"variable {name}" for name in reliance.environment if name not in mentioned]
    definitions: dict[str, Definition] = {}
    for name in (*(hook.target for hook in reliance.hooks), *reliance.imports):
        symbol = find(source, name)
        if symbol is not None:
            definitions[name] = define(symbol)
        elif not _is_read_off_a_variable(source, name):
            missing.append(name)
    if missing:
        raise ValueError(f"sglang {source.version} has no {', '.join(missing)}")
    return Pinned(
        sglang=source.version,
        hooks={hook.target: definitions[hook.target] for hook in sorted(reliance.hooks, key=lambda hook: hook.target)},
        imports={name: definitions[name] for name in reliance.imports if name in definitions},
        attributes=_attributes(reliance, source, set(definitions)),
        fields={name: fields[name] for name in reliance.fields},
        flags=reliance.flags,
        environment=reliance.environment,
    )


def _attributes(reliance: Reliance, source: Source, dotted: set[str]) -> dict[str, dict[str, str]]:
    """Names that no class of SGLang's has are those of torch and Python, and are left out."""
    modules = {symbol.module for name in dotted if (symbol := find(source, name)) is not None}
    near: dict[str, dict[str, str]] = {}
    far: dict[str, dict[str, str]] = {}
    for name, symbol in known_classes(source, modules).items():
        owners = near if symbol.module in modules else far
        for attribute, statement in own_attributes(symbol.node).items():
            owners.setdefault(attribute, {})[name] = describe(statement)
    others = _OTHERS | _of_tensors()
    found = {}
    for use in reliance.attributes:
        if use.owner is not None and (symbol := find(source, use.owner)) is not None:
            own = class_attributes(source, symbol)
            if use.name in own:
                found[f"{use.owner}:{use.name}"] = {use.owner: describe(own[use.name])}
                continue
        if use.name in others:
            continue
        if owners_of := near.get(use.name) or far.get(use.name):
            found[use.name] = dict(sorted(owners_of.items()))
    return dict(sorted(found.items()))


def _of_tensors() -> set[str]:
    """What tensors have; recording is done where torch is."""
    import torch

    return set(dir(torch.Tensor))


def describe(statement: ast.stmt) -> str:
    """The signature of a method; "" of a field, whose value we do not rely on."""
    return signature(statement) if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) else ""


def _is_read_off_a_variable(source: Source, dotted: str) -> bool:
    """Such as ``app.add_middleware``: what a variable holds, source alone does not tell."""
    owner = find(source, dotted.rpartition(".")[0])
    return owner is not None and isinstance(owner.node, ast.Assign | ast.AnnAssign)
