"""Weights and factors from a checkpoint, against the sums written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sglang_moe_opt.magnitude.sample import check_folder, draw_rows, fit_factors, output_products, router_weights  # noqa: E402
from sglang_moe_opt.model_shape import MoEShape  # noqa: E402
from sglang_moe_opt.pruning.moe_layer import MoELayer, Tensors  # noqa: E402
from sglang_moe_opt.pruning.statistics import INPUTS_FILE, input_name  # noqa: E402
from sglang_moe_opt.schedule import SkipSchedule  # noqa: E402
from tests.magnitude.checkpoint import TOKENS, make_calibrated  # noqa: E402
from tests.pruning.evidence import make_statistics  # noqa: E402


@pytest.fixture(scope="module", params=["v2", "v3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_calibrated(tmp_path_factory.mktemp("magnitude"), request.param)


def test_weights_are_the_routers_in_the_order_of_its_choice(model: Path) -> None:
    found = router_weights(model, model.parent / "statistics")
    assert found.weights.shape == (2, TOKENS, 3)
    shape = MoEShape.from_path(model)
    with Tensors(model) as tensors:
        for index, layer_id in enumerate(found.layer_ids):
            router = MoELayer.read(tensors, layer_id).router
            x = torch.from_numpy(_inputs(model, layer_id))
            logits = router.logits(x)
            scores = logits.sigmoid() if shape.scoring == "sigmoid" else logits.softmax(-1)
            choice = scores if router.bias is None else scores + router.bias
            weights, ids = router(x)
            chosen = choice.gather(1, ids)
            assert (chosen.diff(dim=1) <= 0).all()
            np.testing.assert_allclose(found.weights[index], weights.numpy() / router.scale, rtol=1e-5)


def test_factors_are_least_squares(model: Path) -> None:
    statistics = model.parent / "statistics"
    found = router_weights(model, statistics)
    table = SkipSchedule(min_ratio=0.9, rescale=1.0).expand(MoEShape.from_path(model))
    keep = found.kept(table)
    assert 0.3 < keep.mean() < 0.95, "some are dropped, some are not"
    factors = fit_factors(found, output_products(model, statistics), table)
    with Tensors(model) as tensors:
        for index, layer_id in enumerate(found.layer_ids):
            layer = MoELayer.read(tensors, layer_id)
            x = torch.from_numpy(_inputs(model, layer_id))
            weights, ids = layer.router(x)
            out = torch.stack([torch.stack([layer.expert(int(e))(x[t]) for e in row]) for t, row in enumerate(ids)])
            whole = (weights.unsqueeze(-1) * out).sum(1).flatten().numpy()
            kept = ((weights * torch.from_numpy(keep[index])).unsqueeze(-1) * out).sum(1).flatten().numpy()
            solved = np.linalg.lstsq(kept[:, None], whole, rcond=None)[0][0]
            assert factors[index] == pytest.approx(solved, rel=2e-3)


def test_factors_where_nothing_or_everything_is_dropped(model: Path) -> None:
    statistics = model.parent / "statistics"
    found, products = router_weights(model, statistics), output_products(model, statistics)
    for na in (0, 3):
        table = SkipSchedule(na=na).expand(MoEShape.from_path(model))
        assert fit_factors(found, products, table) == (1.0, 1.0)


def test_a_sample_that_is_large_goes_through_in_parts(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = output_products(model, model.parent / "statistics")
    monkeypatch.setattr("sglang_moe_opt.magnitude.sample.MOST_OUTPUT_BYTES", 7 * 4 * whole.shape[2] * 16)
    np.testing.assert_allclose(output_products(model, model.parent / "statistics"), whole, rtol=1e-4, atol=1e-6)


def test_rows_are_drawn_by_seed(model: Path) -> None:
    statistics = model.parent / "statistics"
    assert draw_rows(model, statistics, None, 0) is None
    assert draw_rows(model, statistics, TOKENS, 0) is None
    rows, again, other = (draw_rows(model, statistics, 20, seed) for seed in (0, 0, 1))
    assert rows is not None and len(set(rows.tolist())) == 20
    assert np.array_equal(rows, again) and not np.array_equal(rows, other)
    whole, drawn = router_weights(model, statistics), router_weights(model, statistics, rows)
    np.testing.assert_allclose(drawn.weights, whole.weights[:, rows], rtol=1e-5)


def test_statistics_of_another_model_are_refused(model: Path, tmp_path: Path) -> None:
    shape = MoEShape.from_path(model)
    make_statistics(shape, provenance={"job": {"model": "0" * 32}}).save(tmp_path)
    with pytest.raises(ValueError, match="fingerprint"):
        check_folder(model, tmp_path)
    make_statistics(shape).save(tmp_path)
    check_folder(model, tmp_path)
    with pytest.raises(ValueError, match="moe-opt calibrate --sample writes it"):
        router_weights(model, tmp_path)


def _inputs(model: Path, layer_id: int) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(model.parent / "statistics" / INPUTS_FILE)[input_name(layer_id)]
