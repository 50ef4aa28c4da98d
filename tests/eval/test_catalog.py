"""Tasks: prompts identical to lm-eval's own, and data faults named by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.catalog import (
    ALL,
    BY_NAME,
    HELDOUT,
    SIX,
    TASKS_DIR,
    CatalogError,
    TaskInfo,
    load_task,
    load_tasks,
    local_rows,
    parse_tasks,
    read_config,
)
from sglang_moe_opt.fields import FieldError
from tests.eval.small_data import rte_rows, small_data, write_rows

STOCK = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "rte": "glue/rte/default.yaml",
    "winogrande": "winogrande/default.yaml",
}


def info(name: str, **update: Any) -> TaskInfo:
    return TaskInfo.model_validate(read_config(name)["metadata"]).model_copy(update=update)


def test_names_and_groups() -> None:
    assert parse_tasks("six") == SIX
    assert parse_tasks("cloze, six,arc_easy") == ("cloze", *SIX)
    assert {*parse_tasks("all"), *BY_NAME} == {path.stem for path in TASKS_DIR.glob("*.yaml")}
    assert not set(BY_NAME) & {*ALL, *parse_tasks("heldout,six")}
    assert parse_tasks("bits_per_byte_second_half") == ("bits_per_byte_second_half",)
    with pytest.raises(FieldError, match="--tasks: got 'hellaswag', allowed: arc_challenge"):
        parse_tasks("arc_easy,hellaswag")


@pytest.mark.parametrize("name", [*ALL, *BY_NAME])
def test_every_task_says_how_it_is_scored(name: str) -> None:
    config = read_config(name)
    assert config["task"] == name
    about = info(name)
    assert about.score in {entry["metric"] for entry in config["metric_list"]}
    assert about.in_average == (name in SIX)
    assert about.heldout == (name in HELDOUT | BY_NAME)
    assert (about.items is None) == about.heldout
    assert about.chance is None or 0 <= about.chance <= 0.5


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", SIX)
def test_requests_are_those_of_lm_evals_own_task(name: str, data_folder: Path) -> None:
    """The first items in full: context, continuation, right answer, metrics."""
    import datasets
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    ours = load_task(name, data_folder).task
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / STOCK[name], resolve_func=True, recursive=True)
    split = config.get("test_split") or config["validation_split"]
    rows = [json.loads(line) for line in (data_folder / name / f"{split}.jsonl").read_text().splitlines()]
    if name == "boolq":  # the hub's passages begin with their title
        rows = [row | {"passage": f"{row['title']} -- {row['passage']}"} for row in rows]
    data = {split: datasets.Dataset.from_list(rows)}
    for key in ("dataset_path", "dataset_name", "training_split", "tag"):
        config.pop(key, None)
    if split == "test":
        config.pop("validation_split")
    config["custom_dataset"] = lambda **_: data
    stock = ConfigurableTask(config=config)
    stock.set_config(key="num_fewshot", value=0)
    for task in (ours, stock):
        task.build_all_requests(limit=150, rank=0, world_size=1)
    assert [one.args for one in ours.instances] == [one.args for one in stock.instances]
    assert len(ours.eval_docs) == len(stock.eval_docs)
    answers = [(-1.0, False), (-2.0, False), (-3.0, False), (-4.0, False), (-5.0, False)]
    for mine, theirs in zip(ours.eval_docs, stock.eval_docs, strict=True):
        count = len(ours.doc_to_choice(mine))
        assert ours.process_results(mine, answers[:count]) == stock.process_results(theirs, answers[:count])


@pytest.mark.data
@pytest.mark.parametrize("name", sorted(HELDOUT | BY_NAME))
def test_held_out_tasks_load(name: str, data_folder: Path) -> None:
    task = load_task(name, data_folder)
    task.task.build_all_requests(limit=3, rank=0, world_size=1)
    item = (HELDOUT | BY_NAME)[name](_heldout(data_folder))[0]
    arguments = [one.args for one in task.task.instances if one.doc_id == 0]
    if name in ("cloze", "gloss"):
        assert arguments == item.pairs
    elif name.startswith("bits_per_byte"):
        assert arguments == [(item.text,)]
    else:
        assert arguments[0][0] == item.context
    assert task.entry(3).items == 3
    assert task.entry(None).items == task.entry(None).total == task.total


def _heldout(data_folder: Path) -> Any:
    from eval.heldout import load_heldout

    return load_heldout(data_folder)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text


def test_held_out_tasks_need_a_folder() -> None:
    with pytest.raises(CatalogError) as error:
        load_tasks(["rte", "cloze"])
    assert "--data-dir" in one_line(error)


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as error:
        load_tasks(["rte"], tmp_path / "none")
    assert f"--data-dir: {tmp_path / 'none'}: no such folder" == one_line(error)
    with pytest.raises(CatalogError) as error:
        load_tasks(["rte"], tmp_path)
    assert f"--data-dir: {tmp_path}: is empty" in one_line(error)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    small_data(tmp_path)
    with pytest.raises(CatalogError) as error:
        load_tasks(["arc_easy"], tmp_path)
    assert one_line(error) == f"{tmp_path / 'arc_easy' / 'test.jsonl'}: no such file"
    with pytest.raises(CatalogError) as error:
        load_tasks(["cloze"], tmp_path)
    assert f"{tmp_path}/corpora/" in one_line(error)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"sentence1": "a", "sent', "not JSON"),
        ("", "not JSON"),
        ("[1, 2]", "expected an object"),
        ('{"sentence1": "a", "label": 0}', "field sentence2: got nothing, allowed: text"),
        ('{"sentence1": "a", "sentence2": "b", "label": "1"}', "field label: got '1', allowed: integer"),
    ],
)
def test_a_broken_line_is_named_by_file_and_number(tmp_path: Path, line: str, complaint: str) -> None:
    file = write_rows(tmp_path / "validation.jsonl", rte_rows(5))
    lines = file.read_text().splitlines()
    lines[3] = line
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(CatalogError) as error:
        local_rows(file, info("rte"))
    assert one_line(error).startswith(f"{file}: line 4: ")
    assert complaint in one_line(error)


def test_a_file_cut_off_between_lines_is_noticed(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "validation.jsonl", rte_rows(100))
    with pytest.raises(CatalogError, match="100 items, but the official split has 277"):
        local_rows(file, info("rte"))
    assert len(local_rows(file, info("rte", items=100))) == 100


def test_a_right_answer_that_is_no_choice_is_noticed(tmp_path: Path) -> None:
    row = {"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "E"}
    file = write_rows(tmp_path / "test.jsonl", [row])
    with pytest.raises(CatalogError, match=r"line 1: field answerKey: got 'E', allowed: one of choices\.label"):
        local_rows(file, info("arc_easy"))


def test_tasks_are_plain_yaml() -> None:
    for file in TASKS_DIR.glob("*.yaml"):
        assert "!function" not in file.read_text()
        assert yaml.safe_load(file.read_text())["num_fewshot"] == 0
