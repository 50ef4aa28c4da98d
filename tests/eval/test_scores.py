"""Runs are paired only where they fit, and every misfit or broken file is one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eval.results import Item, ResultsError, ResultsFolder
from eval.scores import load
from tests.eval.synthetic_run import write_run

TASKS = ("rte", "bits_per_byte")


@pytest.fixture
def run(tmp_path: Path) -> ResultsFolder:
    return write_run(tmp_path / "a", tasks=TASKS)


def test_scores_come_in_item_order_whatever_the_files_order(run: ResultsFolder) -> None:
    items = run.read_items("na=4", "rte")
    run.write_items("na=4", "rte", reversed(items))
    found = next(s for s in load([run.root]).schedules if s.entry.label == "na=4").tasks["rte"]
    assert found.runs.shape == (1, 277)
    assert found.items.tolist() == [item.acc for item in items]
    assert found.metrics == {"acc": pytest.approx(100 * np.mean(found.items))}
    assert found.n_bytes is None


def test_texts_come_with_their_bytes(run: ResultsFolder) -> None:
    found = load([run.root]).schedules[0].tasks["bits_per_byte"]
    items = run.read_items("full", "bits_per_byte")
    assert found.n_bytes is not None
    assert found.n_bytes.tolist() == [item.n_bytes for item in items]
    assert found.items.tolist() == [item.nats for item in items]


def test_a_schedule_in_two_runs_is_a_repeat(run: ResultsFolder, tmp_path: Path) -> None:
    other = write_run(tmp_path / "b", {"full": "full", "na=3": {"na": 3}}, TASKS, flips=0.1, seed=3)
    found = {s.entry.label: s for s in load([run.root, other.root]).schedules}
    assert len(found["full"].runs) == 2
    assert found["full"].tasks["rte"].runs.shape == (2, 277)
    assert len(found["na=3"].runs) == len(found["na=4"].runs) == 1


def test_an_unfinished_schedule_is_left_out_and_named(run: ResultsFolder) -> None:
    run.items_file("na=2", "rte").unlink()
    found = load([run.root])
    assert "na=2" not in {s.entry.label for s in found.schedules}
    assert found.incomplete == ("na=2: a has no complete rte",)


def _rewrite(file: Path, change: Callable[[list[str]], list[str]]) -> None:
    file.write_text("".join(line + "\n" for line in change(file.read_text().splitlines())))


def _drop_metric(lines: list[str]) -> list[str]:
    return [json.dumps({k: v for k, v in json.loads(line).items() if k != "acc"}) for line in lines]


BREAKS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "a truncated line": (lambda lines: [*lines[:-1], lines[-1][:20]], "line 277: Invalid JSON"),
    "missing lines": (lambda lines: lines[:-3], "274 items where the manifest says 277"),
    "no lines": (lambda lines: [], "0 items where the manifest says 277"),
    "a repeated item": (lambda lines: [*lines[:-1], lines[0]], "an item occurs twice"),
    "another item": (
        lambda lines: [*lines[:-1], lines[-1].replace('"id":276', '"id":300')],
        "item 300 is not the item",
    ),
    "another target": (lambda lines: [lines[0].replace('"target":0', '"target":1'), *lines[1:]], "item 0 is not"),
    "no score": (_drop_metric, "item 0 has no acc"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_file_is_one_line_with_its_name(run: ResultsFolder, name: str) -> None:
    change, message = BREAKS[name]
    file = run.items_file("na=4", "rte")
    _rewrite(file, change)
    with pytest.raises(ResultsError) as caught:
        load([run.root])
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nats", [None, float("inf"), float("nan")])
def test_a_text_without_a_finite_probability_is_refused(run: ResultsFolder, nats: float | None) -> None:
    items = run.read_items("na=4", "bits_per_byte")
    run.write_items("na=4", "bits_per_byte", [Item(id=0, nats=nats, n_bytes=items[0].n_bytes), *items[1:]])
    with pytest.raises(ResultsError, match=r"bits_per_byte\.jsonl: "):
        load([run.root])


def test_another_model_is_refused(run: ResultsFolder, tmp_path: Path) -> None:
    other = write_run(tmp_path / "b", tasks=TASKS, fingerprint="fedcba")
    with pytest.raises(ResultsError, match="fingerprints fedcba and 0123456789abcdef"):
        load([run.root, other.root])


def test_other_tasks_are_refused(run: ResultsFolder, tmp_path: Path) -> None:
    other = write_run(tmp_path / "b", tasks=("rte",))
    with pytest.raises(ResultsError, match="differ in task bits_per_byte"):
        load([run.root, other.root])


def test_one_label_for_two_schedules_is_refused(run: ResultsFolder, tmp_path: Path) -> None:
    other = write_run(tmp_path / "b", {"full": "full", "na=4": {"na": 3}}, TASKS)
    with pytest.raises(ResultsError, match="schedule 'na=4' is not what it is in the other runs"):
        load([run.root, other.root])


def test_the_same_folder_twice_is_no_repeat(run: ResultsFolder) -> None:
    with pytest.raises(ResultsError, match="given twice"):
        load([run.root, run.root / ".." / "a"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}'])
def test_a_broken_manifest_is_one_line(run: ResultsFolder, text: str) -> None:
    run.manifest_file.write_text(text)
    with pytest.raises(ResultsError, match=r"manifest\.json"):
        load([run.root])
