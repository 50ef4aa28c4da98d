"""Every format of a comparison, and that they are functions of the run's files alone."""

from __future__ import annotations

import csv
import json
import re
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from eval.compare import Comparison, compare
from eval.outputs import console, write_all
from eval.outputs.html import page
from eval.outputs.json import summary
from eval.outputs.kept import experts, method_name, series
from eval.outputs.markdown import table
from eval.outputs.notes import headlines, notes
from eval.results import ResultsFolder
from tests.eval.synthetic_run import FEW_SCHEDULES, PLAN_SCHEDULES, PLANS, TASKS, write_run

FILES = {
    "summary.json",
    "summary.csv",
    "summary.md",
    "report.html",
    "accuracy_vs_mean_na.png",
    "bits_per_byte_vs_mean_na.png",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ResultsFolder:
    return write_run(tmp_path_factory.mktemp("run") / "mini", flips=0.005)


@pytest.fixture(scope="module")
def comparison(run: ResultsFolder) -> Comparison:
    return compare([run.root])


def test_files_are_complete_and_the_same_every_time(comparison: Comparison, tmp_path: Path) -> None:
    written = write_all(comparison, tmp_path / "one")
    assert {path.name for path in written} == FILES | {"per_task.png"}
    write_all(comparison, tmp_path / "two")
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert min(image.size) > 300
        else:
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_summary_json_has_what_a_table_needs(comparison: Comparison) -> None:
    found = json.loads(json.dumps(summary(comparison), allow_nan=False))
    assert (found["format"], found["version"]) == ("moe-opt-eval-summary", 1)
    assert found["baseline"] == "full"
    by_label = {schedule["label"]: schedule for schedule in found["schedules"]}
    assert set(by_label) == set(FEW_SCHEDULES)
    assert by_label["full"]["average"]["change"] is None
    for name in ("average", "bits_per_byte"):
        measured = by_label["na=2"][name]
        assert measured["interval_95"][0] < measured["value"] < measured["interval_95"][1]
        change = measured["change"]
        assert change["interval_95"][0] <= change["value"] <= change["interval_95"][1]
        assert change["verdict"].startswith("loss of")
    assert set(by_label["na=2"]["tasks"]) == set(TASKS)
    assert by_label["na=2"]["metrics"]["arc_easy"].keys() == {"acc"}
    assert by_label["adaptive"]["mean_na_is_bound"]
    assert found["runs"][0]["versions"]["sglang"] == "0.5.23"


def test_summary_csv_has_a_line_per_schedule_and_measure(comparison: Comparison, tmp_path: Path) -> None:
    write_all(comparison, tmp_path)
    lines = list(csv.DictReader(StringIO((tmp_path / "summary.csv").read_text())))
    measures = {"average", *TASKS}
    assert {(line["schedule"], line["measure"]) for line in lines} == {(s, m) for s in FEW_SCHEDULES for m in measures}
    assert len(lines) == len(FEW_SCHEDULES) * len(measures)
    found = next(line for line in lines if line["schedule"] == "na=1" and line["measure"] == "average")
    assert float(found["low_95"]) < float(found["value"]) < float(found["high_95"])
    assert found["verdict"].startswith("loss of")


def test_the_terminal_shows_every_schedule_and_verdict(comparison: Comparison) -> None:
    output = StringIO()
    console.show(comparison, Console(file=output, width=160))
    for label in FEW_SCHEDULES:
        assert label in output.getvalue()
    assert "loss of 15" in output.getvalue()
    assert "≤ 6.00" in output.getvalue()


def test_the_page_needs_nothing_from_elsewhere_and_escapes_names(comparison: Comparison) -> None:
    text = page(comparison)
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", text)
    assert "mini-v2 &lt;test&gt;" in text
    assert "mini-v2 <test>" not in text
    assert "a CPU &amp; more" in text


def test_headlines_name_the_cheapest_schedule(comparison: Comparison) -> None:
    average, bits = headlines(comparison)
    assert average.startswith("Less than 1 point of average score lost, with 95 % confidence: ")
    assert bits.startswith(
        "Less than 1 % of bits per byte lost, with 95 % confidence: na=4 (mean na 4 of 6): loss of 0.5"
    )


def test_notes_say_what_weakens_the_result(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", tasks=("rte", "bits_per_byte"))
    manifest = folder.read_manifest()
    cut = [task.model_copy(update={"total": 3000, "chance": 0.99 if task.chance else None}) for task in manifest.tasks]
    folder.write_manifest(manifest.model_copy(update={"tasks": cut}))
    folder.items_file("na=2", "rte").unlink()
    text = "\n".join(notes(compare([folder.root])))
    assert "Left out: na=2: a has no complete rte." in text
    assert "not better than guessing on rte" in text
    assert "The average is over 1 tasks (rte), not the paper's 6." in text
    assert "rte 277 of 3000" in text
    assert "Holm" in text
    assert "upper bound" in text
    assert "ran once" in text


def test_one_schedule_alone_can_be_reported(tmp_path: Path) -> None:
    comparison = compare([write_run(tmp_path / "a", {"full": "full"}, ("rte", "bits_per_byte")).root])
    assert headlines(comparison) == []
    assert {path.name for path in write_all(comparison, tmp_path / "out")} == FILES | {"per_task.png"}


def test_the_markdown_table_has_every_schedule_and_task(comparison: Comparison) -> None:
    lines = table(comparison)
    columns = {line.count("|") for line in lines}
    assert len(columns) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == [row.label for row in comparison.rows]
    heads = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    assert heads == [
        "schedule",
        "layers",
        "mean na",
        "average",
        "bits/byte",
        *(n for n in TASKS if n != "bits_per_byte"),
    ]
    row = comparison.rows[1]
    difference = row.average.change.difference
    assert f"{row.average.estimate.value:.1f} ({difference.interval.low:+.1f} to" in lines[3]


# --- plans ---

KEPT_FILES = {"accuracy_vs_experts_kept.png", "bits_per_byte_vs_experts_kept.png"}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare([write_run(tmp_path_factory.mktemp("pruned"), PLAN_SCHEDULES, plans=PLANS).root])


def test_pages_without_plans_do_not_speak_of_them(comparison: Comparison) -> None:
    output = StringIO()
    console.show(comparison, Console(file=output, width=160))
    for text in (output.getvalue(), page(comparison), "\n".join(table(comparison)), "\n".join(headlines(comparison))):
        assert "experts kept" not in text
        assert "memory" not in text
    assert experts(comparison, comparison.rows[0]) is None
    assert series(comparison, "average") == []


def test_methods_are_told_apart_and_amounts_are_not() -> None:
    names = [method_name(plan) for plan in PLANS]
    assert names == ["reap", "reap", "reap + average by output"]
    more = {"criterion": "soft", "budget": "global", "compensate": "least squares", "keep": 3}
    assert method_name(PLANS[0].model_copy(update={"method": more})) == "soft, global budget + least squares"
    assert method_name(PLANS[0].model_copy(update={"method": {"seed": 1}})) == "reap-48"


def test_a_series_runs_to_the_whole_model_under_the_same_schedule(pruned: Comparison) -> None:
    found = {one.name: one for one in series(pruned, "bits_per_byte")}
    assert list(found) == ["reap", "reap/na=4", "reap + average by output", "reap + average by output/na=4"]
    assert [(p.x, p.row.label) for p in found["reap"].points] == [(25, "reap-16"), (75, "reap-48"), (100, "full")]
    assert found["reap/na=4"].points[-1].row.label == "na=4"
    assert len({one.number for one in found.values()}) == 4


def test_every_format_has_experts_and_memory(pruned: Comparison, tmp_path: Path) -> None:
    written = {path.name for path in write_all(pruned, tmp_path)}
    assert written == FILES | {"per_task.png"} | KEPT_FILES
    output = StringIO()
    console.show(pruned, Console(file=output, width=180))
    html = (tmp_path / "report.html").read_text()
    for text in (output.getvalue(), (tmp_path / "summary.md").read_text(), html):
        assert "8 schedules, 3 prune plans" in text
        assert "experts kept" in text
        assert "16 of 64" in text
        assert "expert MB" in text
        assert "in the least memory: reap-48 (75 % of the experts' weights)" in text.replace("&#x27;", "'")
    assert "merged &lt;16&gt;" in html
    assert "merged <16>" not in html
    assert html.count('class="plot wide"') == 4
    lines = list(csv.DictReader(StringIO((tmp_path / "summary.csv").read_text())))
    by_label = {line["schedule"]: line for line in lines}
    columns = [by_label["reap-48/na=4"][key] for key in ("plan", "method", "experts_kept", "experts")]
    assert columns == ["reap-48", "reap", "48.0", "64"]
    assert float(by_label["full"]["expert_megabytes"]) == 0.448
    found = json.loads((tmp_path / "summary.json").read_text())
    plans = {schedule["label"]: schedule["plan"] for schedule in found["schedules"]}
    assert plans["full"] is None
    assert (plans["reap-16"]["mean_kept"], plans["reap-16"]["method"]) == (16, {"criterion": "reap", "keep": 16})
    assert (found["fewest_experts"]["bits_per_byte"], found["least_memory"]["bits_per_byte"]) == ("na=4", "reap-48")


def test_plans_alone_leave_nothing_to_draw_against_mean_na(tmp_path: Path) -> None:
    comparison = compare([write_run(tmp_path / "a", {"full": "full"}, plans=PLANS).root])
    files = {path.name for path in write_all(comparison, tmp_path / "out")}
    assert files == {"summary.json", "summary.csv", "summary.md", "report.html"} | KEPT_FILES
    assert all("in the least memory" in line for line in headlines(comparison))
    html = (tmp_path / "out" / "report.html").read_text()
    assert "against mean na" not in html
    assert "Pareto front</li>" not in html


def test_one_pruned_model_alone_is_drawn_like_a_whole_one(tmp_path: Path) -> None:
    comparison = compare([write_run(tmp_path / "a", PLAN_SCHEDULES, plans=PLANS[:1], whole=False).root])
    files = {path.name for path in write_all(comparison, tmp_path / "out")}
    assert files == FILES | {"per_task.png"}
    assert "48 of 64" in (tmp_path / "out" / "report.html").read_text()


def test_a_page_is_drawn_where_pruned_models_beat_every_whole_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", PLAN_SCHEDULES, ("rte",), plans=PLANS[:1])
    for label in ("reap-48", "reap-48/na=4"):
        items = [item.model_copy(update={"acc": 1}) for item in folder.read_items(label, "rte")]
        folder.write_items(label, "rte", items)
    comparison = compare([folder.root])
    assert not any(row.average.on_front for row in comparison.unpruned)
    write_all(comparison, tmp_path / "out")
