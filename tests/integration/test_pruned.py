"""A model served under a plan is the whole model with masked router logits: against transformers, under schedules."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpoints import checkpoint
from plans import with_replaced_tensors, write_plan
from reference import Reference, assert_logprobs, prompt, reference
from server import MINI_V2, Kind, Server, Servers, eventually, request_body

from sglang_moe_opt.launch import plan_launch

pytestmark = [pytest.mark.server, pytest.mark.slow]

NEW_TOKENS = 48
DECIDED = NEW_TOKENS * 3 // 4

SHRUNK_V2 = Kind(plan="by-layer, replaced")
MASKED_V3 = Kind("random-v3", plan="unequal", args=("--chunked-prefill-size", "400", "--enable-mixed-chunk"))
SHRUNK_V3 = Kind("random-v3", plan="by-layer", exported=True, policy=False)
MASKED_V2 = Kind(
    "random-v2-groups", plan="unequal", exported=True, policy=False, env=(("SGLANG_MOE_OPT_CPU_KERNELS", "0"),)
)
"""Softmax router, on upstream's own path. This one and SHRUNK_V3 serve what `moe-opt prune export` writes."""

with_schedules = pytest.mark.parametrize("kind", [SHRUNK_V2, MASKED_V3], ids=["v2-shrink", "v3-mask"])


@contextmanager
def pruned_reference(server: Server) -> Iterator[Reference]:
    """transformers with the weights that are served and the plan's masks."""
    folder = server.model
    if server.plan.weights is not None:
        folder = with_replaced_tensors(folder, server.log.with_suffix(".model"))
    model = reference(folder)
    with model.pruned(server.plan.layers):
        yield model


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (SHRUNK_V2, "layers in one call a step"),
        (MASKED_V3, "layers in one call a step"),
        (SHRUNK_V3, "layers in one call a step"),
        (MASKED_V2, "served under the plan"),
    ],
    ids=["v2-shrink", "v3-mask", "v3-shrink", "v2-mask"],
)
def test_the_served_model_is_the_masked_one(servers: Servers, kind: Kind, path: str) -> None:
    server = servers.get(kind)
    assert path in server.log.read_text()
    assert server.plan.gate_mode(server.shape) == ("mask" if kind.plan == "unequal" else "shrink")
    ids = prompt(kind.model, 300, seed=20)
    whole = reference(server.model).logprobs(ids)
    with pruned_reference(server) as model:
        expected = model.logprobs(ids)
        assert_logprobs(server.prompt_logprobs(ids), expected)
        for length in (1, 37, 300):
            tokens = server.tokens(ids[:length], new_tokens=NEW_TOKENS)
            assert model.check_greedy(ids[:length], tokens) >= DECIDED
    assert (expected - whole).abs().max() > 0.1, "the plan changes nothing: this test could not fail"


@with_schedules
@pytest.mark.parametrize("hint", [{"na": 2}, {"layers": [1, 4, 2, 6, 3]}], ids=["na", "layers"])
def test_schedules_are_the_pruned_model_with_a_smaller_top_k(servers: Servers, kind: Kind, hint: dict) -> None:
    server = servers.get(kind)
    ids = prompt(kind.model, 120, seed=21)
    per_layer = hint.get("layers", [2] * 5)
    with pruned_reference(server) as model, model.keeping(per_layer):
        assert_logprobs(server.prompt_logprobs(ids, hint), model.logprobs(ids))
        assert model.check_greedy(ids, server.tokens(ids, hint, new_tokens=NEW_TOKENS)) >= DECIDED


@with_schedules
def test_schedules_do_not_notice_each_other(servers: Servers, kind: Kind) -> None:
    server = servers.get(kind)
    hints = ("full", "lean", {"na": 3}, {"min_ratio": 0.5}, "thrifty")
    work = [(prompt(kind.model, 20 + i, seed=22), hint) for i, hint in enumerate(hints * 4)]
    alone = [server.tokens(ids, hint, new_tokens=24) for ids, hint in work]
    server.flush_cache()
    with ThreadPoolExecutor(len(work)) as pool:
        together = list(pool.map(lambda item: server.tokens(*item, new_tokens=24), work))
    assert together == alone


@with_schedules
def test_metrics_and_headers(servers: Servers, kind: Kind) -> None:
    server = servers.get(kind)
    sizes = [len(kept) for kept in server.plan.layers.values()]

    def layers_within(bound: str) -> float:
        return server.metric("sglang_moe_opt_unique_experts_bucket", phase="prefill", le=bound)

    bounds = ("32.0", "56.0", "+Inf")
    before = {bound: layers_within(bound) for bound in bounds}
    slots = server.metric("sglang_moe_opt_slots_kept_total", profile="fast")
    for seed in range(10):  # one pass in eight is counted
        body = request_body(prompt(kind.model, 300, seed=30 + seed), "fast", new_tokens=1)
        reply = server.client.post("/generate", json=body)
        assert (reply.headers["x-moe-skip"], reply.headers["x-moe-skip-mean-na"]) == ("fast", "2")

    def grown_slots() -> float:
        return server.metric("sglang_moe_opt_slots_kept_total", profile="fast") - slots

    eventually(lambda: grown_slots() >= 10 * 300 * 2 * 5)
    assert grown_slots() >= 10 * 300 * 2 * 5
    grown = {bound: layers_within(bound) - before[bound] for bound in bounds}
    passes = grown["+Inf"] / len(sizes)
    assert passes >= 1
    for bound in ("32.0", "56.0"):
        assert grown[bound] >= passes * sum(size <= float(bound) for size in sizes)


# --- servers that do not start ---


def test_a_plan_for_another_model_ends_both_commands_with_one_line(tmp_path: Path) -> None:
    plan = write_plan("by-layer", checkpoint("random-v2"), tmp_path / "plan.json")
    model = str(checkpoint("random-v3"))
    flags = ["--moe-prune-plan", str(plan)]
    for command in (
        ["-m", "sglang_moe_opt.cli.main", "serve", "--model", model, *flags],
        ["-m", "sglang_moe_opt.cli.sglang_serve", *plan_launch(model, on_cpu=True, extra=flags).argv],
    ):
        ended = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=300, env=environment()
        )
        assert ended.returncode == 2
        lines = [line for line in ended.stderr.splitlines() if "error: " in line]
        assert len(lines) == 1
        assert lines[0].removeprefix("moe-opt: ").startswith(f"error: {plan}: model: got")
        assert "the fingerprint of the model in use" in lines[0]
        assert "Traceback" not in ended.stderr


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SGLANG_MOE_OPT_")}


def test_a_policy_brings_its_plan(tmp_path: Path) -> None:
    """Up to the command that would start: the plan lies beside the policy, and is checked."""
    model = str(checkpoint(MINI_V2.model))
    write_plan("by-layer", Path(model), tmp_path / "plan.json")
    policy = tmp_path / "policy.yaml"
    policy.write_text("prune_plan: plan.json\nprofiles: {fast: {na: 2}}\n")
    command = [sys.executable, "-m", "sglang_moe_opt.cli.main", "serve", "--dry-run", "--model", model]
    fine = subprocess.run([*command, "--config", str(policy)], capture_output=True, text=True, env=environment())
    assert fine.returncode == 0, fine.stderr
    (tmp_path / "plan.json").write_text('{"version": 1')
    broken = subprocess.run([*command, "--config", str(policy)], capture_output=True, text=True, env=environment())
    assert broken.returncode == 2
    assert broken.stderr.startswith(f"moe-opt: error: {tmp_path / 'plan.json'}: plan: got")
    assert broken.stderr.count("\n") == 1
