"""Every format of a load test, and that they are functions of its files alone."""

from __future__ import annotations

import csv
import json
import re
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from loadtest.analysis import Analysis, Imported, analyse
from loadtest.load import Load
from loadtest.metrics import ALL
from loadtest.outputs import console, looks, write_all
from loadtest.outputs.html import page
from loadtest.outputs.json import summary
from loadtest.outputs.notes import caveats, headlines, notes
from loadtest.outputs.servers import servers
from tests.loadtest.synthetic_load import ARMS, LOADS, write_load

PLOTS = {"throughput.png", "speedup.png", "latency.png", "experts.png", "bandwidth.png", "explanation.png"}
FILES = {"summary.json", "summary.csv", "summary.md", "report.html"}
POINTS = len(ARMS) * len(LOADS)
SGLANG = Imported("sglang <client>", 16, {"total_tok_s": 4000.0, "ttft_p50_ms": 50.0})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_load(tmp_path_factory.mktemp("load") / "run", goodput_ms={"ttft": 500}).root


@pytest.fixture(scope="module")
def analysis(root: Path) -> Analysis:
    return analyse([root], [SGLANG])


def test_files_are_complete_and_the_same_every_time(root: Path, analysis: Analysis, tmp_path: Path) -> None:
    written = write_all(analysis, tmp_path / "one")
    assert {path.name for path in written} == FILES | PLOTS
    write_all(analyse([root], [SGLANG]), tmp_path / "two")
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert min(image.size) > 300
        else:
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_summary_json_has_what_a_table_needs(analysis: Analysis) -> None:
    found = json.loads(json.dumps(summary(analysis), allow_nan=False))
    assert (found["kind"], found["version"], found["model"]) == ("loadtest", 1, "mini-v2 <test>")
    assert len(found["points"]) == POINTS
    point = next(p for p in found["points"] if (p["arm"], p["load"]) == ("na=2", "c16"))
    total = point["metrics"]["total_tok_s"]
    assert total["low"] <= total["median"] <= total["high"]
    assert (len(total["all"]), total["unit"]) == (3, "tok/s")
    assert point["baseline"] == "full"
    assert point["speedup"]["total_tok_s"]["interval"] == "95 %"
    assert point["metrics"].keys() <= found["metrics"].keys() == {metric.tag for metric in ALL}
    assert found["runs"][0]["versions"]["sglang"] == "0.5.23"
    assert found["runs"][0]["arms"][0]["label"] == "full"
    assert found["imported"] == [
        {"source": "sglang <client>", "concurrency": 16, "metrics": {"total_tok_s": 4000.0, "ttft_p50_ms": 50.0}}
    ]


def test_summary_csv_has_a_line_per_arm_load_and_metric(analysis: Analysis, tmp_path: Path) -> None:
    write_all(analysis, tmp_path)
    lines = list(csv.DictReader(StringIO((tmp_path / "summary.csv").read_text())))
    keys = [(line["arm"], line["load"], line["metric"]) for line in lines]
    assert len(keys) == len(set(keys))
    tags = {tag for cell in analysis.cells for tag in cell.values}
    assert {(arm, load, tag) for arm in ARMS for load in LOADS for tag in tags} <= set(keys)
    found = lines[keys.index(("na=4", "c16", "speedup_output_tok_s"))]
    assert float(found["low"]) < float(found["value"]) < float(found["high"])
    assert (found["ends"], found["unit"], found["rounds"], found["load_value"]) == ("95 %", "times", "3", "16.0")
    assert ("full", "c16", "speedup_total_tok_s") not in keys
    imported = lines[keys.index(("sglang <client>", "c16", "total_tok_s"))]
    assert (imported["value"], imported["low"], imported["unit"]) == ("4000.0", "", "tok/s")


def test_the_terminal_shows_every_point(analysis: Analysis) -> None:
    output = StringIO()
    console.show(analysis, Console(file=output, width=120))
    text = output.getvalue()
    for cell in analysis.cells:
        assert re.search(rf"{cell.load.label} .*{re.escape(cell.arm)} ", text)
    assert "(95 %)" in text
    assert "Largest speed-up: na=2" in text
    assert "None of 1,530 requests failed." in text  # 85 users, two requests, three arms, three rounds


def test_the_terminal_names_caveats(tmp_path: Path) -> None:
    analysis = analyse([write_load(tmp_path / "run", failures=2).root])
    output = StringIO()
    console.show(analysis, Console(file=output, width=120))
    assert "- full, c64: 6 of 390 requests failed" in output.getvalue()
    assert caveats(analysis) == ["full, c64: 6 of 390 requests failed"]
    assert "6 of 1,536 requests failed: 6 × 503." in headlines(analysis)
    assert "1 of 12 points have caveats, named in the table of points." in notes(analysis)


def test_the_page_needs_nothing_from_elsewhere_and_escapes_names(analysis: Analysis) -> None:
    text = page(analysis)
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", text)
    assert "mini-v2 &lt;test&gt;" in text
    assert "sglang &lt;client&gt;" in text
    assert "<test>" not in text and "<client>" not in text
    assert "a CPU &amp; more" in text
    assert all(metric.about in text for metric in ALL if "'" not in metric.about)
    predicted = POINTS + (POINTS - len(LOADS))  # throughput, and speed-ups of all but the first arm
    assert text.count('class="mark hollow"') == 2 * (2 + predicted)  # imported ones: throughput and TTFT; two widths


def test_headlines_say_where_it_helps_and_where_not(tmp_path: Path) -> None:
    lines = headlines(analyse([write_load(tmp_path / "run").root]))
    assert re.match(
        r"Largest speed-up: na=2, 1\.\d\d times the total tokens per second of full at \d+ concurrent requests "
        r"\(95 % interval 1\.\d\d to \d\.\d\d\)\.",
        lines[0],
    )
    assert any(line.startswith("na=2 buys nothing that could be shown at 1 concurrent request:") for line in lines)
    assert any(line.startswith("Total throughput at 64 concurrent requests: full ") for line in lines)
    assert lines[-1] == "None of 1,530 requests failed."


def test_headlines_say_when_nothing_helps_or_harms(tmp_path: Path) -> None:
    same = headlines(analyse([write_load(tmp_path / "a", {"full": 6.0, "also": 6.0}).root]))
    assert same[0] == "No arm was faster at any load: none of 4 intervals lies above 1."
    slower = headlines(analyse([write_load(tmp_path / "b", {"na=2": 2.0, "full": 6.0}, noise=0.001).root]))
    assert any(re.match(r"full is slower than na=2 at 4 to 64 concurrent requests: down to 0\.", s) for s in slower)


def test_a_single_round_promises_nothing(tmp_path: Path) -> None:
    analysis = analyse([write_load(tmp_path / "run", rounds=1).root])
    assert "one round" in headlines(analysis)[0]
    assert not any("buys nothing" in line or "slower" in line for line in headlines(analysis))
    assert "Every point was measured once: nothing tells a speed-up from chance." in notes(analysis)
    assert "NaN" not in page(analysis) and "nan" not in page(analysis)


def test_one_arm_at_one_load_can_be_reported(tmp_path: Path) -> None:
    analysis = analyse([write_load(tmp_path / "run", {"full": 6.0}, ("c4",), rounds=1, tells=False).root])
    names = {path.name for path in write_all(analysis, tmp_path / "out")}
    assert names == FILES | {"throughput.png", "latency.png", "bandwidth.png", "explanation.png"}
    console.show(analysis, Console(file=StringIO()))


def test_runs_and_kinds_of_load_stand_beside_each_other(tmp_path: Path) -> None:
    roots = [
        write_load(tmp_path / "closed").root,
        write_load(tmp_path / "open", {"full": 6.0}, ("rate2", "rate4"), model="other").root,
    ]
    analysis = analyse(roots)
    text = page(analysis)
    assert "Throughput, closed loop" in text and "Throughput, Poisson arrivals" in text
    assert "closed: na=2" in text
    assert any(line.startswith("The runs differ in model") for line in notes(analysis))
    assert {path.name for path in write_all(analysis, tmp_path / "out")} >= {"throughput.png", "throughput_poisson.png"}
    assert any("at 4 requests per second: open: full" in line for line in headlines(analysis))


def test_missing_points_are_named(tmp_path: Path) -> None:
    folder = write_load(tmp_path / "run")
    for arm in ARMS:
        (folder.root / "points" / f"r3-c64-{arm}.json").unlink()
    analysis = analyse([folder.root])
    assert notes(analysis)[0] == (
        "run: 3 points did not run: round 3, c64, full; round 3, c64, na=4; round 3, c64, na=2."
    )
    assert "their range stands in place of a 95 % interval" in "\n".join(notes(analysis))


def test_an_arm_without_points_does_not_stop_the_report(tmp_path: Path) -> None:
    folder = write_load(tmp_path / "run")
    for file in (folder.root / "points").glob("*na=2.json"):
        file.unlink()
    analysis = analyse([folder.root])
    assert analysis.cell("na=2", Load.parse("c4")) is None
    assert page(analysis)


def test_servers_under_plans_have_a_table_in_every_format(tmp_path: Path) -> None:
    arms = {"full": 6.0, "na=2": 2.0, "half": 6.0, "lean<1>": 6.0}
    plans = {"half": [32] * 4, "lean<1>": [64, 32, 16, 16]}
    analysis = analyse([write_load(tmp_path / "run", arms, ("c4",), plans=plans).root])
    written = write_all(analysis, tmp_path / "out")
    assert (tmp_path / "out" / "memory.png") in written
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [server["server"] for server in found["servers"]] == ["whole model", "half", "lean<1>"]
    assert found["servers"][0] | {"scheduler_mb": 3060.0, "freed_mb": None, "removed_mb": 0.0} == found["servers"][0]
    assert found["servers"][2] == {
        "server": "lean<1>",
        "arm": "lean<1>",
        "experts_per_layer": [64, 32, 16, 16],
        "num_experts": 64,
        "expert_mb": 1280.0,
        "removed_mb": 1280.0,
        "scheduler_mb": 1780.0,
        "all_mb": 3280.0,
        "freed_mb": 1280.0,
    }
    assert [("plan" in arm, "memory" in arm) for arm in found["runs"][0]["arms"]] == [(False, True)] * 2 + [
        (True, True)
    ] * 2
    lines = list(csv.DictReader(StringIO((tmp_path / "out" / "summary.csv").read_text())))
    of_half = {
        line["metric"]: (line["value"], line["unit"]) for line in lines if (line["arm"], line["load"]) == ("half", "")
    }
    assert of_half == {
        "experts_per_layer": ("32.0", ""),
        "expert_mb": ("1280.0", "MB"),
        "scheduler_mb": ("1780.0", "MB"),
        "freed_mb": ("1280.0", "MB"),
        "all_mb": ("3280.0", "MB"),
    }
    text = page(analysis)
    assert "<h2>Servers</h2>" in text and "16 to 64 (mean 32) of 64" in text
    assert "lean&lt;1&gt;" in text and "lean<1>" not in text
    output = StringIO()
    console.show(analysis, Console(file=output, width=120))
    assert re.search(r"half +32 of 64 +1,280 +1,780 +1,280 +3,280", output.getvalue())
    assert (
        "half keeps 32 of 64 experts a layer, 1,280 MB of weights less: its scheduler holds 1,780 MB, 1,280 MB less "
        "than the whole model's."
    ) in headlines(analysis)


def test_servers_without_a_measured_memory_are_shown_without_it(tmp_path: Path) -> None:
    folder = write_load(tmp_path / "run", {"full": 6.0, "half": 6.0}, ("c4",), plans={"half": [32] * 4})
    manifest = folder.read_manifest()
    arms = [arm.model_copy(update={"memory": None}) for arm in manifest.arms]
    folder.write_manifest(manifest.model_copy(update={"arms": arms}))
    analysis = analyse([folder.root])
    assert "memory.png" not in {path.name for path in write_all(analysis, tmp_path / "out")}
    assert [row["freed_mb"] for row in summary(analysis)["servers"]] == [None, None]
    assert "32 of 64" in page(analysis)
    assert not any("its scheduler holds" in line for line in headlines(analysis))


def test_reports_without_plans_have_no_servers(analysis: Analysis) -> None:
    found = summary(analysis)
    assert "servers" not in found
    assert {"plan", "memory"}.isdisjoint(found["runs"][0]["arms"][0])
    assert "<h2>Servers</h2>" not in page(analysis)
    beside = Analysis(analysis.runs, analysis.arms, analysis.loads, analysis.cells)
    output = StringIO()
    console.show(beside, Console(file=output, width=120))
    assert "Servers" not in output.getvalue()


def test_servers_of_several_runs_are_told_apart(tmp_path: Path) -> None:
    plans = {"half": [32] * 4}
    roots = [
        write_load(tmp_path / name, {"full": 6.0, "half": 6.0}, ("c4",), plans=plans if name != "b" else None).root
        for name in ("a", "b", "c")
    ]
    found = servers(analyse(roots))
    assert [row.name for row in found] == ["a: whole model", "a: half", "c: whole model", "c: half"]
    assert [row.arm for row in found] == ["a: full", "a: half", "c: full", "c: half"]


def test_sixteen_curves_look_different() -> None:
    assert len({(looks.color(number), looks.shape(number)) for number in range(16)}) == 16
    assert len(looks.LIGHT) == len(looks.DARK) == len(looks.SHAPES) == len(looks.MATPLOTLIB)
