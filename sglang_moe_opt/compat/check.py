"""Compares what we rely on with what an SGLang has: item by item unchanged, changed, moved or gone."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sglang_moe_opt.compat.attributes import class_attributes
from sglang_moe_opt.compat.calls import misfit
from sglang_moe_opt.compat.definition import Definition, define, functions_of, server_fields, server_flags
from sglang_moe_opt.compat.item import Item, Kind, State
from sglang_moe_opt.compat.patched import patch_items
from sglang_moe_opt.compat.pinned import Pinned, describe
from sglang_moe_opt.compat.reliance import HookUse, Reliance, hook_function
from sglang_moe_opt.compat.source import Source
from sglang_moe_opt.compat.symbols import Symbol, find, find_moved
from sglang_moe_opt.patches import PatchSet
from sglang_moe_opt.sglang_version import SUPPORTED, is_supported

_SHOWN: Final = 6


@dataclass(frozen=True)
class Report:
    """Every item, of one SGLang against the recorded one."""

    sglang: str
    place: str
    pinned: str
    items: tuple[Item, ...]

    @property
    def supported(self) -> bool:
        """Whether its version is in the supported range."""
        return is_supported(self.sglang)

    @property
    def unchanged(self) -> bool:
        return all(item.state == "unchanged" for item in self.items)

    def counts(self) -> dict[Kind, dict[State, int]]:
        """Number of items by kind and state; states that do not occur are left out."""
        found: dict[Kind, dict[State, int]] = {}
        for item in self.items:
            of_kind = found.setdefault(item.kind, {})
            of_kind[item.state] = of_kind.get(item.state, 0) + 1
        return found


def compare(source: Source, reliance: Reliance, pinned: Pinned, patches: PatchSet) -> Report:
    """Compare one SGLang with the record.

    Raises:
        ValueError: the record is older than our code: something that we rely on is not in it.
    """
    _check_record(reliance, pinned)
    items = [
        *_hooks(source, reliance.hooks, pinned),
        *_imports(source, pinned),
        *_attributes(source, pinned),
        *_arguments(source, pinned),
        *patch_items(source, patches),
    ]
    return Report(source.version, str(source.place), pinned.sglang, tuple(items))


def _check_record(reliance: Reliance, pinned: Pinned) -> None:
    new = [hook.target for hook in reliance.hooks if hook.target not in pinned.hooks]
    new += [name for name in reliance.fields if name not in pinned.fields]
    new += [name for name in reliance.flags if name not in pinned.flags]
    new += [name for name in reliance.environment if name not in pinned.environment]
    if new:
        raise ValueError(
            f"the record does not know {new[0]} yet: `moe-opt doctor --compat --record` on sglang {SUPPORTED}"
        )


def _hooks(source: Source, hooks: Sequence[HookUse], pinned: Pinned) -> Iterator[Item]:
    for target, was in pinned.hooks.items():
        of_target = [hook for hook in hooks if hook.target == target]
        reason = "; ".join(hook.reason for hook in of_target)
        symbol = find(source, target)
        item = _compared("hook", target, was, source, symbol, reason)
        if symbol is not None and item.state != "unchanged" and functions_of(symbol):
            trouble = [text for hook in of_target if (text := _misfit(hook, symbol))]
            fits = f"our hook cannot be called: {trouble[0]}" if trouble else "our hook can be called as before"
            item = Item(item.kind, item.name, item.state, f"{item.detail}; {fits}", reason)
        yield item


def _misfit(hook: HookUse, symbol: Symbol) -> str | None:
    ours = hook_function(hook)
    return "it is not there" if ours is None else misfit(hook.kind, ours, functions_of(symbol)[-1])


def _imports(source: Source, pinned: Pinned) -> Iterator[Item]:
    for name, was in pinned.imports.items():
        yield _compared("import", name, was, source, find(source, name), "")


def _compared(kind: Kind, name: str, was: Definition, source: Source, symbol: Symbol | None, reason: str) -> Item:
    if symbol is None:
        return Item(kind, name, *_elsewhere(name, was, source), reason)
    is_ = define(symbol)
    difference = _difference(was, is_)
    if is_.at != was.at:
        where = f"defined in {is_.at}, before in {was.at}; the old name still leads there"
        return Item(kind, name, "moved", "; ".join(filter(None, [where, difference])), reason)
    return Item(kind, name, "changed" if difference else "unchanged", difference, reason)


def _elsewhere(name: str, was: Definition, source: Source) -> tuple[State, str]:
    """Where a name that is gone may be now: moved where at least its signature or its body is the same."""
    *_, owner, last = name.split(".")
    wanted = f"{owner}.{last}" if owner[:1].isupper() else last
    same: list[str] = []
    others: list[str] = []
    for place in find_moved(source, name):
        if (found := find(source, place)) is not None:
            now = define(found)
            difference = _difference(was, now)
            close = now.kind == was.kind and (now.body == was.body or was.signature == now.signature != "()")
            (same if close or not difference else others).append(f"{place} ({difference or 'the same'})")
    if same:
        return "moved", "to " + ", ".join(same[:_SHOWN])
    return "gone", f"{'another' if others else 'no'} {wanted} in {', '.join(others[:_SHOWN]) or 'any module'}"


def _difference(was: Definition, now: Definition) -> str:
    """What differs, in words; empty where nothing does."""
    if was.kind != now.kind:
        return f"was a {was.kind}, now a {now.kind}"
    told = []
    if was.signature != now.signature:
        told.append(f"{'bases' if was.kind == 'class' else 'signature'} {was.signature} -> {now.signature}")
    if was.body != now.body:
        told.append("body" if was.kind == "function" else "value")
    for word, names in (
        ("changed", [n for n, d in was.members.items() if now.members.get(n, d) != d]),
        ("removed", [n for n in was.members if n not in now.members]),
        ("added", [n for n in now.members if n not in was.members]),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            told.append(f"members {word}: {', '.join(names[:_SHOWN])}{more}")
    return "; ".join(told)


def _attributes(source: Source, pinned: Pinned) -> Iterator[Item]:
    @functools.cache
    def attributes_of(owner: str) -> dict[str, ast.stmt]:
        symbol = find(source, owner)
        return {} if symbol is None else class_attributes(source, symbol)

    for key, owners in pinned.attributes.items():
        name = key.rpartition(":")[2]
        kept, lost, changed = [], [], []
        for owner, was in owners.items():
            own = attributes_of(owner)
            if name not in own:
                lost.append(owner)
            elif (now := describe(own[name])) != was:
                changed.append(f"signature in {owner} {was} -> {now}")
            else:
                kept.append(owner)
        if not kept and not changed:
            yield Item("attribute", key, "gone", f"not in {', '.join(lost[:_SHOWN])}", "")
        elif lost or changed:
            told = [*changed[:_SHOWN], *([f"no longer in {', '.join(lost[:_SHOWN])}"] if lost else [])]
            yield Item("attribute", key, "changed", "; ".join(told), "")
        else:
            yield Item("attribute", key, "unchanged", "", "")


def _arguments(source: Source, pinned: Pinned) -> Iterator[Item]:
    fields, flags = server_fields(source), server_flags(source)
    for name, was in pinned.fields.items():
        now = fields.get(name)
        if now is None:
            yield Item("field", name, "gone", "no such server argument: what it switches on is not refused", "")
        else:
            told = "" if now == was else f"{was} -> {now}"
            yield Item("field", name, "changed" if told else "unchanged", told, "")
    mentioned = source.mentions(pinned.environment)
    for name in pinned.flags:
        yield _present("flag", name, name in flags, "no such flag of sglang serve")
    for name in pinned.environment:
        yield _present("variable", name, name in mentioned, "read by no module")


def _present(kind: Kind, name: str, there: bool, otherwise: str) -> Item:
    return Item(kind, name, "unchanged", "", "") if there else Item(kind, name, "gone", otherwise, "")
