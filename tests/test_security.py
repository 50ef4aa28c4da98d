"""Rules that hold for the whole code: nothing that comes from outside is ever run or unpickled."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("sglang_moe_opt", "eval", "loadtest", "tools")
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle"}
CALLS = {
    "eval": "runs text",
    "exec": "runs text",
    "yaml.load": "makes any object: use safe_load",
    "yaml.unsafe_load": "makes any object",
    "yaml.full_load": "makes many objects",
    "os.system": "goes through a shell",
    "os.popen": "goes through a shell",
    "tempfile.mktemp": "is a race",
}


def findings(source: str) -> Iterator[str]:
    """What a module must not do, with the line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"{node.lineno}: imports {a.name}" for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"{node.lineno}: imports {node.module}"
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS:
                yield f"{node.lineno}: {name} {CALLS[name]}"
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name == "torch.load" and given.get("weights_only") != "True":
                yield f"{node.lineno}: torch.load without weights_only=True unpickles"
            if given.get("allow_pickle", "False") != "False":
                yield f"{node.lineno}: {name} with allow_pickle"
            if given.get("shell", "False") != "False":
                yield f"{node.lineno}: {name} goes through a shell"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_from_outside_is_run_or_unpickled(project_root: Path, package: str) -> None:
    files = sorted((project_root / package).rglob("*.py"))
    assert files
    found = [f"{file}:{what}" for file in files for what in findings(file.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import dill.source",
        "eval(x)",
        "yaml.load(x, Loader=L)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "subprocess.run(c, shell=True)",
        "os.system(c)",
    ],
)
def test_each_rule_sees_what_it_is_for(source: str) -> None:
    assert len(list(findings(source))) == 1


def test_what_is_allowed_is_not_found() -> None:
    source = "model.eval()\nyaml.safe_load(x)\ntorch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)\n"
    assert list(findings(source + "subprocess.run([c])")) == []
