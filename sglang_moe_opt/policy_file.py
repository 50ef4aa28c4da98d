"""Adds a profile to a policy file as text: comments, order and everything else in it stay as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from sglang_moe_opt.files import write_atomically
from sglang_moe_opt.policy import Policy, PolicyError

_KEY = "profiles"


def check_profile(path: Path, name: str, *, replace: bool) -> None:
    """Raise PolicyError where `add_profile` would refuse the file or the name, before any work is done for it."""
    _edited(path, name, {"na": 1}, replace, "")


def add_profile(path: Path, name: str, rule: dict[str, Any], *, replace: bool = False, comment: str = "") -> None:
    """Write a profile into a policy file, which is made where it is missing; in one step.

    Args:
        path: the file.
        name: of the profile.
        rule: as in a hint, such as {"layers": [6, 4, 4]}.
        replace: a profile of this name may be there already.
        comment: one line that goes before it.

    Raises:
        PolicyError: the file is no policy, the name is taken or not allowed, or the file is written in a way that
            cannot be added to.
    """
    write_atomically(path, _edited(path, name, rule, replace, comment))


def _edited(path: Path, name: str, rule: dict[str, Any], replace: bool, comment: str) -> str:
    """The file's text with the profile, checked to say the same as before but for it."""
    if path.exists():
        before = Policy.load(path)
        text = path.read_text(encoding="utf-8")
    else:
        before, text = Policy(), ""
    if name in before.profiles and not replace:
        raise PolicyError(f"{_KEY}.{name}", str(path), "another name, or --replace: it has this profile already")
    new = Policy.from_object({_KEY: {name: rule}}).profiles
    wanted = before.model_copy(update={_KEY: {**before.profiles, **new}})
    edited = _with_profile(text, path, name, _flow(rule), comment)
    try:
        is_right = Policy.from_object(yaml.safe_load(edited)) == wanted
    except (yaml.YAMLError, PolicyError):
        is_right = False
    if not is_right:
        raise PolicyError("--policy", str(path), "a file whose profiles are written out one under another, unaliased")
    return edited


def _flow(rule: dict[str, Any]) -> str:
    """The rule on one line, as in the documents: {layers: [6, 4, 4], rescale: mass}."""
    return "{" + ", ".join(f"{key}: {json.dumps(value)}".replace('"', "") for key, value in rule.items()) + "}"


def _with_profile(text: str, path: Path, name: str, flow: str, comment: str) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader) if text.strip() else None
    note = [f"# {comment}"] if comment else []
    found = _entry(root, _KEY)
    if found is None:
        if text and not text.endswith("\n"):
            text += "\n"
        return text + "\n".join([f"{_KEY}:", *(f"  {line}" for line in [*note, f"{name}: {flow}"])]) + "\n"
    profiles = found[1]
    if (own := _entry(profiles, name)) is not None:
        begin, end = own[1].start_mark.index, _end(own[1])
        if isinstance(own[1], yaml.CollectionNode) and not own[1].flow_style:
            begin = own[0].end_mark.index  # a block begins on the next line: "name:" stays, the block goes
            flow = f": {flow}"
        return text[:begin] + flow + text[end:]
    if not isinstance(profiles, yaml.MappingNode) or not profiles.value:  # nothing, null or {}
        begin, end = found[0].end_mark.index, _end(profiles)
        lines = "".join(f"\n  {line}" for line in [*note, f"{name}: {flow}"])
        return text[:begin] + ":" + lines + text[max(end, text.index(":", begin) + 1) :]
    if profiles.flow_style:
        at = _end(profiles.value[-1][1])
        return f"{text[:at]}, {name}: {flow}{text[at:]}"
    last = _end(profiles.value[-1][1])
    line_end = text.find("\n", last)
    at = len(text) if line_end < 0 else line_end
    indent = " " * profiles.value[0][0].start_mark.column
    return text[:at] + "".join(f"\n{indent}{line}" for line in [*note, f"{name}: {flow}"]) + text[at:]


def _entry(node: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next(((k, v) for k, v in node.value if getattr(k, "value", None) == key), None)


def _end(node: yaml.Node) -> int:
    """Where a node's text ends. A block's own mark lies behind the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)
