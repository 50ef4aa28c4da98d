"""Prompt sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.prompts import NAMED, Prompt, parse
from sglang_moe_opt.fields import FieldError


def write(file: Path, *rows: object) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_random_prompts_have_the_exact_length_and_no_special_ids() -> None:
    source = parse("random:7", vocab_size=100, seed=1)
    ids = [source.draw(index).ids for index in range(200)]
    assert all(found is not None and len(found) == 7 for found in ids)
    flat = {token for found in ids for token in found or ()}
    assert min(flat) == 16
    assert max(flat) == 99


def test_a_prompt_depends_on_seed_and_number_alone() -> None:
    source = parse("random:7", vocab_size=1000, seed=1)
    assert source.draw(5) == parse("random:7", vocab_size=1000, seed=1).draw(5)
    assert source.draw(5) != source.draw(6)
    assert source.draw(5) != parse("random:7", vocab_size=1000, seed=2).draw(5)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "a"}, Prompt(text="a")),
        ({"question": "b", "answer": "c"}, Prompt(text="b")),
        ({"turns": ["first", "second"]}, Prompt(text="first")),
        ({"turns": [{"content": "x"}]}, Prompt(text="x")),
        ({"messages": [{"role": "user", "content": "hi"}]}, Prompt(text="hi")),
        ({"input_ids": [4, 5]}, Prompt(ids=(4, 5))),
    ],
)
def test_lines_of_json(tmp_path: Path, row: object, prompt: Prompt) -> None:
    assert parse(f"jsonl:{write(tmp_path / 'a.jsonl', row)}").draw(3) == prompt


def test_a_field_may_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"prompt": "a", "body": "b"})
    assert parse(f"jsonl:{file}:body").draw(0) == Prompt(text="b")


def test_files_are_shuffled_once_and_repeat(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *({"text": str(n)} for n in range(10)))
    source = parse(f"jsonl:{file}", seed=4)
    first = [source.draw(index).text for index in range(10)]
    assert sorted(first) == [str(n) for n in range(10)]
    assert first != sorted(first)
    assert [source.draw(index + 10).text for index in range(10)] == first


def test_named_sources_are_read_from_the_data_folder(tmp_path: Path) -> None:
    write(tmp_path / NAMED["gsm8k"], {"question": "2 + 2?", "answer": "4"})
    assert parse("gsm8k", data_dir=tmp_path).draw(0) == Prompt(text="2 + 2?")


def test_sharegpt_takes_first_turns_and_the_length_of_the_reply(tmp_path: Path) -> None:
    file = tmp_path / "chats.json"
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "x" * 40}]
    file.write_text(json.dumps([{"conversations": turns}, {"conversations": turns[1:]}, {"conversations": turns[:1]}]))
    source = parse(f"sharegpt:{file}")
    assert source.draw(0) == source.draw(1) == Prompt(text="hi", output_len=10)


@pytest.mark.parametrize("spec", ["", "random:", "random:0", "random:x", "gsm9k", "jsonl:", "sharegpt", "random:-1"])
def test_other_sources_are_refused(spec: str) -> None:
    with pytest.raises(FieldError, match="--prompts: got"):
        parse(spec, vocab_size=100)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="--data-dir"):
        parse("gsm8k")
    with pytest.raises(ValueError, match=r"gsm8k_test\.jsonl.*--data-dir"):
        parse("gsm8k", data_dir=tmp_path)
    with pytest.raises(FieldError, match="vocabulary"):
        parse("random:3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt"\n', r"line 2: got .* JSON"),
        ("[1]\n", "line 1: got .* an object"),
        ('{"other": "a"}\n', "line 1: got .* one of the fields"),
        ('{"prompt": ""}\n', "line 1: prompt"),
        ('{"prompt": 3}\n', "line 1: prompt"),
        ("\n", "at least one prompt"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse(f"jsonl:{file}")


@pytest.mark.data
@pytest.mark.parametrize(("name", "count"), [("mt-bench", 80), ("vicuna", 80), ("gsm8k", 1319), ("arena-hard", 500)])
def test_the_published_prompts(name: str, count: int, data_folder: Path) -> None:
    source = parse(name, data_dir=data_folder / "loadtest")
    texts = [source.draw(index).text for index in range(count)]
    assert all(texts)
    assert source.draw(count).text == texts[0]


def test_a_text_may_hold_any_line_separator(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"prompt": "a\u2028b\x85c"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert parse(f"jsonl:{file}").draw(0) == Prompt(text="a\u2028b\x85c")


def test_what_the_system_says_is_no_prompt(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    assert parse(f"jsonl:{write(tmp_path / 'a.jsonl', {'messages': said})}").draw(0) == Prompt(text="hi")
    file = tmp_path / "chats.json"
    turns = [{"from": who, "value": who} for who in ("system", "human", "gpt")]
    file.write_text(json.dumps([{"conversations": turns}]))
    assert parse(f"sharegpt:{file}").draw(0) == Prompt(text="human", output_len=1)


@pytest.mark.data
def test_a_published_sharegpt_file(data_folder: Path) -> None:
    source = parse(f"sharegpt:{data_folder / 'loadtest' / 'fastchat_dummy_conversation.json'}")
    assert all(source.draw(index).text and source.draw(index).output_len for index in range(500))
