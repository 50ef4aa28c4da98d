"""What a soak sends: kinds of requests with their shares, drawn from a seed, and the policies to reload. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal["profile", "custom", "sentinel", "bad hint", "cut stream", "cut early"]
SHARES: Final[dict[Kind, int]] = {
    "profile": 30,
    "custom": 20,
    "sentinel": 20,
    "bad hint": 15,
    "cut stream": 10,
    "cut early": 5,
}
"""Percent."""

PROFILES: Final = ("full", "fast", "lean", "adaptive", "thrifty", "turning", "auto", None)
"""What requests name; None leaves the hint out. `turning` and the default are what reloads redefine."""
STATIC_NA: Final = {"fast": 2.0, "lean": 1.0}
TURNING: Final = ({"na": 3}, {"na": 2, "rescale": "mass"})
"""The two definitions of `turning`."""
KNOWN: Final[dict[str, tuple[Any, ...]]] = {
    "full": ("full",),
    "fast": ({"na": 2},),
    "lean": ({"na": 1},),
    "adaptive": ({"min_ratio": 0.2, "min_na": 2},),
    "thrifty": ({"prefill": "full", "decode": {"na": 1}},),
    "turning": TURNING,
}
"""What each profile stands for, by its definitions, as a request of its own would write it."""
SENTINEL_TOKENS: Final = 16
MAX_LIVE: Final = 12

_COMMON: Final = """\
profiles:
  fast: {na: 2}
  lean: {na: 1}
  adaptive: {min_ratio: 0.2, min_na: 2}
  thrifty: {prefill: full, decode: {na: 1}}
"""
_POLICIES: Final = (
    """\
  turning: {na: 3}
  auto:
    auto:
      levels: [full, fast, lean]
      speedup: {fast: {1: 1.5, 8: 1.2, 32: 1.0}, lean: {1: 2.0, 8: 1.4, 32: 1.0}}
default: full
""",
    """\
  turning: {na: 2, rescale: mass}
  auto: {auto: {levels: [full, fast], speedup: {fast: {1: 1.5, 8: 1.2, 32: 1.1}}, hold_steps: 2}}
  added: {top_p: 0.8}
default: thrifty
""",
)
BROKEN: Final = (
    ("profiles: {fast: {na: two}}\n", "profiles.fast.na"),
    ("profiles: {fast: {na: 2}\n", "policy file"),
    ("profiles: {fast: {na: 2}}\ndefault: slow\n", "default"),
    ("profiles: {deep: {layers: [1]}}\n", "profiles.deep.layers"),
    ("prune_plan: other.json\n", "prune_plan"),
    ("consolidation: {k0: 3}\n", "consolidation"),
)
"""Policy files that must be refused, with the field that the refusal names."""

BAD_HINTS: Final[tuple[Any, ...]] = (
    "no such profile",
    "",
    3,
    [],
    {},
    {"na": "x"},
    {"na": -1},
    {"na": 10**30},
    {"na": 2, "top_p": 0.5},
    {"layers": [1]},
    {"layers": [1] * 5000},
    {"min_ratio": 2},
    {"schedule": [6, 4, 2]},
    {"auto": {"levels": ["full", "fast"]}},
    {"prefill": {"prefill": "full"}},
    {"na": 6, "consolidate": 2},
    {"profile": "fast", "na": 2},
    {"rescale": "mass"},
    {"na": [[[[[[[[1]]]]]]]]},
)


def policy(generation: int) -> str:
    """The policy file that a number of reloads has led to; every one differs from the one before it."""
    return _COMMON + _POLICIES[(generation - 1) % len(_POLICIES)] + f"max_live_schedules: {MAX_LIVE}\n"


@dataclass(frozen=True)
class Job:
    """One request to send.

    Attributes:
        kind: what it is for.
        ids: token ids of the prompt.
        hint: None sends none.
        new_tokens: length of the answer.
        cut_after: tokens after which a stream is cut off; 0: it is read to its end, or left before it begins.
        in_header: a profile's name goes into the header `x-moe-skip`.
        streams: asked for as a stream.
    """

    kind: Kind
    ids: tuple[int, ...]
    hint: Any
    new_tokens: int
    cut_after: int = 0
    in_header: bool = False
    streams: bool = False

    def body(self) -> dict[str, Any]:
        """The request of `/generate`, greedy."""
        sampling: dict[str, Any] = {"temperature": 0, "max_new_tokens": self.new_tokens, "ignore_eos": True}
        if self.hint is not None and not self.in_header:
            sampling["custom_params"] = {"moe_skip": self.hint}
        return {"input_ids": list(self.ids), "sampling_params": sampling, "stream": self.streams}


class Traffic:
    """Draws jobs.

    Args:
        seed: equal seeds draw equal jobs.
        top_k: of the model.
        vocabulary: ids are drawn below it.
        num_sentinels: prompts of which the answers are known.
    """

    def __init__(self, seed: int, top_k: int, vocabulary: int, num_sentinels: int) -> None:
        self._rng = random.Random(seed)
        self._top_k, self._vocabulary = top_k, vocabulary
        shared = random.Random(0)
        self.sentinels = [self._ids(shared, 48) for _ in range(num_sentinels)]
        self._heads = [self._ids(shared, 64) for _ in range(8)]

    def draw(self) -> Job:
        """The next request."""
        rng = self._rng
        kind: Kind = rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
        if kind == "sentinel":
            return Job(kind, rng.choice(self.sentinels), rng.choice(list(KNOWN)), SENTINEL_TOKENS)
        ids = rng.choice(self._heads) + self._ids(rng, rng.randint(1, 120))  # prompts share heads, as chats do
        new_tokens = rng.randint(1, 48)
        if kind == "bad hint":
            return Job(kind, ids, rng.choice(BAD_HINTS), new_tokens)
        if kind == "custom":
            return Job(kind, ids, self._custom(), new_tokens, streams=rng.random() < 0.5)
        hint = rng.choice(PROFILES)
        if kind == "profile":
            in_header = hint is not None and rng.random() < 0.3
            return Job(kind, ids, hint, new_tokens, in_header=in_header, streams=rng.random() < 0.5)
        new_tokens += 32
        if kind == "cut early":  # under profiles only: nobody would see whether a schedule was one too many
            return Job(kind, ids, hint, new_tokens, streams=True)
        any_hint: Any = self._custom() if rng.random() < 0.5 else hint
        return Job(kind, ids, any_hint, new_tokens, cut_after=rng.randint(1, 24), streams=True)

    def _custom(self) -> dict[str, Any]:
        """A schedule of a request's own: some are common, so that they meet in a batch, some are its alone."""
        rng = self._rng
        return rng.choice(
            [
                {"na": rng.randint(1, self._top_k)},
                {"min_ratio": round(rng.uniform(0.05, 0.6), rng.choice([1, 6]))},
                {"top_p": round(rng.uniform(0.5, 0.99), rng.choice([1, 6])), "rescale": "mass"},
                {"prefill": "full", "decode": {"na": rng.randint(1, self._top_k)}},
                {"decode": "fast", "prefill": {"min_weight": round(rng.uniform(0.0, 0.2), rng.choice([1, 6]))}},
            ]
        )

    def _ids(self, rng: random.Random, count: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(10, self._vocabulary), k=count))
