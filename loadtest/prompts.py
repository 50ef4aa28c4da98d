"""What requests ask: random token ids of an exact length, or texts from files; the same ones in every run of a seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sglang_moe_opt.fields import FieldError

SPECIAL_IDS = 16
"""Left out of random prompts: a special token might end or change the prompt."""
NAMED = {
    "mt-bench": "mt_bench_questions.jsonl",
    "vicuna": "vicuna_bench_questions.jsonl",
    "gsm8k": "gsm8k_test.jsonl",
    "arena-hard": "arena_hard_v0.1_questions.jsonl",
}
FIELDS = ("prompt", "text", "question", "turns", "messages", "input_ids")
"""Where a line of JSON has its prompt, the first that is there."""
ALLOWED = f"random:LENGTH, {', '.join(NAMED)}, sharegpt:FILE or jsonl:FILE[:FIELD]"
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids or text, and the length that its answer had where the source knows one."""

    ids: tuple[int, ...] | None = None
    text: str | None = None
    output_len: int | None = None


class PromptSource(Protocol):
    """Prompts by number, without end."""

    @property
    def title(self) -> str: ...

    def draw(self, index: int) -> Prompt:
        """The prompt with this number; always the same one."""
        ...


@dataclass(frozen=True)
class RandomPrompts:
    """Uniform token ids."""

    length: int
    vocab_size: int
    seed: int

    @property
    def title(self) -> str:
        return f"random:{self.length}"

    def draw(self, index: int) -> Prompt:
        random = np.random.default_rng([self.seed, index])
        return Prompt(ids=tuple(random.integers(SPECIAL_IDS, self.vocab_size, size=self.length).tolist()))


class FilePrompts:
    """The prompts of a file, shuffled once, over and over."""

    def __init__(self, title: str, prompts: Sequence[Prompt], seed: int) -> None:
        self._title = title
        self._prompts = [prompts[i] for i in np.random.default_rng(seed).permutation(len(prompts))]

    @property
    def title(self) -> str:
        return self._title

    def draw(self, index: int) -> Prompt:
        return self._prompts[index % len(self._prompts)]


def parse(
    spec: str, *, vocab_size: int | None = None, data_dir: str | Path | None = None, seed: int = 0
) -> PromptSource:
    """The source that `--prompts` names.

    Args:
        spec: see ALLOWED.
        vocab_size: of the model, for random ids.
        data_dir: where the files of the named sources are.
        seed: of ids and order.

    Raises:
        ValueError: naming the option or the file and line, the value and what is allowed.
    """
    kind, _, rest = spec.partition(":")
    if kind == "random":
        if not (rest.isascii() and rest.isdigit() and len(rest) < 8 and 1 <= int(rest) <= 1 << 20):
            raise FieldError("--prompts", spec, "random:LENGTH with a whole number from 1 to 1048576")
        if vocab_size is None or vocab_size <= SPECIAL_IDS:
            raise FieldError("--prompts", spec, "a model whose vocabulary is known")
        return RandomPrompts(int(rest), vocab_size, seed)
    if kind in NAMED and not rest:
        if data_dir is None:
            raise FieldError("--data-dir", data_dir, f"the folder with {NAMED[kind]}, for --prompts {kind}")
        return FilePrompts(kind, _json_lines(Path(data_dir) / NAMED[kind], None), seed)
    if kind == "sharegpt" and rest:
        return FilePrompts(spec, _sharegpt(Path(rest)), seed)
    if kind == "jsonl" and rest:
        name, colon, field = rest.rpartition(":")
        has_field = bool(colon) and not Path(rest).exists()
        return FilePrompts(spec, _json_lines(Path(name if has_field else rest), field if has_field else None), seed)
    raise FieldError("--prompts", spec, ALLOWED)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--prompts: {file} cannot be read ({error.strerror}); see --data-dir") from None
    except UnicodeDecodeError:
        raise ValueError(f"--prompts: {file} is not UTF-8") from None


def _json_lines(file: Path, field: str | None) -> list[Prompt]:
    prompts = []
    # Not splitlines: a text may hold U+2028 and the like as they are.
    for number, line in enumerate(_read(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            raise FieldError(where, line, "JSON") from None
        if not isinstance(row, dict):
            raise FieldError(where, row, "an object")
        names = [field] if field else [name for name in FIELDS if name in row][:1]
        if not names or names[0] not in row:
            raise FieldError(
                where, list(row), f"a field {field}" if field else f"one of the fields {', '.join(FIELDS)}"
            )
        prompts.append(_prompt(row[names[0]], f"{where}: {names[0]}"))
    return _some(prompts, file)


def _prompt(value: Any, where: str) -> Prompt:
    """From a text, token ids, turns of texts, or messages: the first of several that is no system message."""
    if isinstance(value, str) and value:
        return Prompt(text=value)
    if isinstance(value, list):
        value = _without_system(value, "role")
    if isinstance(value, list) and value:
        first = value[0]
        if all(isinstance(token, int) and not isinstance(token, bool) for token in value):
            return Prompt(ids=tuple(value))
        if isinstance(first, str) and first:
            return Prompt(text=first)
        if isinstance(first, Mapping) and isinstance(first.get("content"), str) and first["content"]:
            return Prompt(text=first["content"])
    raise FieldError(where, value, "a text, token ids, a list of texts or a list of messages")


def _without_system(turns: list[Any], role: str) -> list[Any]:
    """From the first turn on that the system did not write."""
    return list(dropwhile(lambda turn: isinstance(turn, Mapping) and turn.get(role) in ("system", "developer"), turns))


def _sharegpt(file: Path) -> list[Prompt]:
    """First human turns; the length of the reply, in characters, says about how many tokens it had."""
    try:
        rows = json.loads(_read(file))
    except ValueError:
        raise ValueError(f"--prompts: {file} is not JSON in ShareGPT's format") from None
    prompts = []
    for row in rows if isinstance(rows, list) else []:
        found = row.get("conversations") if isinstance(row, dict) else None
        found = found if isinstance(found, list) else []
        turns = [turn for turn in found if isinstance(turn, dict) and isinstance(turn.get("value"), str)]
        turns = _without_system(turns, "from")
        # Conversations without a reply, or that begin with one, are common.
        if len(turns) >= 2 and turns[0].get("from") in ("human", "user") and turns[0]["value"]:
            length = max(1, len(turns[1]["value"]) // _CHARACTERS_PER_TOKEN)
            prompts.append(Prompt(text=turns[0]["value"], output_len=length))
    return _some(prompts, file)


def _some(prompts: list[Prompt], file: Path) -> list[Prompt]:
    if not prompts:
        raise ValueError(f"--prompts: {file} has no prompt, allowed: a file with at least one prompt")
    return prompts
