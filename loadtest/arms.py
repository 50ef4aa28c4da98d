"""Which curves a load test draws: schedules of one server, users who mix them, and other servers beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.results import file_name
from eval.schedules import Labelled, parse_profiles, resolve_all
from loadtest.folder import ArmEntry
from loadtest.target import Target
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.schedule import FULL


def build_arms(
    target: Target, profiles: str, mixes: Sequence[str], others: Mapping[str, Target], config: Path | None = None
) -> list[ArmEntry]:
    """The arms, the first profile first.

    Args:
        target: the server under test.
        profiles: as for `moe-opt eval`: full,fast,na=3,...
        mixes: each `PROFILE=SHARE,PROFILE=SHARE`, shares in any unit.
        others: further servers by name; they are asked without a hint.
        config: the server's policy file, where it does not say.

    Raises:
        FieldError: a profile, a hint or a share that is not allowed, or a label that is there twice.
    """
    plain = parse_profiles(profiles)
    shares = [parse_mix(mix) for mix in mixes]
    every = {one.label: one for one in [*plain, *(profile for mix in shares for profile, _ in mix)]}
    mean_na = _mean_na(target, list(every.values()), config)
    arms = []
    for mix in [*([(profile, 1.0)] for profile in plain), *shares]:
        whole = sum(share for _, share in mix)
        arms.append(
            ArmEntry(
                label=_label(mix, whole),
                url=target.url,
                hints={profile.label: (_sent(profile, target), share) for profile, share in mix},
                mean_na=sum(mean_na[profile.label] * share for profile, share in mix) / whole if mean_na else None,
            )
        )
    arms += [
        ArmEntry(label=name, url=other.url, hints={name: (None, 1.0)}, is_baseline_server=True)
        for name, other in others.items()
    ]
    names = [file_name(arm.label) for arm in arms]
    for arm, name in zip(arms, names, strict=True):
        if names.count(name) > 1:
            raise FieldError("curves", arm.label, "each label once, apart in more than signs")
    return arms


def _label(mix: Sequence[tuple[Labelled, float]], whole: float) -> str:
    if len(mix) == 1:
        return mix[0][0].label
    return "+".join(f"{profile.label}:{100 * share / whole:.0f}" for profile, share in mix)


def _sent(profile: Labelled, target: Target) -> Any:
    """`full` is no hint at all to a server without skipping: it cannot do anything else."""
    skips = target.served is not None and target.served.policy_source is not None
    return None if profile.hint == FULL and not skips else profile.hint


def parse_mix(text: str) -> list[tuple[Labelled, float]]:
    """`fast=70,full=30` as profiles with their shares. Raises FieldError."""
    mix = []
    for part in text.split(","):
        name, _, share = part.rpartition("=")
        try:
            weight = float(share)
        except ValueError:
            weight = 0.0
        if not name or not 0 < weight < float("inf"):
            raise FieldError("--mix", part, "PROFILE=SHARE, comma-separated, such as fast=70,full=30")
        mix.append((parse_profiles(name)[0], weight))
    return mix


def _mean_na(target: Target, wanted: list[Labelled], config: Path | None) -> dict[str, float]:
    """Of each profile; empty where the server's model is not known."""
    if target.served is None:
        return {}
    entries = resolve_all(wanted, target.served.policy(config), target.served.shape)
    return {entry.label: entry.mean_na for entry in entries}
