"""Answers kept on disk while a task is under way."""

from __future__ import annotations

from pathlib import Path

from eval.journal import Journal


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "task.jsonl"
    Journal(file).add({"a": [-1.25, True], "b": "text\n"})
    again = Journal(file)
    assert len(again) == 2
    assert again["a"] == [-1.25, True]
    assert again["b"] == "text\n"
    assert "c" not in again


def test_floats_survive_to_the_bit(tmp_path: Path) -> None:
    value = -0.1 - 0.2 - 1e-17
    Journal(tmp_path / "j").add({"a": [value, False]})
    assert Journal(tmp_path / "j")["a"] == [value, False]


def test_a_line_cut_off_in_writing_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    Journal(file).add({"a": 1, "b": 2})
    for cut in range(1, 20):
        whole = file.read_bytes()
        file.write_bytes(whole + b'{"key": "c", "answer": 3}\n'[:cut])
        journal = Journal(file)
        assert len(journal) == 2
        assert file.read_bytes() == whole
    Journal(file).add({"c": 3})
    assert Journal(file)["c"] == 3


def test_a_file_of_one_cut_off_line_is_empty(tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    file.write_bytes(b'{"key": "a"')
    assert len(Journal(file)) == 0
    assert file.read_bytes() == b""
