"""Files that are whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.files import read_json, replace_atomically, sha256_of, write_atomically


def test_text_and_bytes_with_their_folders(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.txt"
    write_atomically(file, "größer\n")
    assert file.read_bytes() == "größer\n".encode()
    write_atomically(file, b"\x00\xff")
    assert file.read_bytes() == b"\x00\xff"
    assert sha256_of(file) == "06eb7d6a69ee19e5fbdf749018d3d2abfa04bcbd1365db312eb86dc7169389b8"


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "plan.json"
    file.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]
    assert file.read_text() == "old"


def test_a_writer_that_makes_a_private_file(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.unlink()
        path.touch(0o600)

    replace_atomically(tmp_path / "private", write)
    (tmp_path / "plain").touch()
    assert (tmp_path / "private").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1', "Expecting ',' delimiter"),
        (b'{"a": 1, "a": 2}', "got 'a', allowed: every key once"),
        (b"\xff", "can't decode byte"),
        (b"[" * 100_000, "a whole JSON file"),
    ],
)
def test_what_is_not_one_json_value_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(FieldError, match=message):
        read_json(tmp_path / "x.json", "plan")
