"""The wheel, as somebody else would get it: sdist -> wheel -> beside an SGLang -> uninstalled, byte for byte.

A second SGLang environment would be 11 GB. Here a fresh virtual environment gets a copy of the installed ``sglang``
folder with its metadata, which is all that could be changed, and a .pth file through which the dependencies of this
environment are found.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sglang_moe_opt import __version__
from sglang_moe_opt.patches import SourceTree
from tests.diffs import diff_of
from tests.test_patches import ROTARY

pytestmark = pytest.mark.slow

LARGEST_MB = 4
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


@dataclass(frozen=True)
class Venv:
    """A virtual environment with SGLang in it, and nothing of ours."""

    root: Path

    @property
    def site(self) -> Path:
        (found,) = (self.root / "lib").glob("python3*/site-packages")
        return found

    def run(self, *command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment, from a folder that is no checkout."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SGLANG", "PYTHON"))}
        path = str(self.root / "bin" / command[0])
        return subprocess.run(
            [path, *command[1:]], capture_output=True, text=True, cwd=self.root, env={**clean, **(env or {})}
        )

    def pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.root / "bin" / "python"), "-q", *arguments]
        done = subprocess.run([*command, "--disable-pip-version-check"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def digests(self) -> dict[str, str]:
        """Every file of the environment but bytecode."""
        files = (file for file in sorted(self.root.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
        return {str(f.relative_to(self.root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> tuple[Path, Path]:
    """The sdist of the tracked files, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("build")
    checkout, out = folder / "checkout", folder / "out"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=project_root, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0")[:-1]:
        if not name.startswith(("docs/", "tests/")) and (project_root / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(project_root / name, checkout / name)
    sdist = out / _build("build_sdist", checkout, out)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return sdist, out / _build("build_wheel", folder / sdist.name.removesuffix(".tar.gz"), out)


def _build(hook: str, where: Path, out: Path) -> str:
    done = subprocess.run([sys.executable, "-c", BUILD, hook, str(out)], cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Venv:
    root = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    made = Venv(root)
    installed = SourceTree.installed()
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(installed.root / "sglang", made.site / "sglang", ignore=without, symlinks=True)
    for info in installed.root.glob("sglang-*.dist-info"):
        shutil.copytree(info, made.site / info.name)
    (made.site / "dependencies.pth").write_text(f"{installed.root}\n")
    return made


def test_the_distributions_hold_what_is_needed_and_no_weights(distributions: tuple[Path, Path]) -> None:
    sdist, wheel = distributions
    assert max(sdist.stat().st_size, wheel.stat().st_size) < LARGEST_MB * 1e6
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    for held in (names, sources):
        assert not [name for name in held if name.endswith((".safetensors", ".npz", ".pyc"))]
        assert {"eval/tasks/boolq.yaml", "eval/grids/mini_v2.yaml", "eval/reference_models/mini_v2.yaml"} <= held
        assert {"sglang_moe_opt/default_policy.yaml", "sglang_moe_opt/compat/pinned.json"} <= held
        assert {"sglang_moe_opt/engine/cpu/native/kernels.h", "sglang_moe_opt/report/report.css"} <= held
    assert {"sglang_moe_opt/patch_files/series", "sglang_moe_opt/perfmodel/fitted/cpu.json"} <= names
    assert {"patches/series", "LICENSE", "README.md", "setup.py", "requirements.lock"} <= sources
    assert f"sglang_moe_opt-{__version__}.dist-info/licenses/LICENSE" in names


def test_every_data_file_of_the_packages_is_in_the_wheel(distributions: tuple[Path, Path], project_root: Path) -> None:
    """Also those of a folder that is new: a file that only a checkout has is noticed here, not by a user."""
    left_out = ("eval/reference_models/checkpoints/", "eval/reference_models/plans/", "eval/reference_models/runs/")
    listed = subprocess.run(
        ["git", "ls-files", "sglang_moe_opt", "eval", "loadtest"], cwd=project_root, capture_output=True, text=True
    )
    tracked = {name for name in listed.stdout.splitlines() if not name.startswith(left_out)}
    folders = {"patches": "sglang_moe_opt/patch_files", "deploy": "sglang_moe_opt/deploy_files"}
    for folder, packaged in folders.items():
        for file in (project_root / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                tracked.add(f"{packaged}/{file.relative_to(project_root / folder)}")
    with zipfile.ZipFile(distributions[1]) as archive:
        assert tracked - set(archive.namelist()) == set()


def test_beside_an_sglang_and_gone_again(distributions: tuple[Path, Path], venv: Venv, project_root: Path) -> None:
    before = venv.digests()
    venv.pip("install", "--no-deps", "--no-index", str(distributions[1]))
    installed = venv.digests()
    assert {name: installed.get(name) for name in before} == before

    done = venv.run("moe-opt", "--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"moe-opt {__version__}"), done.stderr
    checks = {row["name"]: row for row in json.loads(venv.run("moe-opt", "doctor", "--json").stdout)["checks"]}
    states = {name: checks[name]["state"] for name in ("sglang", "plugin", "patches", "hook targets", "mini model")}
    assert states == {"sglang": "ok", "plugin": "ok", "patches": "ok", "hook targets": "ok", "mini model": "warn"}
    for code in FOUND_FROM_THE_WHEEL:
        done = venv.run("python", "-c", code)
        assert done.returncode == 0, done.stderr
        assert str(project_root) not in done.stdout

    done = venv.run("moe-opt", "serve", "--model", "mini-v2", "--dry-run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("moe-opt: error: --model: mini-v2 is not in this installation (wheels carry no weights): ")
    checkpoints = project_root / "eval" / "reference_models" / "checkpoints"
    done = venv.run(
        "moe-opt", "serve", "--model", "mini-v2", "--dry-run", env={"SGLANG_MOE_OPT_MODELS": str(checkpoints)}
    )
    assert done.returncode == 0, done.stderr
    assert f"sglang serve --model-path {checkpoints / 'mini-v2'} " in done.stdout

    _patch_and_revert(venv, installed)
    assert venv.digests() == installed
    venv.pip("uninstall", "--yes", "sglang-moe-opt")
    assert venv.digests() == before


FOUND_FROM_THE_WHEEL: Sequence[str] = (
    "from eval.catalog import TASKS_DIR; print(sorted(TASKS_DIR.glob('*.yaml'))[0])",
    "from eval.schedules import GRIDS_DIR; print(sorted(GRIDS_DIR.glob('*.yaml'))[0])",
    "from sglang_moe_opt.engine.cpu import native; from pathlib import Path; "
    "print(sorted(Path(native.__file__).parent.glob('*.cpp'))[0])",
    "from sglang_moe_opt.policy import Policy; print(Policy.builtin().names)",
    "from sglang_moe_opt.compat.reliance import read_reliance; assert read_reliance().hooks",
)


def _patch_and_revert(venv: Venv, original: dict[str, str]) -> None:
    """The real series is empty, so one that changes a file is applied and taken back."""
    folder = venv.root / "series"
    folder.mkdir()
    content = (venv.site / ROTARY).read_bytes()
    (folder / "0001.patch").write_text(diff_of(ROTARY, content, content + b"\nPATCHED = True\n"))
    (folder / "series").write_text("0001.patch\n")
    (folder / "checksums.json").write_text('{"version": 1, "sglang": "0", "files": {}}')
    for action in ("record", "apply"):
        done = venv.run("moe-opt", "patch", action, "--patches", str(folder))
        assert done.returncode == 0, done.stderr
    changed = {name for name, digest in venv.digests().items() if original.get(name) != digest and "series" not in name}
    assert changed == {str((venv.site / ROTARY).relative_to(venv.root))}
    done = venv.run("moe-opt", "patch", "revert", "--patches", str(folder))
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder)
