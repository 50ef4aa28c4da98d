"""Which schedules to evaluate: from the command line or a grid file, as labelled hints expanded on the served model."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.results import ScheduleEntry, file_name
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.hints import ResolvedHint, resolve
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy

GRIDS_DIR: Final = Path(__file__).parent / "grids"


@dataclass(frozen=True)
class Labelled:
    """A hint and what results call it; `expanded`: one of many that a grid made, dropped if another does the same."""

    label: str
    hint: Any
    expanded: bool = False


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GridEntry(_Strict):
    """One schedule of a grid file."""

    hint: Any
    label: str | None = None


class GridAxes(_Strict):
    """Every (b, h, e, p) of these values, as in `SkipSchedule.schedule`."""

    b: list[int] = Field(min_length=1)
    h: list[int] = Field(min_length=1)
    e: list[int] = Field(min_length=1)
    p: list[int] = Field(min_length=1)
    layer_base: Literal["moe", "all"] = "moe"


class Grid(_Strict):
    """A grid file: `schedules` one by one, and `grid` expanded, of which those that do the same are run once."""

    schedules: list[GridEntry] = []
    grid: GridAxes | None = None

    @classmethod
    def load(cls, name: str) -> Grid:
        """Read a YAML file, or a grid that comes with the project by its name. Raises FieldError."""
        file = Path(name)
        if not file.exists() and (GRIDS_DIR / f"{file.stem}.yaml").exists():
            file = GRIDS_DIR / f"{file.stem}.yaml"
        try:
            return cls.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
        except OSError:
            shipped = ", ".join(sorted(path.stem for path in GRIDS_DIR.glob("*.yaml")))
            raise FieldError("--grid", name, f"a YAML file, or one of {shipped}") from None
        except yaml.YAMLError as error:
            raise FieldError("--grid", name, f"YAML ({' '.join(str(error).split())})") from None
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise FieldError(f"--grid {name}: {field}", first["input"], first["msg"]) from None

    def labelled(self) -> list[Labelled]:
        """The schedules in the file's order, those of the grid after those named one by one."""
        named = [Labelled(entry.label or label_of(entry.hint), entry.hint) for entry in self.schedules]
        if self.grid is None:
            return named
        axes = self.grid
        base = {} if axes.layer_base == "moe" else {"layer_base": axes.layer_base}
        return named + [
            Labelled(f"b{b}h{h}e{e}p{p}", {"schedule": [b, h, e, p], **base}, expanded=True)
            for b, h, e, p in itertools.product(axes.b, axes.h, axes.e, axes.p)
        ]


def parse_profiles(text: str) -> list[Labelled]:
    """Schedules separated by commas: profile names, RULE=VALUE, or hints in JSON. Raises FieldError.

    Example: full,fast,na=3,schedule=[6,4,2,5],{"min_ratio": 0.2, "min_na": 2}
    """
    return [Labelled(label_of(hint), hint) for hint in map(_parse_hint, _split(text))]


def label_of(hint: Any) -> str:
    """A short name: `fast`, `na=3`, `schedule=6-4-2-5`, `min_ratio=0.2,min_na=2`, `prefill=full,decode=na=1`."""
    if isinstance(hint, dict) and set(hint) == {"profile"}:
        return str(hint["profile"])
    if isinstance(hint, dict):
        return ",".join(f"{key}={label_of(value)}" for key, value in hint.items())
    if isinstance(hint, list):
        return "-".join(map(str, hint))
    return str(hint)


def resolve_all(wanted: Sequence[Labelled], policy: Policy, shape: MoEShape) -> list[ScheduleEntry]:
    """Expand schedules on the model, in order.

    Raises:
        FieldError: a hint that policy or model do not allow, or a label that is there twice.
    """
    entries: dict[str, ScheduleEntry] = {}
    digests: set[tuple[str, str]] = set()
    for one in wanted:
        resolved = resolve(one.hint, policy, shape, field=f"schedule {one.label}")
        digest = (resolved.prefill.digest, resolved.decode.digest)
        if one.expanded and digest in digests:
            continue
        digests.add(digest)
        if one.label in entries:
            raise FieldError("schedules", one.label, "each label once")
        entries[one.label] = _entry(one, resolved)
    return list(entries.values())


def check_labels(entries: Sequence[ScheduleEntry]) -> None:
    """Raise FieldError where two schedules would share a folder of results."""
    folders: dict[str, str] = {}
    for label in (entry.label for entry in entries):
        if (folder := file_name(label)) in folders:
            raise FieldError("schedules", label, f"each label once, as a name of files: {folders[folder]!r} is there")
        folders[folder] = label


def _entry(one: Labelled, resolved: ResolvedHint) -> ScheduleEntry:
    """Prompt tokens carry nearly all of an evaluation: a schedule of two phases is described by its prefill."""
    table = resolved.prefill
    return ScheduleEntry(
        label=one.label,
        hint=one.hint,
        mean_na=table.mean_na,
        layers=table.na.tolist(),
        dynamic=not table.is_static or bool(resolved.levels),
    )


def _split(text: str) -> Iterable[str]:
    """Cut at the commas that are outside brackets."""
    depth, part = 0, ""
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            yield part.strip()
            part = ""
        else:
            part += character
    yield part.strip()


def _parse_hint(text: str) -> Any:
    if text.startswith("{"):
        return _json(text, text)
    name, equals, value = text.partition("=")
    if equals:
        return {name.strip(): _json(value, text)}
    if not re.fullmatch(r"[\w.-]+", text):
        raise FieldError("--profiles", text, "profile names, RULE=VALUE such as na=3, or hints in JSON")
    return text


def _json(text: str, whole: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise FieldError("--profiles", whole, "a value in JSON") from None
