"""The report in a real browser: no complaint, no network, plots, hover, legend and sorting work, fits its window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loadtest.analysis import Imported, analyse
from loadtest.outputs import html
from tests.eval.browser import Page, browser, executable
from tests.loadtest.synthetic_load import ARMS, LOADS, write_load

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium on PATH (apt-get install chromium)")

TABLE = "document.querySelector('tr[data-row]').closest('table')"
COLUMN = "[..." + TABLE + ".tBodies[0].rows].map(row => row.cells[{column}].dataset.value)"
CLICK = TABLE + ".tHead.rows[0].cells[{column}].querySelector('button').click()"
GAPS = """(() => {
  const gaps = [];
  for (const plot of document.querySelectorAll(".plot")) {
    const texts = [...plot.querySelectorAll("text:not([text-anchor=end]):not(.title)")];
    const boxes = texts.map(text => text.getBoundingClientRect()).filter(box => box.width).sort((a, b) => a.x - b.x);
    for (let i = 1; i < boxes.length; i++) gaps.push(boxes[i].left - boxes[i - 1].right);
  }
  return gaps;
})()"""
"""Between the texts of load axes, in pixels."""
PANELS = [
    "Total throughput",
    "Speed-up",
    "TTFT, median",
    "TTFT, 99th percentile",
    "TPOT, median",
    "TPOT, 99th percentile",
    "ITL, median",
    "ITL, 99th percentile",
    "Goodput",
    "Good requests",
    "Distinct experts",
    "Read per token",
    "Share of the read bandwidth",
    "Share of the peak",
    "Throughput beside its prediction",
    "Speed-up beside its prediction",
]
POINTS = len(ARMS) * len(LOADS)
SGLANG = Imported("sglang", 16, {"total_tok_s": 4000.0})


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_load(tmp_path_factory.mktemp("run"), goodput_ms={"ttft": 500}, failures=3).root
    return html.write(analyse([root], [SGLANG]), tmp_path_factory.mktemp("report"))[0]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


def visible(tab: Page, selector: str) -> int:
    return int(tab.ask(f"[...document.querySelectorAll('{selector}')].filter(e => e.getClientRects().length).length"))


def middle(tab: Page, selector: str) -> Any:
    return tab.ask(
        f"(() => {{ const p = document.querySelector('{selector}'); p.scrollIntoView({{block: 'center'}});"
        "const b = p.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_without_complaint_or_network(tab: Page, report: Path, tmp_path: Path, width: int, scheme: str) -> None:
    before = len(tab.requests)
    tab.open(report, width=width, scheme=scheme)
    assert tab.complaints == []
    assert set(tab.requests[before:]) == {report.as_uri()}
    assert tab.ask("document.documentElement.scrollWidth") <= width
    assert tab.ask("[...document.querySelectorAll('figure h3')].map(h => h.innerText)") == PANELS
    shown = "wide" if width == 1280 else "narrow"
    assert visible(tab, ".plot") == visible(tab, f".plot.{shown}") == len(PANELS)
    picture = tmp_path / "page.png"
    tab.picture(picture)
    with Image.open(picture) as image:
        assert image.width == width
        corner = image.convert("L").getpixel((2, 2))
    assert corner > 230 if scheme == "light" else corner < 50


@pytest.mark.parametrize("width", [1280, 390])
def test_texts_of_an_axis_do_not_cover_each_other(tab: Page, tmp_path: Path, width: int) -> None:
    levels = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 784)
    root = write_load(tmp_path / "run", {"full": 6.0}, [f"c{level}" for level in levels], rounds=1).root
    tab.open(html.write(analyse([root]), tmp_path)[0], width=width)
    gaps = tab.ask(GAPS)
    assert len(gaps) > 20
    assert min(gaps) > 2


def test_hover_tells_about_the_nearest_point_and_marks_its_row(tab: Page, report: Path) -> None:
    tab.open(report, width=1280)
    x, y = middle(tab, '.plot.wide .point[data-row="c16|na=2"] .mark')
    tab.point_at(x + 2, y + 2)
    lines = tab.ask("document.getElementById('tip').innerText").split("\n")
    assert lines[:2] == ["na=2", "16 concurrent requests"]
    assert lines[2].endswith(", 95 %)")
    assert any(line.startswith("TTFT p50 ") for line in lines)
    assert tab.ask("[...document.querySelectorAll('tr.on')].map(row => row.dataset.row)") == ["c16|na=2"]
    tab.point_at(5, 5)
    assert tab.ask("document.getElementById('tip').hidden")
    assert tab.complaints == []


def test_imported_points_are_hollow_and_tell_where_they_come_from(tab: Page, report: Path) -> None:
    tab.open(report, width=1280)
    assert visible(tab, ".plot .point[data-tip] .mark.hollow") == 1
    x, y = middle(tab, ".plot.wide .point[data-tip] .mark.hollow")
    tab.point_at(x, y)
    lines = tab.ask("document.getElementById('tip').innerText").split("\n")
    assert lines == ["sglang", "16 concurrent requests", "total tok/s 4,000"]


def test_the_legend_hides_and_shows_an_arm(tab: Page, report: Path) -> None:
    tab.open(report, width=1280)
    assert tab.ask("[...document.querySelectorAll('.legend button')].map(b => b.innerText)") == [*ARMS, "sglang"]
    click = "document.querySelectorAll('.legend button')[1].click()"
    points, rows = visible(tab, ".plot .point"), visible(tab, "tr[data-row]")
    assert rows == POINTS
    tab.ask(click)
    assert tab.ask("document.querySelectorAll('.legend button')[1].getAttribute('aria-pressed')") == "false"
    assert visible(tab, '.plot g[data-series="1"] .point') == 0
    assert visible(tab, ".plot .point") < points
    assert visible(tab, "tr[data-row]") == POINTS - len(LOADS)
    tab.ask(click)
    assert (visible(tab, ".plot .point"), visible(tab, "tr[data-row]")) == (points, rows)


@pytest.mark.parametrize("column", [1, 2, 3, 6])
def test_the_table_of_points_sorts_by_number_on_click(tab: Page, report: Path, column: int) -> None:
    tab.open(report, width=1280)
    for sign in (-1, 1):
        tab.ask(CLICK.format(column=column))
        texts = tab.ask(COLUMN.format(column=column))
        numbers = [float(text) if text else float("-inf") for text in texts]
        assert numbers == sorted(numbers, reverse=sign < 0)
        assert len(numbers) == POINTS


def test_the_legend_stays_in_view(tab: Page, report: Path) -> None:
    tab.open(report, width=1280)
    middle(tab, "figure:nth-of-type(4) .plot.wide")
    assert tab.ask("document.querySelector('.legend').getBoundingClientRect().top") >= 0
