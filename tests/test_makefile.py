"""The Makefile, the installer and .ci/run: what they say before and instead of installing 11 GB."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TARGETS = ["help", "install", "serve", "demo", "test", "lint", "docs", "tables", "loadtest", "eval", "bench"]
TARGETS += ["reproduce", "gpu-check", "audit", "lock", "clean"]


def call(root: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # A `make test` above would hand its own variables down.
    kept = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VENV", "PYTHON")}
    return subprocess.run(command, cwd=root, env={**kept, **environment}, capture_output=True, text=True)


def install(root: Path, venv: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return call(root, "tools/install.sh", VENV=str(venv), **environment)


def only_error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_help_is_the_default_and_lists_every_target(project_root: Path) -> None:
    done = call(project_root, "make")
    assert done.returncode == 0
    assert set(TARGETS) == set(re.findall(r"^  ([a-z-]+) ", done.stdout, re.MULTILINE))
    assert done.stdout == call(project_root, "make", "help").stdout
    phony = re.search(r"^\.PHONY: (.*)$", (project_root / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == set(TARGETS)


def test_serve_passes_its_variables(project_root: Path) -> None:
    default = call(project_root, "make", "-n", "serve").stdout
    assert '--model "mini-v2" --port "30000"' in default
    assert "--config" not in default
    asked = call(project_root, "make", "-n", "serve", "MODEL=a b", "PORT=1", "CONFIG=p.yaml").stdout
    assert 'serve --model "a b" --port "1" --config "p.yaml"' in asked


def test_install_refuses_another_platform(project_root: Path, tmp_path: Path) -> None:
    line = only_error(install(project_root, tmp_path / "venv", MOE_OPT_PLATFORM="Darwin arm64"))
    assert "Linux x86_64" in line
    assert "Darwin arm64" in line
    assert not (tmp_path / "venv").exists()


def test_install_refuses_a_small_disk(project_root: Path, tmp_path: Path) -> None:
    line = only_error(install(project_root, tmp_path / "deep" / "venv", MOE_OPT_FREE_GB="13"))
    assert f"needs 14 GB free at {tmp_path}" in line
    assert "13 GB are free" in line
    assert not (tmp_path / "deep").exists()


def test_install_refuses_an_old_python(project_root: Path, tmp_path: Path) -> None:
    old = script(tmp_path / "old python", '#!/bin/sh\necho "is Python 3.10" >&2\nexit 1\n')
    line = only_error(install(project_root, tmp_path / "venv", PYTHON=str(old)))
    assert "needs Python 3.11, 3.12 or 3.13 with the venv module" in line
    assert f"{old} is Python 3.10" in line
    assert "no-such-python" in only_error(install(project_root, tmp_path / "venv", PYTHON="no-such-python"))


def test_python_without_venv_and_broken_shims_are_told_apart(project_root: Path, tmp_path: Path) -> None:
    script(tmp_path / "python3.11", "#!/bin/sh\necho 'has no venv module (on Debian: apt-get install x)' >&2\nexit 1\n")
    script(tmp_path / "python3.12", "#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n")
    for tool in ("env", "bash"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    line = only_error(call(project_root, "tools/find_python.sh", PATH=str(tmp_path)))
    assert "found: python3.11 has no venv module (on Debian: apt-get install x);python3.12 does not start" in line
    (tmp_path / "python3.13").symlink_to(sys.executable)
    found = call(project_root, "tools/find_python.sh", PATH=str(tmp_path))
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).exists()


def test_install_leaves_a_folder_alone_that_is_no_environment(project_root: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    line = only_error(install(project_root, tmp_path))
    assert "is not a virtual environment" in line
    assert (tmp_path / "precious").read_text() == "data"


def test_lock_names_no_host_and_no_path_of_a_machine(project_root: Path) -> None:
    for line in (project_root / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9._-]+==[^ ]+( ; .*)?", line), line
        assert "://" not in line
    assert (project_root / "requirements.lock").read_text().splitlines()[1].strip() == "#    make lock"


@pytest.mark.parametrize("name", ["tools/install.sh", "tools/find_python.sh", ".ci/run"])
def test_scripts_are_executable_and_strict(project_root: Path, name: str) -> None:
    path = project_root / name
    assert os.access(path, os.X_OK)
    assert "\nset -euo pipefail\n" in path.read_text()
    assert call(project_root, "bash", "-n", name).returncode == 0


def test_ci_keeps_this_environment_and_one_more(project_root: Path, tmp_path: Path) -> None:
    """With `make` replaced, .ci/run only prepares: it must prune the old environments and name the new one."""
    clone, cache, tools = tmp_path / "main", tmp_path / "cache", tmp_path / "bin"
    for name in ("tools", ".ci"):
        shutil.copytree(project_root / name, clone / name)
    shutil.copy(project_root / "requirements.lock", clone)
    (tmp_path / "shared" / "data").mkdir(parents=True)
    for age, name in enumerate(["newest", "older", "oldest"]):
        (cache / name / "venv").mkdir(parents=True)
        os.utime(cache / name, (1_700_000_000 - age, 1_700_000_000 - age))
    tools.mkdir()
    script(tools / "make", '#!/bin/sh\necho "$@" "DATA=$SGLANG_MOE_OPT_DATA" >>"$LOG"\n')
    log = tmp_path / "log"
    path = f"{tools}:{os.environ['PATH']}"
    for _ in range(2):
        done = call(
            clone,
            "bash",
            ".ci/run",
            PATH=path,
            LOG=str(log),
            SGLANG_MOE_OPT_CI_CACHE=str(cache),
            SGLANG_MOE_OPT_DATA="",
        )
        assert done.returncode == 0, done.stderr
    folders = sorted(folder.name for folder in cache.iterdir() if folder.is_dir())
    assert len(folders) == 2
    assert "newest" in folders
    key = next(name for name in folders if name != "newest")
    calls = log.read_text().splitlines()
    assert [line.split()[0] for line in calls] == ["install", "lint", "test"] * 2
    assert all(f"VENV={cache}/{key}/venv" in line for line in calls)
    assert all(line.endswith(f"DATA={tmp_path}/shared/data") for line in calls)


@pytest.fixture(scope="module")
def run_tests() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "tools" / "run_tests.py"
    spec = importlib.util.spec_from_file_location("run_tests", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_tests"] = module
    spec.loader.exec_module(module)
    return module


def test_summary_adds_all_parts(run_tests: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text('<testsuites><testsuite tests="7" failures="1" errors="1" skipped="2"/></testsuites>')
    first = run_tests.read_report(report, 1)
    assert str(first) == "3 passed, 2 failed, 2 skipped"
    none = run_tests.read_report(tmp_path / "absent.xml", 5)
    assert (str(none), none.ok) == ("0 passed, 0 failed, 0 skipped", True)
    crashed = run_tests.read_report(tmp_path / "absent.xml", 3)
    assert (str(crashed), crashed.ok) == ("0 passed, 1 failed, 0 skipped", False)
    assert (first + none).exit_code == 1
    assert (none + crashed).exit_code == 3
    assert (run_tests.Outcome(0, 4) + none).ok


@pytest.mark.parametrize("part", ["server", "timed"])
def test_the_tests_of_a_part_are_where_it_looks_for_them(run_tests: ModuleType, project_root: Path, part: str) -> None:
    marked = {file for file in (project_root / "tests").rglob("*.py") if f"pytest.mark.{part}" in file.read_text()}
    elsewhere = [
        file
        for file in marked - {Path(__file__).resolve()}
        if not any(file.is_relative_to(project_root / folder) for folder in run_tests.FOLDERS[part])
    ]
    assert marked and elsewhere == []


def test_one_failing_test_fails_the_whole(tmp_path: Path, project_root: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    server: x\n    timed: x\n    gpu: x\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_unit(): ...\n"
        "@pytest.mark.server\ndef test_server(): assert 0\n"
        "late = [1, 1]\n"
        "@pytest.mark.timed\ndef test_timed(): assert not late or late.pop() is None\n"
        "@pytest.mark.gpu\ndef test_gpu(): assert 0\n"
    )
    plugins = ["-p", "xdist", "-p", "pytest_rerunfailures"]
    command = [sys.executable, str(project_root / "tools" / "run_tests.py"), "-q", *plugins]
    quick = {
        "PYTEST_WORKERS": "0",
        "PYTEST_SERVER_WORKERS": "0",
        "PYTEST_ADDOPTS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    done = call(tmp_path, *command, **quick)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "2 passed, 1 failed, 0 skipped"
    assert re.findall(r"\d rerun\b", done.stdout) == ["2 rerun"], "only where times count"
    done = call(tmp_path, *command, "-k", "unit", **quick)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "1 passed, 0 failed, 0 skipped"
    assert call(tmp_path, *command, "-k", "nothing", **quick).returncode == 5


def test_a_group_of_tests_runs_in_one_process(tmp_path: Path) -> None:
    """What keeps a server from being started in both; a pytest that pytest-xdist does not fit loses it silently."""
    (tmp_path / "test_it.py").write_text(
        "import os\nfrom pathlib import Path\nimport pytest\n"
        "grouped = [pytest.param(n, marks=pytest.mark.xdist_group(n % 2)) for n in range(12)]\n"
        "@pytest.mark.parametrize('number', grouped)\ndef test_one(number):\n"
        "    with Path('seen').open('a') as seen:\n"
        "        print(number % 2, os.environ['PYTEST_XDIST_WORKER'], file=seen)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-p", "xdist"]
    done = call(tmp_path, *command, PYTEST_ADDOPTS="", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.returncode == 0, done.stdout
    assert len(set((tmp_path / "seen").read_text().splitlines())) == 2
