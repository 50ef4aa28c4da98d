"""Measured losses by layer: the file, and what lies between its points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.pruning.ranking import rank
from sglang_moe_opt.pruning.sensitivity import Sensitivity
from tests.pruning.evidence import plain_shape

SHAPE = plain_shape(layers=2, experts=8, top_k=1)
RANKING = rank(np.zeros((2, 8)), SHAPE)


def test_losses_by_kept_count() -> None:
    """Layer 1 loses 1 x (removed / 2)^2 at the measured counts; layer 2 was measured once."""
    value = {"layers": {"1": {"6": 1.0, "4": 4.0}, "2": {"4": 0.16}}, "unit": "bits per byte"}
    loss = Sensitivity.from_object(value, SHAPE).loss(RANKING, None)
    removed = 8 - np.array(RANKING.counts)
    np.testing.assert_allclose(loss, [removed**2 / 4, removed**2 / 100], atol=1e-12)


def test_measured_points_are_met_whatever_they_are() -> None:
    measured = {"7": -0.1, "5": 0.3, "3": 0.2, "2": 2.0}
    loss = Sensitivity.from_object({"layers": {"1": measured, "2": 1}}, SHAPE).loss(RANKING, np.zeros((2, 8)))
    by_count = dict(zip(RANKING.counts, loss[0].tolist(), strict=True))
    assert {str(count): by_count[count] for count in (7, 5, 3, 2)} == pytest.approx(measured)
    assert by_count[8] == 0
    assert by_count[1] > 2.0


def test_weights_on_shares_lost() -> None:
    sensitivity = Sensitivity.from_object({"layers": {"1": 2, "2": 0.5}}, SHAPE)
    shares = np.linspace(1, 0, 8) * np.ones((2, 1))
    np.testing.assert_allclose(sensitivity.loss(RANKING, shares), [2 * shares[0], 0.5 * shares[1]])
    with pytest.raises(ValueError, match="weights on shares lost need statistics"):
        sensitivity.loss(RANKING, None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "sensitivity: got [], allowed: an object with the key layers"),
        ({"1": 2}, "sensitivity: got {'1': 2}, allowed: an object with the key layers"),
        ({"layers": {"1": 1, "2": 1}, "units": ""}, "sensitivity: got 'units', allowed: the keys layers, unit"),
        ({"layers": {"1": 1}}, "layers.2: got 'nothing', allowed: an entry for every MoE layer"),
        ({"layers": {"1": 1, "2": 1, "3": 1}}, "layers: got '3', allowed: the keys 1, 2"),
        ({"layers": {"1": -1, "2": 1}}, "layers.1: got -1, allowed: a weight >= 0, or"),
        ({"layers": {"1": {}, "2": 1}}, "layers.1: got {}, allowed: a weight >= 0, or"),
        ({"layers": {"1": {"8": 1}, "2": 1}}, "layers.1: got '8', allowed: kept experts 1 to 7"),
        ({"layers": {"1": {"²": 1}, "2": 1}}, "layers.1: got '\\xb2', allowed: kept experts 1 to 7"),
        ({"layers": {"1": {"4": "1"}, "2": 1}}, "layers.1.4: got '1', allowed: a number"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    file = tmp_path / "sensitivity.json"
    file.write_text(json.dumps(value))
    with pytest.raises(ValueError) as caught:
        Sensitivity.load(file, SHAPE)
    assert str(caught.value).startswith(f"{file}: {message}")
    with pytest.raises(FieldError):
        Sensitivity.from_object(value, SHAPE)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path}/none.json: sensitivity: got 'No such file"):
        Sensitivity.load(tmp_path / "none.json", SHAPE)
