"""The report in a real browser: no complaint, no network, plots there, hover and sorting work, fits its window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from eval.compare import compare
from eval.outputs import html
from tests.eval.browser import Page, browser, executable
from tests.eval.synthetic_run import FEW_SCHEDULES, TASKS, write_run

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium on PATH (apt-get install chromium)")

COLUMN = "[...document.querySelectorAll('table')[{table}].tBodies[0].rows].map(row => row.cells[{column}].innerText)"
CLICK = "document.querySelectorAll('table')[{table}].tHead.rows[0].cells[{column}].querySelector('button').click()"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [write_run(tmp_path_factory.mktemp("runs") / str(i), flips=0.01, seed=i).root for i in range(2)]
    return html.write(compare(runs), tmp_path_factory.mktemp("report"))[0]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_without_complaint_or_network(tab: Page, report: Path, tmp_path: Path, width: int, scheme: str) -> None:
    tab.open(report, width=width, scheme=scheme)
    assert tab.complaints == []
    assert set(tab.requests) == {report.as_uri()}
    assert tab.ask("document.documentElement.scrollWidth") <= width
    shown = "wide" if width == 1280 else "narrow"
    plots = "[...document.querySelectorAll('.plot')].filter(p => p.clientWidth > 0)"
    assert tab.ask(f"{plots}.map(p => p.classList.contains('{shown}'))") == [True, True]
    assert tab.ask(f"{plots}.map(p => p.querySelectorAll('.point').length)") == [len(FEW_SCHEDULES)] * 2
    picture = tmp_path / "page.png"
    tab.picture(picture)
    with Image.open(picture) as image:
        assert image.width == width
        corner = image.convert("L").getpixel((2, 2))
    assert corner > 230 if scheme == "light" else corner < 50


def test_hover_tells_about_the_nearest_schedule_and_marks_its_rows(tab: Page, report: Path) -> None:
    tab.open(report, width=1280)
    box = tab.ask(
        "(() => { const p = document.querySelector('.plot.wide .point[data-row=\"na=2\"] .mark')"
        ".getBoundingClientRect(); return [p.x + p.width / 2, p.y + p.height / 2]; })()"
    )
    tab.point_at(box[0] + 4, box[1] + 4)
    text = tab.ask("document.getElementById('tip').innerText")
    assert text.startswith("na=2\n")
    assert "loss of" in text
    assert tab.ask("[...document.querySelectorAll('tr.on')].map(row => row.dataset.row)") == ["na=2", "na=2"]
    tab.point_at(5, 5)
    assert tab.ask("document.getElementById('tip').hidden")
    assert tab.complaints == []


@pytest.mark.parametrize(("table", "column"), [(0, 1), (0, 2), (1, 2), (1, 1 + len(TASKS))])
def test_tables_sort_by_number_on_click(tab: Page, report: Path, table: int, column: int) -> None:
    tab.open(report, width=1280)
    for sign in (-1, 1):
        tab.ask(CLICK.format(table=table, column=column))
        texts = tab.ask(COLUMN.format(table=table, column=column))
        numbers = [float(text.split("\n")[0].removeprefix("≤ ")) for text in texts]
        assert numbers == sorted(numbers, reverse=sign < 0)
        assert len(numbers) == len(FEW_SCHEDULES)


def test_tables_sort_by_name_on_click(tab: Page, report: Path) -> None:
    tab.open(report, width=1280)
    tab.ask(CLICK.format(table=0, column=0))
    names = [text.split("\n")[0].strip() for text in tab.ask(COLUMN.format(table=0, column=0))]
    assert names == ["2,4,6,7", "6,4,2,7", "adaptive", "full", "na=1", "na=2", "na=4"]
    assert tab.ask("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "ascending"
