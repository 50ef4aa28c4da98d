"""Load tests with known effects, for tests of what is made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from loadtest.folder import (
    ArmEntry,
    ClientSide,
    LoadtestFolder,
    Manifest,
    PlanEntry,
    PointFile,
    ServerMemory,
    ServerSide,
)
from loadtest.load import Load
from loadtest.record import Record
from sglang_moe_opt.perfmodel.roofline import expected_distinct_experts
from sglang_moe_opt.shapes import ShapeSpec

ARMS = {"full": 6.0, "na=4": 4.0, "na=2": 2.0}
"""Label: routed experts per token."""
LOADS = ("c1", "c4", "c16", "c64")
INPUT, OUTPUT = 32, 8
REQUESTS = 2
"""Of each user."""
BANDWIDTH, PEAK = 400e9, 12e12
CONFIG = ShapeSpec.parse("deepseek-v2-lite@5").config()
EXPERTS = 64


def write_load(
    root: Path,
    arms: Mapping[str, float] = ARMS,
    loads: Sequence[str] = LOADS,
    *,
    rounds: int = 3,
    noise: float = 0.01,
    failures: int = 0,
    goodput_ms: Mapping[str, float] | None = None,
    plans: Mapping[str, Sequence[int]] | None = None,
    tells: bool = True,
    model: str = "mini-v2 <test>",
    seed: int = 0,
) -> LoadtestFolder:
    """A complete load test: fewer experts make shorter steps, but not at a single request.

    Args:
        failures: requests of each point that fail, of the first arm's largest load alone.
        plans: experts that each MoE layer keeps, of the arms whose server is pruned.
        tells: the server tells about its batch and its experts, the machine about its ceilings.
    """
    folder = LoadtestFolder(root)
    folder.write_manifest(_manifest(arms, loads, rounds, goodput_ms or {}, plans or {}, model))
    for turn in range(1, rounds + 1):
        for number, label in enumerate(loads):
            for arm, na in arms.items():
                load = Load.parse(label)
                rng = np.random.default_rng([seed, turn, number, list(arms).index(arm)])
                broken = failures if arm == next(iter(arms)) and label == loads[-1] else 0
                records = _records(load, na, float(np.exp(rng.normal(0, noise))), broken)
                folder.write_point(_point(arm, na, load, turn, records, tells), records)
    return folder


def step_s(na: float, users: int) -> float:
    """Seconds of one decode step."""
    return 0.004 + 0.0002 * (users > 1) * expected_distinct_experts(EXPERTS, na, users) + 0.0001 * users


def plan_of(name: str, kept: Sequence[int]) -> PlanEntry:
    """Of experts of 10 MB."""
    sizes = {"expert_bytes": sum(kept) * 10**7, "whole_expert_bytes": len(kept) * EXPERTS * 10**7}
    return PlanEntry(name=name, digest=f"{sum(kept):032x}", kept=list(kept), num_experts=EXPERTS, **sizes)


def memory_of(kept: Sequence[int]) -> ServerMemory:
    """500 MB besides the experts, and 1500 MB of other processes."""
    return ServerMemory(scheduler_bytes=sum(kept) * 10**7 + 500 * 10**6, all_bytes=sum(kept) * 10**7 + 2000 * 10**6)


def _arm(label: str, na: float, plans: Mapping[str, Sequence[int]]) -> ArmEntry:
    """Each plan has a server of its own."""
    plan = plan_of(label, plans[label]) if label in plans else None
    layers = len(next(iter(plans.values()), ()))
    return ArmEntry(
        label=label,
        url=f"http://localhost:{30000 + (list(plans).index(label) + 1 if plan else 0)}",
        hints={label: ({"na": int(na)}, 1.0)},
        mean_na=na,
        plan=plan,
        memory=memory_of(plan.kept if plan else [EXPERTS] * layers) if plans else None,
    )


def _manifest(
    arms: Mapping[str, float],
    loads: Sequence[str],
    rounds: int,
    goodput_ms: Mapping[str, float],
    plans: Mapping[str, Sequence[int]],
    model: str,
) -> Manifest:
    return Manifest(
        created="2026-01-02T03:04:05+00:00",
        command=["moe-opt", "loadtest", "--profiles", "full,na=4,na=2", "--config", "a policy.yaml"],
        model=model,
        model_fingerprint="0123456789abcdef",
        model_config_json=CONFIG,
        arms=[_arm(label, na, plans) for label, na in arms.items()],
        loads=list(loads),
        rounds=rounds,
        prompts=f"random:{INPUT}",
        output_len=OUTPUT,
        seconds=5.0,
        max_seconds=300.0,
        goodput_ms=dict(goodput_ms),
        api="generate",
        versions={"sglang": "0.5.23", "sglang-moe-opt": "0.1.0"},
        machine={"cpu": "a CPU & more", "cores": 2},
        git_revision="abc1234",
    )


def _records(load: Load, na: float, factor: float, failures: int) -> list[Record]:
    """Every user sends its requests one after the other."""
    users = load.concurrency or 8
    step = step_s(na, users) * factor
    first = 0.02 + 0.001 * users
    arrivals = tuple(first + step * number for number in range(OUTPUT))
    records = [
        Record("", turn * (arrivals[-1] + 0.001) + 0.0001 * user, arrivals, arrivals[-1], INPUT, OUTPUT)
        for user in range(users)
        for turn in range(REQUESTS)
    ]
    failed = [Record("", 0.1, (), 0.2, INPUT, 0, "503") for _ in range(failures)]
    return records + failed


def _point(arm: str, na: float, load: Load, turn: int, records: list[Record], tells: bool) -> PointFile:
    users = load.concurrency or 8
    answered = [record for record in records if record.ok]
    told = ServerSide(
        running=[users] * 3,
        waiting=[0] * 3,
        distinct_experts=expected_distinct_experts(EXPERTS, na, users),
        slots_kept=na / 6,
    )
    return PointFile(
        arm=arm,
        load=load.label,
        round=turn,
        started_at="2026-01-02T03:04:05+00:00",
        begin=0.0,
        end=max(record.start + record.e2e for record in answered),
        cut_off=0,
        server=told if tells else ServerSide(),
        client=ClientSide(processes=1, cpu_s=0.05, wall_s=1.0, lag_ms=0.5),
        read_bandwidth=BANDWIDTH if tells else None,
        peak_flops=PEAK if tells else None,
    )
