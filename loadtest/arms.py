"""Which curves a load test draws: schedules of the model, whole or pruned, users who mix them, and other servers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from eval.results import file_name
from eval.schedules import Labelled, parse_profiles, resolve_all
from loadtest.folder import ArmEntry
from loadtest.target import Target
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.hints import ResolvedHint, resolve
from sglang_moe_opt.perfmodel.curve import Consolidated
from sglang_moe_opt.policy import Policy
from sglang_moe_opt.schedule import FULL

WHOLE: Final = ""
"""Name of the server under test, which has the whole model unless it says under which plan it runs."""

Mix = Sequence[tuple[Labelled, float]]
"""Profiles with their shares of the users, in any unit."""


@dataclass(frozen=True)
class Experts:
    """What a profile does to a token's experts: their mean number, and how decode steps share them."""

    mean_na: float
    consolidated: Consolidated | None


@dataclass(frozen=True)
class Curve:
    """A curve that was asked for.

    Attributes:
        label: as reports call it.
        server: WHOLE, or the name of a plan or of another server.
        mix: what its users send; empty where they send no hints, which is so at other servers.
    """

    label: str
    server: str
    mix: Mix


def parse_curves(profiles: str, mixes: Sequence[str], plans: Iterable[str], others: Iterable[str]) -> list[Curve]:
    """The curves in the order of the report, the whole model's first profile first.

    Args:
        profiles: as for `moe-opt eval`: full,fast,na=3,...
        mixes: each `PROFILE=SHARE,PROFILE=SHARE`, shares in any unit.
        plans: names of plans; each is asked under every profile, and its name alone stands for the first.
        others: names of further servers.

    Raises:
        FieldError: a profile or a share that is none, or a label that is there twice.
    """
    plain = parse_profiles(profiles)
    found = [Curve(profile.label, WHOLE, [(profile, 1.0)]) for profile in plain]
    found += [Curve(_label(mix), WHOLE, mix) for mix in map(parse_mix, mixes)]
    for name in plans:
        labels = [name, *(f"{name}/{profile.label}" for profile in plain[1:])]
        found += [Curve(label, name, [(one, 1.0)]) for label, one in zip(labels, plain, strict=True)]
    found += [Curve(name, name, []) for name in others]
    names = [file_name(curve.label) for curve in found]
    for curve, name in zip(found, names, strict=True):
        if names.count(name) > 1:
            raise FieldError("curves", curve.label, "each label once, apart in more than signs")
    return found


def build_arms(curves: Sequence[Curve], servers: Mapping[str, Target], config: Path | None = None) -> list[ArmEntry]:
    """The curves with their servers, and the plans that these run under.

    Args:
        servers: by the names that the curves give them.
        config: the servers' policy file, where they do not say.

    Raises:
        FieldError: a hint that the model does not allow.
    """
    every = {profile.label: profile for curve in curves for profile, _ in curve.mix}
    experts = _experts(servers[WHOLE], list(every.values()), config)
    return [_arm(curve, servers[curve.server], experts) for curve in curves]


def _arm(curve: Curve, target: Target, experts: Mapping[str, Experts]) -> ArmEntry:
    plan = target.served.plan_entry if target.served else None
    if not curve.mix:
        hints: dict[str, tuple[Any, float]] = {curve.label: (None, 1.0)}
        return ArmEntry(label=curve.label, url=target.url, hints=hints, is_baseline_server=True, plan=plan)
    whole = sum(share for _, share in curve.mix)
    known = [(experts[profile.label], share) for profile, share in curve.mix if profile.label in experts]
    shared = {one.consolidated for one, _ in known}
    is_known = len(known) == len(curve.mix) and len(shared) == 1
    return ArmEntry(
        label=curve.label,
        url=target.url,
        hints={profile.label: (_sent(profile, target), share) for profile, share in curve.mix},
        mean_na=sum(one.mean_na * share for one, share in known) / whole if is_known else None,
        consolidated=next(iter(shared)) if is_known else None,
        plan=plan,
    )


def _label(mix: Mix) -> str:
    if len(mix) == 1:
        return mix[0][0].label
    whole = sum(share for _, share in mix)
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


def _experts(target: Target, wanted: list[Labelled], config: Path | None) -> dict[str, Experts]:
    """Of each profile; auto profiles have none, and none is known where the server's model is not."""
    if target.served is None:
        return {}
    policy, shape = target.served.policy(config), target.served.shape
    entries = resolve_all(wanted, policy, shape)
    found = {}
    for entry, one in zip(entries, wanted, strict=True):
        hint = resolve(one.hint, policy, shape)
        if not hint.levels:
            found[entry.label] = Experts(entry.mean_na, _consolidated(hint, policy))
    return found


def _consolidated(hint: ResolvedHint, policy: Policy) -> Consolidated | None:
    """Own experts are the mean over the layers, rounded: a schedule may consolidate in some alone."""
    rule = policy.consolidation
    if rule is None or not hint.decode.consolidates:
        return None
    own = np.where(hint.decode.own_first > 0, hint.decode.own_first, hint.decode.na)
    return Consolidated(max(1, round(float(own.mean()))), rule.max_experts, rule.max_batch)
