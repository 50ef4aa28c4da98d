"""Names are found in source as Python would find them, and nothing is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_moe_opt.compat.attributes import class_attributes
from sglang_moe_opt.compat.source import Source, SourceError
from sglang_moe_opt.compat.symbols import find, find_moved
from tests.compat import small_sglang as small


@pytest.fixture(params=["folder", "package", "wheel"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    root = small.write(tmp_path / "site-packages")
    if request.param == "wheel":
        return Source(small.pack(root, tmp_path / "sglang-1.0-py3-none-any.whl"))
    return Source(root / "sglang" if request.param == "package" else root)


def test_what_is_found(source: Source) -> None:
    assert source.version == "1.0"
    places = {
        "a.A": "a.A",
        "a.A.x": "a.A.x",
        "a.A.method": "a.A.method",
        "a.A.B.inner": "a.A.B.inner",
        "a.A.inherited": "base.Base.inherited",
        "a.under_if": "a.under_if",
        "a.z": "a.z",
        "a.renamed": "a.plain",
        "a.Parent": "base.Base",
        "a.Foreign": "a.Foreign",
        "sub.starred": "sub.common.starred",
        "sub.Again.method": "a.A.method",
        "a": "a",
    }
    for asked, place in places.items():
        symbol = find(source, f"sglang.srt.{asked}")
        assert symbol is not None, asked
        assert symbol.dotted == f"sglang.srt.{place}"


@pytest.mark.parametrize("name", ["a.C", "a.A.other", "nowhere.A", "a.A.method.x", "a.Foreign.x", "sub.plain", "sub.A"])
def test_what_is_not_there(source: Source, name: str) -> None:
    assert find(source, f"sglang.srt.{name}") is None


def test_objects_have_what_methods_set_and_bases_define(source: Source) -> None:
    symbol = find(source, "sglang.srt.a.A")
    assert symbol is not None
    assert set(class_attributes(source, symbol)) == {"x", "__init__", "set_in_init", "method", "B", "inherited"}


def test_a_name_that_moved(source: Source) -> None:
    assert find_moved(source, "sglang.srt.gone.A.method") == ["sglang.srt.a.A.method"]
    assert find_moved(source, "sglang.srt.gone.plain") == ["sglang.srt.a.plain"]
    assert find_moved(source, "sglang.srt.gone.A.nothing") == []


@pytest.mark.parametrize("name", ["nowhere", "text.whl", "empty"])
def test_no_sglang_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.whl").write_text("no archive")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"^--sglang: got '.*', allowed: a wheel or a folder with sglang$"):
        Source(tmp_path / name)


def test_a_file_that_is_no_python_hides_its_names_alone(tmp_path: Path) -> None:
    files = {**small.FILES, "srt/broken.py": "def f(:\n"}
    source = Source(small.write(tmp_path, files))
    assert find(source, "sglang.srt.broken.f") is None
    assert find(source, "sglang.srt.a.plain") is not None
