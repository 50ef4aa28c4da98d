"""`moe-opt prune plan`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.cli.prune import register
from sglang_moe_opt.model_shape import MoEShape, read_config
from sglang_moe_opt.plan import PrunePlan
from tests.pruning.evidence import make_statistics


@pytest.fixture(scope="module")
def checkpoints(project_root: Path) -> Path:
    return project_root / "eval" / "reference_models" / "checkpoints"


@pytest.fixture
def statistics(checkpoints: Path, tmp_path: Path) -> Path:
    """Statistics of mini-v3 in which experts 8 g + l of each group g matter most in layer l."""
    shape = MoEShape.from_path(checkpoints / "mini-v3")
    hard = np.ones((5, 64))
    reap = np.array([[10.0 if expert % 8 == layer else 1.0 for expert in range(64)] for layer in shape.moe_layer_ids])
    config = read_config(checkpoints / "mini-v3")
    provenance = {"job": {"model": fingerprint(config, checkpoints / "mini-v3"), "corpus": "c"}}
    make_statistics(shape, hard=hard, reap=reap, provenance=provenance).save(tmp_path / "statistics")
    return tmp_path / "statistics"


def run(*arguments: object) -> Result:
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, ["prune", "plan", *map(str, arguments)])


@pytest.mark.parametrize("name", ["mini-v2", "mini-v3"])
def test_a_structured_plan_needs_no_statistics(checkpoints: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "plans" / "odd.json"
    result = run("--model", name, "--criterion", "odd", "--keep", 32, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    plan, shape = PrunePlan.load(out), MoEShape.from_path(checkpoints / name)
    plan.check(shape, fingerprint(read_config(checkpoints / name), checkpoints / name))
    assert plan.layers == {layer: tuple(range(1, 64, 2)) for layer in shape.moe_layer_ids}
    assert plan.name == name
    assert {"versions", "command", "created"} == set(plan.provenance)
    assert report["plan"] == str(out)
    assert report["digest"] == plan.digest
    assert report["kept"] == {str(layer): 32 for layer in shape.moe_layer_ids}
    assert report["gate_mode"] == "shrink"
    expert = 3 * 192 * 48 * 2
    assert report["expert_bytes"] == {
        "full": 320 * expert,
        "kept": 160 * expert,
        "saved": 160 * expert,
        "share_saved": 0.5,
    }
    assert report["layer_bytes_saved"] == {str(layer): 32 * expert for layer in shape.moe_layer_ids}


def test_a_plan_from_statistics(statistics: Path, tmp_path: Path) -> None:
    out = tmp_path / "reap.json"
    result = run("--model", "mini-v3", "--statistics", statistics, "--criterion", "reap", "--keep", 16, "--out", out)
    assert result.exit_code == 0, result.output
    plan = PrunePlan.load(out)
    assert all({8 * group + layer for group in range(8)} <= set(kept) for layer, kept in plan.layers.items())
    record = plan.provenance["statistics"]
    assert (record["job"]["corpus"], record["tokens"], len(record["sha256"])) == ("c", 100, 64)
    table = " ".join(result.stdout.split())
    assert "16 of 64" in table
    assert "expert weights: 4.4 MB of 17.7 MB (75.0% saved) gate: shrink digest" in table
    assert str(out) in result.stdout


def test_a_global_budget_and_unequal_groups(checkpoints: Path, statistics: Path, tmp_path: Path) -> None:
    measured, out = tmp_path / "sensitivity.json", tmp_path / "plan.json"
    measured.write_text(json.dumps({"layers": {str(layer): {"32": 0.01 * layer} for layer in range(1, 6)}}))
    common = ["--model", "mini-v3", "--statistics", statistics, "--criterion", "soft", "--out", out]
    result = run(*common, "--keep", 33, "--global-budget", "--sensitivity", measured, "--unequal-groups")
    assert result.exit_code == 0, result.output
    plan = PrunePlan.load(out)
    counts = [len(kept) for kept in plan.layers.values()]
    assert sum(counts) == 5 * 33
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert plan.gate_mode(MoEShape.from_path(checkpoints / "mini-v3")) == "mask"


def test_the_seed_of_random(tmp_path: Path) -> None:
    plans = []
    for seed in (1, 1, 2):
        out = tmp_path / "random.json"
        result = run("--model", "mini-v2", "--criterion", "random", "--keep", 16, "--seed", seed, "--out", out)
        assert result.exit_code == 0, result.output
        plans.append(PrunePlan.load(out))
    assert plans[0].digest == plans[1].digest != plans[2].digest
    assert plans[2].method["seed"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--criterion", "best", "--keep", "32"], "criterion: got 'best', allowed: random, odd"),
        (["--criterion", "reap", "--keep", "32"], "--statistics: got None, allowed: a folder that moe-opt calibrate"),
        (["--criterion", "odd", "--keep", "12"], "keep: got 12, allowed: 16 to 64 in multiples of 8"),
        (["--criterion", "odd", "--keep", "65"], "keep: got 65, allowed: 16 to 64"),
        (["--criterion", "odd", "--keep", "32", "--global-budget"], "budget: spread over layers it needs"),
        (["--criterion", "odd", "--keep", "32", "--sensitivity", "s.json"], "only together with --global-budget"),
        (["--criterion", "soft", "--keep", "32", "--statistics", "/none"], "/none/statistics.json: No such file"),
    ],
)
def test_bad_input_is_one_line_and_no_file(tmp_path: Path, arguments: list[str], message: str) -> None:
    out = tmp_path / "plan.json"
    result = run("--model", "mini-v3", "--out", out, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_statistics_of_another_model(statistics: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = run("--model", "mini-v2", "--statistics", statistics, "--criterion", "soft", "--keep", 32, "--out", out)
    assert result.exit_code == 2
    assert "statistics: got" in result.stderr
    assert not out.exists()
