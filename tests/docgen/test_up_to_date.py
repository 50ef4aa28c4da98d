"""README.md and docs/ say what the committed result files and the code say: `make tables` would change nothing."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from docgen import blocks
from docgen.__main__ import pages, render
from docgen.figures import SENTENCES
from docgen.results import RESULTS
from docgen.tables import TABLES
from sglang_moe_opt.cli.main import build_app

HANDMADE = {
    "docs/open-questions.md": (
        "| mini-v3 | mean na 5 | 4 | 3 | 2 |",  # trials whose files are not kept, as the page says
    ),
    "docs/transcript.md": ("| schedule | layers |",),  # what a command printed
}
"""Tables with decimals that no result file holds, by their first line, each with the reason."""


@pytest.mark.parametrize("file", pages())
def test_page_is_up_to_date(file: str) -> None:
    old, new = render(file)
    assert old == new, f"{file} is out of date: make tables"


@pytest.mark.parametrize("file", pages())
def test_every_table_of_measured_numbers_is_made_from_files(file: str, project_root: Path) -> None:
    """A table whose cells have decimals is a marked block, or is named above."""
    text = blocks.without_blocks((project_root / file).read_text(encoding="utf-8"))
    for found in re.finditer(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        cells = [cell.strip() for line in found[0].splitlines()[2:] for cell in line.split("|")]
        if any(re.match(r"[-+±*]*\d+\.\d", cell) for cell in cells):
            first = found[0].splitlines()[0]
            assert first.startswith(HANDMADE.get(file, ())), f"{file}: no block, and not named above: {first}"


def test_every_table_and_sentence_is_used(project_root: Path) -> None:
    text = "".join((project_root / file).read_text(encoding="utf-8") for file in pages())
    used = {call.split()[0] for call in re.findall(r"<!-- table: (.+?) -->", text)}
    assert used == set(TABLES)
    assert {sentence.file for sentence in SENTENCES} <= set(pages())


def test_the_predictions_shown_are_what_the_command_answers(project_root: Path) -> None:
    page = (project_root / "docs/predict.md").read_text(encoding="utf-8")
    command = re.search(r"^moe-opt (predict .*)$", page, re.M)
    shown = re.search(r"This is an answer.*?`(--.*?)`.*?^```\n(.*?)^```$", page, re.M | re.S)
    assert command and shown
    asked = shlex.split(f"{command[1]} {shown[1]}")
    answer = CliRunner().invoke(build_app(), asked)
    assert answer.exit_code == 0, answer.output
    said = {" ".join(line.split()) for line in answer.stdout.splitlines()}
    assert {" ".join(line.split()) for line in shown[2].splitlines()} <= said


def test_a_changed_result_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The whole way from a file to a page: one number of one file differs."""
    from docgen import results

    name = "mini_v2/summary.json"
    (tmp_path / "mini_v2").mkdir()
    changed = (RESULTS / name).read_text(encoding="utf-8").replace('"value": 42.08596', '"value": 40.08596')
    (tmp_path / name).write_text(changed, encoding="utf-8")
    before = TABLES["schedules"]("mini_v2", "headline")
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    results.load.cache_clear()
    try:
        after = TABLES["schedules"]("mini_v2", "headline")
    finally:
        results.load.cache_clear()
    assert "| full | 6 | 6 | 42.1" in before
    assert "| full | 6 | 6 | 40.1" in after
    assert [a for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b] == [
        before.splitlines()[2]
    ]
