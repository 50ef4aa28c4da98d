"""A calibration's folder: groups are taken once and whole, added up at the end, and never mixed with another's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sglang_moe_opt.pruning.calibration import Calibration
from sglang_moe_opt.pruning.corpus import Corpus
from sglang_moe_opt.pruning.statistics import PER_EXPERT, ExpertStatistics

EXPERTS, HIDDEN = 4, 3


@pytest.fixture
def calibration(tmp_path: Path) -> Calibration:
    corpus = Corpus(tuple(np.full(length, length, np.int32) for length in (3, 5, 2, 6, 4)))
    return Calibration(tmp_path / "out", corpus, corpus.sample(7, 0), {"corpus": "a.txt", "tokens": corpus.tokens}, 8)


def dump(calibration: Calibration, index: int, **changed: Any) -> Path:
    """What a server writes for a group; every sum is the group's number of tokens."""
    group, starts = calibration.groups[index], calibration.corpus.starts
    tokens = calibration.tokens_of(group)
    sampled = [number for number in calibration.sample if starts[group.start] <= number < starts[group.stop]]
    tensors = {name: np.full((2, EXPERTS), float(tokens)) for name in PER_EXPERT}
    tensors |= {
        "coactivation": np.full((2, EXPERTS, EXPERTS), float(tokens)),
        "layer_ids": np.array([1, 2]),
        "tokens": np.array([tokens]),
        "sampled": np.array(sampled, np.int64),
        **{f"model.layers.{one}.mlp.input": np.tile(np.array(sampled, np.float32)[:, None], HIDDEN) for one in (1, 2)},
    }
    file = calibration.group_file(index).with_name("dump.safetensors")
    file.parent.mkdir(exist_ok=True)
    save_file(tensors | changed, file)
    return file


def test_groups_add_up_to_the_corpus(calibration: Calibration) -> None:
    assert calibration.groups == [range(0, 2), range(2, 4), range(4, 5)]
    calibration.open()
    for index in (2, 0, 1):
        assert index in calibration.missing()
        calibration.keep(index, dump(calibration, index))
        assert index not in calibration.missing()
    calibration.open()  # as a second command does
    calibration.finish(["moe-opt", "calibrate"])
    found = ExpertStatistics.load(calibration.folder)
    assert (found.tokens, found.layer_ids) == (20, (1, 2))
    assert np.all(found.hard == 20)
    assert np.all(found.coactivation == 20)
    assert found.provenance["job"] == calibration.job
    assert found.provenance["command"] == ["moe-opt", "calibrate"]
    inputs = load_file(calibration.folder / "inputs.safetensors")
    np.testing.assert_array_equal(inputs["model.layers.2.mlp.input"][:, 0], calibration.sample)
    names = {file.name for file in calibration.folder.iterdir()}
    assert names == {"statistics.json", "statistics.safetensors", "inputs.safetensors", "corpus.safetensors"}
    calibration.open()
    assert calibration.is_finished


def test_tokens_missing_or_twice_are_no_group(calibration: Calibration) -> None:
    calibration.open()
    with pytest.raises(RuntimeError, match="recorded 9 of the 8 tokens"):
        calibration.keep(1, dump(calibration, 1, tokens=np.array([9])))
    assert calibration.missing() == [0, 1, 2]


def test_a_sample_that_is_not_whole_is_no_result(calibration: Calibration) -> None:
    calibration.open()
    for index in range(3):
        calibration.keep(index, dump(calibration, index, **({"sampled": np.array([0])} if index == 1 else {})))
    with pytest.raises(RuntimeError, match="not those of the sample"):
        calibration.finish([])
    assert not calibration.is_finished


@pytest.mark.parametrize("finished", [False, True])
def test_another_job_is_refused(calibration: Calibration, finished: bool) -> None:
    calibration.open()
    if finished:
        for index in range(3):
            calibration.keep(index, dump(calibration, index))
        calibration.finish([])
    other = replace(calibration, job={**calibration.job, "tokens": 21})
    with pytest.raises(ValueError, match="was begun with tokens 20, not 21") as caught:
        other.open()
    assert str(calibration.folder) in str(caught.value)


def test_names_may_change(calibration: Calibration) -> None:
    calibration.open()
    replace(calibration, job={**calibration.job, "corpus": "elsewhere/a.txt"}).open()


def test_a_folder_of_something_else_is_left_alone(calibration: Calibration) -> None:
    calibration.folder.mkdir()
    (calibration.folder / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        calibration.open()
    assert [file.name for file in calibration.folder.iterdir()] == ["thesis.txt"]


def test_large_corpora_have_few_groups(calibration: Calibration) -> None:
    corpus = Corpus(tuple(np.zeros(4, np.int32) for _ in range(1000)))
    assert len(replace(calibration, corpus=corpus).groups) <= 64
