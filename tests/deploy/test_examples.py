"""The deployment examples fit this project: versions, paths, flags, ports, and one policy in all of them."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from sglang_moe_opt.policy import Policy

KEYS = {
    "ConfigMap": {"apiVersion", "kind", "metadata", "data"},
    "PersistentVolumeClaim": {"apiVersion", "kind", "metadata", "spec"},
    "Deployment": {"apiVersion", "kind", "metadata", "spec"},
    "Service": {"apiVersion", "kind", "metadata", "spec"},
}


@pytest.fixture(scope="module")
def project(project_root: Path) -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]
    return content


@pytest.fixture(scope="module")
def manifests(project_root: Path) -> dict[str, Any]:
    documents = list(yaml.safe_load_all((project_root / "deploy/kubernetes/moe-opt.yaml").read_text()))
    for document in documents:
        assert set(document) == KEYS[document["kind"]]
    assert len({document["kind"] for document in documents}) == len(documents)
    return {document["kind"]: document for document in documents}


def instructions(project_root: Path) -> list[tuple[str, str]]:
    text = (project_root / "deploy/docker/Dockerfile").read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]  # type: ignore[misc]


def test_policies_are_one_and_valid(project_root: Path, manifests: dict[str, Any]) -> None:
    text = (project_root / "deploy/policy.yaml").read_text()
    policy = Policy.load(project_root / "deploy/policy.yaml")
    assert {"balanced", "fast", "adaptive"} <= set(policy.names)
    assert yaml.safe_load(manifests["ConfigMap"]["data"]["policy.yaml"]) == yaml.safe_load(text)


def test_dockerfile_is_of_the_pinned_version(project_root: Path, project: dict[str, Any]) -> None:
    steps = instructions(project_root)
    (pin,) = [name.split("==")[1] for name in project["dependencies"] if name.startswith("sglang==")]
    assert steps[0] == ("FROM", f"lmsysorg/sglang:v{pin}")
    known = {"FROM", "ARG", "COPY", "RUN", "USER", "WORKDIR", "ENV", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in steps} <= known
    assert ("ARG", f"WHEEL=sglang_moe_opt-{project['version']}-py3-none-any.whl") in steps
    names = [name for name, _ in steps]
    assert dict(steps)["USER"] not in ("root", "0")
    assert names.index("USER") > max(index for index, name in enumerate(names) if name in ("RUN", "COPY"))
    entry = yaml.safe_load(dict(steps)["ENTRYPOINT"])
    assert entry[:2] == ["moe-opt", "serve"]
    copied = [value.split() for name, value in steps if name == "COPY"]
    assert [entry[entry.index("--config") + 1]] == [
        target for source, target in copied if source == "deploy/policy.yaml"
    ]
    assert all((project_root / source).exists() for source, _ in copied if not source.startswith("dist/"))


def test_compose_mounts_what_is_there(project_root: Path, project: dict[str, Any]) -> None:
    folder = project_root / "deploy/docker"
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    assert set(compose) == {"name", "services", "volumes"}
    used = set()
    for name, service in compose["services"].items():
        image, _, tag = service["image"].partition(":")
        assert image and tag and tag != "latest", name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (folder / source).exists(), volume
            else:
                used.add(source)
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "open to the network"
    assert used == set(compose["volumes"])
    server = compose["services"]["server"]
    assert server["image"] == f"sglang-moe-opt:{project['version']}"
    assert (folder / server["build"]["context"] / server["build"]["dockerfile"]).exists()
    scrape = yaml.safe_load((project_root / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"][0]
    host, port = scrape["static_configs"][0]["targets"][0].split(":")
    assert host in compose["services"] and server["ports"][0].endswith(f":{port}")


def test_kubernetes_objects_refer_to_each_other(manifests: dict[str, Any], project: dict[str, Any]) -> None:
    spec = manifests["Deployment"]["spec"]
    labels, pod = spec["template"]["metadata"]["labels"], spec["template"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert manifests["Service"]["spec"]["selector"].items() <= labels.items()
    (container,) = pod["containers"]
    assert container["image"] == f"sglang-moe-opt:{project['version']}"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert all(probe["port"] in ports and probe["path"] == "/health" for probe in probes)
    assert manifests["Service"]["spec"]["ports"][0]["targetPort"] in ports
    assert spec["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(ports["http"])
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["policy"]["configMap"]["name"] == manifests["ConfigMap"]["metadata"]["name"]
    claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
    assert claim == manifests["PersistentVolumeClaim"]["metadata"]["name"]
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert requests["nvidia.com/gpu"] == limits["nvidia.com/gpu"], "GPUs cannot be overcommitted"


def test_systemd_unit_stops_at_bad_input(project_root: Path) -> None:
    folder = project_root / "deploy/systemd"
    unit = (folder / "moe-opt.service").read_text().replace("\\\n", " ")
    (start,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    given = dict(line.split("=", 1) for line in (folder / "server.env").read_text().splitlines() if line[:1].isalpha())
    assert set(re.findall(r"\$\{?(\w+)\}?", start)) == set(given)
    assert shlex.split(start)[1] == "serve"
    assert "\nRestartPreventExitStatus=2\n" in unit  # what `moe-opt` exits with on bad input


@pytest.mark.parametrize("name", ["multi-node/launch.sh", "locust/run.sh"])
def test_scripts_are_strict_and_name_what_is_missing(project_root: Path, name: str) -> None:
    path = project_root / "deploy" / name
    assert os.access(path, os.X_OK)
    assert "\nset -euo pipefail\n" in path.read_text()
    kept = {"PATH": os.environ["PATH"], "LOCUST": "true", "ROLE": "master"}
    done = subprocess.run([path], env=kept, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(r"(HEAD: the address of the node with rank 0|URL: the server)", done.stderr)


def test_multi_node_flags_are_sglangs(project_root: Path, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("SGLang is not installed")
    fields = Path(spec.submodule_search_locations[0]) / "srt/arg_groups/fields"
    source = "".join(file.read_text() for file in fields.glob("*.py"))
    told = tmp_path / "moe-opt"
    told.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    told.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HEAD": "10.0.0.1", "NODES": "2", "RANK": "1"}
    script = project_root / "deploy/multi-node/launch.sh"
    done = subprocess.run([script, "--log-level", "info"], env=env, capture_output=True, text=True, check=True)
    words = done.stdout.split()
    flags = [word for word in words if word.startswith("--")]
    assert words[words.index("--tp") + 1] == "16"
    assert words[words.index("--dist-init-addr") + 1] == "10.0.0.1:20000"
    for flag in set(flags) - {"--config"}:  # ours
        name = {"--model": "model_path", "--tp": "tp_size"}.get(flag, flag[2:].replace("-", "_"))
        assert re.search(rf"^    {name}: ", source, re.MULTILINE), flag
