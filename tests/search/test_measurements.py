"""CSV files of measured schedules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.search.measurements import Measurements, PlainShape
from sglang_moe_opt.shapes import ShapeSpec

SHAPE = PlainShape(4, 6)


def load(folder: Path, text: str, **options: object) -> Measurements:
    file = folder / "scores.csv"
    file.write_text(text)
    return Measurements.load(file, SHAPE, **options)  # type: ignore[arg-type]


def test_bhep(tmp_path: Path) -> None:
    data = load(tmp_path, "b,h,e,p,paper_avg,mean_na\n6,4,2,4,65.5,9\n2,2,2,1,60.25,9\n")
    assert data.tables.tolist() == [[6, 5, 5, 2], [2, 2, 2, 2]]  # e wins at the last layer
    assert data.scores.tolist() == [65.5, 60.25]
    assert data.mean_na.tolist() == [4.5, 2.0]  # of the tables, not of the file
    assert data.column == "paper_avg"
    assert data.rules[0].schedule == (6, 4, 2, 4)


@pytest.mark.parametrize("layers", ["6 5 4 3", '"6,5,4,3"', '"[6, 5, 4, 3]"'])
def test_layers(tmp_path: Path, layers: str) -> None:
    data = load(tmp_path, f"layers,acc\n{layers},1.5\n")
    assert data.tables.tolist() == [[6, 5, 4, 3]]


def test_a_row_may_have_layers_or_bhep(tmp_path: Path) -> None:
    data = load(tmp_path, "b,h,e,p,layers,score\n6,4,2,4,,1\n,,,,6 5 4 3,2\n")
    assert data.tables.tolist() == [[6, 5, 5, 2], [6, 5, 4, 3]]


def test_p_can_count_all_layers(tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    file.write_text("b,h,e,p,score\n6,4,2,5,1\n")
    shape = MoEShape.from_config(ShapeSpec.parse("deepseek-v2-lite@5").config())
    assert Measurements.load(file, shape, layer_base="all").tables.tolist() == [[6, 5, 5, 2]]


def test_which_column_is_the_score(tmp_path: Path) -> None:
    text = "layers,loss,acc,mine\n6 5 4 3,1,2,3\n"
    assert load(tmp_path, text).scores.tolist() == [2]
    assert load(tmp_path, text, column="mine").scores.tolist() == [3]
    assert not load(tmp_path, text, column="mine").lower_is_better
    assert load(tmp_path, text, column="mine", lower_is_better=True).sign == -1
    assert load(tmp_path, text, column="loss").lower_is_better


def test_repeats(tmp_path: Path) -> None:
    data = load(tmp_path, "layers,score\n6 6 6 6,1\n6 6 6 7,3\n2 2 2 2,5\n")
    assert len(set(data.groups)) == 2
    assert data.repeat_deviation == pytest.approx(np.sqrt(2))
    assert data.repeats(np.array([6, 6, 6, 6])).tolist() == [1, 3]
    assert load(tmp_path, "layers,score\n6 6 6 6,1\n").repeat_deviation is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("b,h,e,p,score\n6,4,2,4,1\n6,x,2,4,1\n", "line 3, h: got 'x', allowed: an integer"),
        ("b,h,e,p,score\n6,4,2,5,1\n", "line 2, p: got 5, allowed: an integer from 1 to 4 (p, over the MoE layers)"),
        ("b,h,e,p,score\n6,4,-2,4,1\n", "line 2, e: got -2, allowed: an integer from 0"),
        ("b,h,e,p,score\n6,4,2,4,\n", "line 2, score: got '', allowed: a finite number"),
        ("b,h,e,p,score\n6,4,2,4,nan\n", "line 2, score: got 'nan', allowed: a finite number"),
        ("b,h,e,p,score\n6,4,2,4\n", "line 2, score: got None, allowed: a finite number"),
        ("b,h,e,p,score\n6,4\n", "line 2, e: got None, allowed: an integer"),
        ("layers,score\n6 5 4,1\n", "line 2, layers: got [6, 5, 4]"),
        ("layers,score\n6 5 4 y,1\n", "line 2, layers[3]: got 'y', allowed: an integer"),
        ("layers,score\n,1\n", "line 2, layers: got '', allowed: the experts of each MoE layer"),
        (
            "b,h,e,score\n6,4,2,1\n",
            "line 1, header: got 'b,h,e,score', allowed: columns b, h, e, p, or a column layers",
        ),
        ("layers,points\n6 5 4 3,1\n", "line 1, header: got 'layers,points', allowed: a score column: score, "),
        ("", "line 1, header: got ''"),
        ("layers,score\n", "no measurements below the header"),
        ('layers,score\n"6 5', "not a CSV file"),
    ],
)
def test_errors_name_file_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"scores\.csv: ") as caught:
        load(tmp_path, text)
    assert str(caught.value).removeprefix(f"{tmp_path / 'scores.csv'}: ").startswith(message)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="score column: got 'f1', allowed: layers, score"):
        load(tmp_path, "layers,score\n6 5 4 3,1\n", column="f1")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        Measurements.load(tmp_path / "absent.csv", SHAPE)


def test_a_plain_shape_has_layers() -> None:
    with pytest.raises(ValueError, match="top-k: got 0"):
        PlainShape(4, 0)
