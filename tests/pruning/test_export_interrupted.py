"""Exports that are interrupted, that meet a full disk or each other, and the memory they take."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_moe_opt.pruning.export import Export, ExportError

pytest.importorskip("torch")
from export_models import CONFIG, UNIFORM, expected, load, make_model, make_plan, same, shard


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "full")


@pytest.fixture
def plan(model: Path, tmp_path: Path) -> Path:
    return make_plan(model, UNIFORM, tmp_path / "plan.json")


def interrupt_after(export: Export, shards: int) -> None:
    """Press Ctrl-C within the shard after that many."""

    def advance(_: int) -> None:
        if len(export.staging.finished) == shards:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        export.write(advance)


def test_an_interrupted_export_goes_on(model: Path, plan: Path, tmp_path: Path) -> None:
    out, staging = tmp_path / "out", tmp_path / ".out.partial"
    interrupt_after(Export.prepare(model, plan, out, max_shard_bytes=10_000), 2)
    assert not out.exists()
    finished = sorted(staging.glob("*.safetensors"))
    assert [file.name[:11] for file in finished] == ["model-00001", "model-00002"]
    assert {path.name for path in staging.iterdir()} == {*(file.name for file in finished), ".export.json"}
    finished[0].write_bytes(finished[0].read_bytes()[:-1] + b"x")  # a bit that the disk lost
    written = finished[1].stat().st_mtime_ns

    with pytest.raises(ValueError, match=r"unfinished export with other arguments \(max_shard_size\)"):
        Export.prepare(model, plan, out, max_shard_bytes=20_000)
    other = make_plan(model, {1: (0, 1, 6, 7), 2: (0, 1, 6, 7)}, tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"unfinished export with other arguments \(plan\)"):
        Export.prepare(model, other, out, max_shard_bytes=10_000)

    export = Export.prepare(model, plan, out, max_shard_bytes=10_000)
    moved: list[int] = []
    export.write(moved.append)
    assert sum(moved) == export.nbytes
    assert (out / finished[1].name).stat().st_mtime_ns == written  # verified and kept; the first was written again
    assert same(load(out), expected(load(model), UNIFORM, renumbered=True))
    assert not staging.exists()


def test_interrupted_in_the_first_shard_nothing_is_left(model: Path, plan: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    interrupt_after(Export.prepare(model, plan, tmp_path / "out", max_shard_bytes=10_000), 0)
    assert sorted(tmp_path.iterdir()) == before


def test_remains_that_cannot_be_read(model: Path, plan: Path, tmp_path: Path) -> None:
    interrupt_after(Export.prepare(model, plan, tmp_path / "out", max_shard_bytes=10_000), 1)
    (tmp_path / ".out.partial" / ".export.json").write_text("{")
    with pytest.raises(ValueError, match=r"\.out\.partial: unreadable remains of an export; delete it"):
        Export.prepare(model, plan, tmp_path / "out", max_shard_bytes=10_000)


def test_two_at_a_time(model: Path, plan: Path, tmp_path: Path) -> None:
    first = Export.prepare(model, plan, tmp_path / "out", max_shard_bytes=10_000)
    second = Export.prepare(model, plan, tmp_path / "out", max_shard_bytes=10_000)

    def advance(_: int) -> None:
        with pytest.raises(ValueError, match="another export is writing there"):
            second.write()

    first.write(advance)
    assert same(load(tmp_path / "out"), expected(load(model), UNIFORM, renumbered=True))
    with pytest.raises(ValueError, match="holds something already"):
        second.write()


def test_a_source_that_vanishes(model: Path, plan: Path, tmp_path: Path) -> None:
    export = Export.prepare(model, plan, tmp_path / "out", max_shard_bytes=10_000)
    shard(model, 4).unlink()
    with pytest.raises(ExportError, match=r"model-00005-of-00005\.safetensors: No such file .*nothing is at .*/out, "):
        export.write()
    assert not (tmp_path / "out").exists()


# --- a full disk ---

LIMITED = """
import resource, sys
from sglang_moe_opt.cli.main import run
if sys.argv[1] != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(run(sys.argv[2:]))
"""


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """The system refuses a write in the second shard, as it does when the disk is full."""
    config = CONFIG | {"intermediate_size": 20_000}  # 1.28 MB a matrix of the dense layer
    model = make_model(tmp_path / "full", config)
    plan, out, staging = make_plan(model, UNIFORM, tmp_path / "plan.json"), tmp_path / "out", tmp_path / ".out.partial"
    options = ["--model", str(model), "--plan", str(plan), "--out", str(out), "--max-shard-size", "100KB"]

    def export(limit: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LIMITED, str(limit), "prune", "export", *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    result = export(1_000_000)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"moe-opt: error: {staging}: File too large; nothing is at {out}, "
        f"1 of 10 shards are kept in {staging}: the same command goes on from there\n"
    )
    assert not out.exists()
    assert {path.name for path in staging.iterdir()} == {"model-00001-of-00010.safetensors", ".export.json"}

    result = export(0)
    assert (result.returncode, result.stdout) == (0, f"{out}\n"), result.stderr
    assert same(load(out), expected(load(model), UNIFORM, renumbered=True))


# --- memory ---

MEASURED = """
import sys
from pathlib import Path
from sglang_moe_opt.pruning.export import Export

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

export = Export.prepare(*map(Path, sys.argv[1:]), max_shard_bytes=50_000_000)
before = peak()
export.write()
assert "torch" not in sys.modules
print(len(export.shards), max(sum(t.nbytes for t in shard) for shard in export.shards.values()), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_is_a_buffer_not_a_shard(tmp_path: Path) -> None:
    config = CONFIG | {"hidden_size": 512, "moe_intermediate_size": 1024, "intermediate_size": 2048}
    model = make_model(tmp_path / "full", config)  # two MoE layers of 50 MB
    plan = make_plan(model, {1: (0, 1, 2, 4, 5, 6), 2: (0, 1, 2, 4, 5, 6)}, tmp_path / "plan.json")
    command = [sys.executable, "-c", MEASURED, str(model), str(plan), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    shards, largest, grown_kib = map(int, result.stdout.split())
    assert shards > 1 and largest > 40_000_000
    assert grown_kib * 1024 < 16_000_000
