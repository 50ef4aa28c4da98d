"""Corpora are read from every form there is, and what cannot be read is named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sglang_moe_opt.pruning.corpus import Corpus, make_corpus, read_documents


def encode(texts: Sequence[str]) -> list[list[int]]:
    return [[ord(letter) - 87 for letter in text] for text in texts]


def corpus(documents: list[Any], **changed: Any) -> Corpus:
    arguments: dict[str, Any] = {"encode": encode, "begin": 1, "vocab_size": 64, "piece_tokens": 5, "tokens": 1000}
    return make_corpus(documents, **arguments | {"seed": 0} | changed)


def pieces(made: Corpus) -> list[list[int]]:
    return sorted(piece.tolist() for piece in made.pieces)


def test_a_folder_is_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second\n\ntext")
    (tmp_path / "deep").mkdir()
    with gzip.open(tmp_path / "deep" / "c.txt.gz", "wt") as file:
        file.write("third")
    (tmp_path / "a.jsonl").write_text('{"text": "one", "n": 1}\n\n{"prompt": "two"}\n{"ids": [3, 4]}\n')
    (tmp_path / "README.md").write_text("not read")
    assert list(read_documents(tmp_path)) == ["one", "two", [3, 4], "second\n\ntext", "third"]
    assert list(read_documents(tmp_path / "b.txt")) == ["second\n\ntext"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 3}', "line 2: got"),
        ('{"ids": [1, true]}', "line 2: got"),
        ("[1, 2]", "line 2: got"),
        ('{"text": "cut o', "line 2: Unterminated"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"text": "good"}\n' + line)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_documents(file))
    assert str(file) in str(caught.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not there; allowed: a text or JSONL file"):
        list(read_documents(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match=r"has no file named \*\.txt"):
        list(read_documents(tmp_path))
    (tmp_path / "bad.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"bad\.txt\.gz: Not a gzipped file"):
        list(read_documents(tmp_path))


def test_text_is_cut_and_begun_and_ids_are_sent_as_they_are() -> None:
    made = corpus(["abcdef", "", [20, 21, 22, 23, 24, 25]])
    assert pieces(made) == [[1, 10, 11, 12, 13], [1, 14, 15], [20, 21, 22, 23, 24], [25]]
    assert pieces(corpus(["abc"], begin=None)) == [[10, 11, 12]]


def test_as_many_tokens_as_asked_for_in_an_order_of_the_seed() -> None:
    documents = [[number] * 3 for number in range(40)]
    made = corpus(documents, tokens=20)
    assert made.tokens == 20
    assert made.starts.tolist() == [0, 3, 6, 9, 12, 15, 18, 20]
    assert made.sha256 == corpus(documents, tokens=20).sha256
    assert made.sha256 != corpus(documents, tokens=20, seed=1).sha256
    # a longer calibration begins with a shorter one's pieces
    assert [piece.tolist() for piece in corpus(documents).pieces[:6]] == [p.tolist() for p in made.pieces[:6]]


def test_samples() -> None:
    made = corpus([[number] * 3 for number in range(40)])
    sample = made.sample(50, 0)
    assert len(set(sample.tolist())) == 50
    assert sample.tolist() == sorted(sample.tolist()) == made.sample(50, 0).tolist() != made.sample(50, 1).tolist()
    assert made.sample(500, 0).tolist() == list(range(120))
    assert made.sample(0, 0).tolist() == []


def test_runs_cover_every_piece_once() -> None:
    made = corpus([[number] * (1 + number % 5) for number in range(40)])
    runs = made.runs(range(3, 37), 10)
    assert [piece for run in runs for piece in run] == list(range(3, 37))
    assert all(sum(len(made.pieces[piece]) for piece in run) <= 14 for run in runs)
    assert made.runs(range(4), 1000) == [range(4)]


@pytest.mark.parametrize(
    ("documents", "changed", "message"),
    [
        (["abc"], {"encode": None}, "has no tokenizer, allowed: JSONL with token 'ids'"),
        ([[3, 64]], {}, "got the token id 64, allowed: 0 to 63"),
        ([[3, -1]], {}, "got the token id -1"),
        (["", []], {}, "no tokens there"),
        ([], {}, "no tokens there"),
    ],
)
def test_bad_corpora(documents: list[Any], changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corpus(documents, **changed)


def test_json_of_a_long_line_is_clipped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(["x" * 1000]))
    with pytest.raises(ValueError, match="line 1") as caught:
        list(read_documents(tmp_path / "a.jsonl"))
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
