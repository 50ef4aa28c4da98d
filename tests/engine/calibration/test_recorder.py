"""Which tokens count, and that a dump holds what was recorded since the last one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang_moe_opt.engine.calibration import DUMP_FILE, JOB_FILE, piece_of, request_id
from sglang_moe_opt.engine.calibration.recorder import Job, Recorder
from sglang_moe_opt.model_shape import MoEShape

# pieces of 4, 3 and 5 tokens
JOB = Job(torch.tensor([0, 4, 7, 12]), torch.tensor([1, 3, 4, 10]))
SHAPE = MoEShape(3, (1, 2), 2, 4, 0, False, "softmax")


def test_request_ids() -> None:
    assert [piece_of(rid) for rid in (request_id(17), "HEALTH_CHECK_1", "17", "moe-opt-calibrate-x")] == [17] + [
        None
    ] * 3


@pytest.mark.parametrize(
    ("rids", "prefix", "extend", "rows", "sampled"),
    [
        # a warm-up before a whole piece
        (["warm-up", request_id(1)], [0, 0], [2, 3], [2, 3, 4], [4]),
        # the middle of a piece, computed in chunks
        ([request_id(2)], [2], [2], [0, 1], [10]),
        # a generated token behind the piece, and one that is computed together with the end of its prompt
        ([request_id(0), request_id(1)], [4, 2], [1, 2], [1], []),
        ([], [], [], [], []),
    ],
)
def test_prompt_tokens_of_pieces_count(
    rids: list[str], prefix: list[int], extend: list[int], rows: list[int], sampled: list[int]
) -> None:
    step = JOB.step(rids, prefix, extend)
    assert (step.rows.tolist(), step.sampled.tolist()) == (rows, sampled)
    assert len(step.sampled_rows) == len(sampled)


def batch(rids: list[str], lens: list[int], decoding: bool = False) -> Any:
    mode = SimpleNamespace(is_extend=lambda: not decoding)
    stream = SimpleNamespace(residual=torch.randn(sum(lens), 6, generator=torch.Generator().manual_seed(1)))
    return SimpleNamespace(
        rids=rids,
        extend_prefix_lens_cpu=[0] * len(lens),
        extend_seq_lens_cpu=lens,
        forward_mode=mode,
        residual_stream=stream,
    )


def moe(layer_id: int, fused: bool = False) -> Any:
    generator = torch.Generator().manual_seed(layer_id)
    w13, w2 = torch.randn(4, 10, 6, generator=generator), torch.randn(4, 6, 5, generator=generator)
    experts = SimpleNamespace(w13_weight=w13, w2_weight=w2)
    return SimpleNamespace(
        layer_id=layer_id,
        top_k=2,
        experts=experts,
        routed_scaling_factor=2.0,
        routed_scaling_factor_fused_in_topk=fused,
    )


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    save_file({"starts": JOB.starts, "sample": JOB.sample}, tmp_path / JOB_FILE)
    return Recorder(tmp_path, SHAPE, "cpu")


def step(recorder: Recorder, forward_batch: Any, fused: bool = False) -> torch.Tensor:
    """One forward pass whose tokens all choose experts 3 and 0; returns the inputs."""
    count = len(forward_batch.residual_stream.residual)
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(2))
    # a third slot is that of a fused shared expert
    ids = torch.tensor([[3, 0, 4]], dtype=torch.int32).repeat(count, 1)
    weights = torch.tensor([[0.75, 0.5, 1.0]]).repeat(count, 1) * (2 if fused else 1)
    for layer_id in (1, 2):
        recorder.record(moe(layer_id, fused), forward_batch, x, ids, weights)
    return x


@pytest.mark.parametrize("fused", [False, True])
def test_a_dump_has_what_came_since_the_last(recorder: Recorder, tmp_path: Path, fused: bool) -> None:
    step(recorder, batch(["warm-up"], [5]))
    x = step(recorder, batch([request_id(1), request_id(0)], [3, 4]), fused)
    step(recorder, batch([request_id(2)], [1], decoding=True))
    recorder.dump()
    first = load_file(tmp_path / DUMP_FILE)
    assert first["tokens"].tolist() == [7]
    assert first["layer_ids"].tolist() == [1, 2]
    assert first["hard"].tolist() == [[7, 0, 0, 7]] * 2
    assert first["soft"].tolist() == [[3.5, 0, 0, 5.25]] * 2
    assert first["sampled"].tolist() == [1, 3, 4]
    torch.testing.assert_close(first["model.layers.2.mlp.input"], x[[4, 6, 0]])
    assert 0 < first["easy_ep"][0, 3] < 2 * first["reap"][0, 3]
    step(recorder, batch([request_id(2)], [5]))
    recorder.dump()
    second = load_file(tmp_path / DUMP_FILE)
    assert (second["tokens"].tolist(), second["sampled"].tolist()) == ([5], [10])


def test_layers_that_differ_are_no_result(recorder: Recorder) -> None:
    count, x = 3, torch.randn(3, 6)
    ids, weights = torch.tensor([[3, 0]]).repeat(count, 1), torch.ones(count, 2)
    recorder.record(moe(1), batch([request_id(1)], [3]), x, ids, weights)
    with pytest.raises(RuntimeError, match=r"saw \[3, 0\] tokens"):
        recorder.dump()
