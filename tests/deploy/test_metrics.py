"""The dashboard and the alerts ask for metrics that exist: ours by the code that makes them, SGLang's by its source."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

SUFFIXES = {"Counter": ("_total",), "Total": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}
"""What a collector is called where it is made -> how its samples end."""


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield (node.func.id if isinstance(node.func, ast.Name) else node.func.attr), node


def exported(root: Path) -> dict[str, frozenset[str]]:
    """Sample name -> labels, of every collector that the package makes."""
    found = {}
    for file in (root / "sglang_moe_opt").rglob("*.py"):
        for name, call in calls(file):
            if name not in SUFFIXES or not call.args or not isinstance(call.args[0], ast.Constant):
                continue
            labels = ast.unparse(call.args[2]) if len(call.args) > 2 else "()"
            known = frozenset(re.findall(r"'(\w+)'", labels)) or frozenset(
                {"profile", "level"} if labels == "level" else ()
            )
            found |= {f"{call.args[0].value}{suffix}": known for suffix in SUFFIXES[name]}
    return found


def expressions(root: Path) -> list[str]:
    dashboard = json.loads((root / "deploy/grafana/moe-opt.json").read_text())
    alerts = yaml.safe_load((root / "deploy/prometheus/alerts.yml").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return asked + [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]


def test_every_metric_of_ours_is_exported(project_root: Path) -> None:
    known = exported(project_root)
    assert len(known) >= 13
    used = {name for text in expressions(project_root) for name in re.findall(r"\bsglang_moe_opt_\w+", text)}
    assert used <= set(known), f"not exported: {sorted(used - set(known))}"
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    assert shown == {re.sub(r"_(bucket|sum|count)$", "", name) for name in known}, "a metric that nobody sees"


def test_labels_are_those_of_the_metrics(project_root: Path) -> None:
    known = exported(project_root)
    scraped = {"instance", "job", "le"}
    for text in expressions(project_root):
        selected = re.findall(r"\b(sglang_moe_opt_\w+)(?:\{([^}]*)\})?", text)
        for name, selector in selected:
            assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)", selector)) <= known[name] | scraped, text
        grouped = {label for by in re.findall(r"by \(([^)]*)\)", text) for label in by.split(", ")}
        assert grouped <= scraped.union(*(known[name] for name, _ in selected)), text


def test_docs_list_every_metric(project_root: Path) -> None:
    page = (project_root / "docs/policy.md").read_text()
    listed = set(re.findall(r"^\| `(sglang_moe_opt_\w+)`", page, re.MULTILINE))
    assert listed == {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported(project_root)}


def test_metrics_of_sglang_exist_in_its_source(project_root: Path) -> None:
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("SGLang is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "srt/observability"
    source = "".join(file.read_text() for file in folder.rglob("*.py"))
    used = {name for text in expressions(project_root) for name in re.findall(r"sglang:\w+", text)}
    assert len(used) >= 5
    for name in used:
        assert f'"{re.sub("_(bucket|sum|count)$", "", name)}"' in source, name


def test_dashboard_has_what_grafana_needs(project_root: Path) -> None:
    dashboard = json.loads((project_root / "deploy/grafana/moe-opt.json").read_text())
    panels = dashboard["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24, panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")"), target["expr"]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) - {"__rate_interval"}
    assert used == variables
