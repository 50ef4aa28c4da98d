"""Statistics survive being saved, and a folder that holds none says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sglang_moe_opt.pruning.statistics import PER_EXPERT, ExpertStatistics


@pytest.fixture
def statistics() -> ExpertStatistics:
    rng = np.random.default_rng(0)
    sums = {name: rng.random((2, 4)) for name in PER_EXPERT}
    return ExpertStatistics(
        (1, 3), 17, **sums, coactivation=rng.random((2, 4, 4)), provenance={"corpus": {"name": "a"}}
    )


def test_saved_statistics_are_read_back(statistics: ExpertStatistics, tmp_path: Path) -> None:
    statistics.save(tmp_path / "new")
    back = ExpertStatistics.load(tmp_path / "new")
    assert (back.layer_ids, back.tokens, back.num_experts) == ((1, 3), 17, 4)
    assert back.provenance == {"corpus": {"name": "a"}}
    for name, array in statistics.tensors().items():
        np.testing.assert_array_equal(back.tensors()[name], array)
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"statistics.json", "statistics.safetensors"}


def test_shapes_must_fit(statistics: ExpertStatistics) -> None:
    with pytest.raises(ValueError, match=r"soft: shape \(2, 5\), expected \(2, 4\)"):
        replace(statistics, soft=np.zeros((2, 5)))
    with pytest.raises(ValueError, match="coactivation"):
        replace(statistics, coactivation=np.zeros((2, 4, 5)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("statistics.json", None, "expected the folder of a finished calibration"),
        ("statistics.json", b'{"format": 1', "Expecting"),
        ("statistics.json", b'{"format": 2}', "format 1"),
        ("statistics.safetensors", b"short", "eader"),
    ],
)
def test_a_folder_without_statistics_is_named(
    statistics: ExpertStatistics, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    statistics.save(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        ExpertStatistics.load(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
