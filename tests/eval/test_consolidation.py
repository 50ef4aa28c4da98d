"""Quality of consolidation by teacher forcing: the model in batches, and what the numbers are made into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eval.consolidation.__main__ import main
from eval.consolidation.arms import Arm, standard_arms
from eval.consolidation.figure import png
from eval.consolidation.summary import Measured, against_plain, from_record, summarise, to_record

CHECKPOINTS = Path(__file__).parents[2] / "eval" / "reference_models" / "checkpoints"


def measured(name: str, distinct: float, nats: list[float], right: list[float] | None = None) -> Measured:
    return Measured(
        name,
        np.array([distinct, distinct]),
        np.array(nats),
        np.full(len(nats), 100.0),
        None if right is None else np.array(right),
    )


PLAIN = [
    measured("na=2", 40, [100.0, 110.0, 90.0], [1, 1, 0, 1]),
    measured("na=1", 20, [104.0, 114.2, 93.8], [1, 0, 0, 1]),
]


def test_against_plain_is_interpolated_batch_by_batch() -> None:
    same = measured("own 1", 30, [102.0, 112.1, 91.9], [1, 0.5, 0, 1])
    found = against_plain(same, PLAIN)
    assert found is not None and found["between"] == ["na=1", "na=2"]
    assert found["change_percent"]["value"] == 0 == found["cloze_points"]["value"]
    better = against_plain(measured("own 1", 25, [100.0, 110.0, 90.0]), PLAIN)
    assert better is not None and better["change_percent"]["interval"][1] < 0
    assert against_plain(measured("own 4", 50, [1.0, 1.0, 1.0]), PLAIN) is None


def test_summary_and_figure() -> None:
    joint = [measured("own 1", 25, [100.5, 110.4, 90.6], [1, 1, 0, 1]), measured("own 1 cap 24", 24, [101.0, 111, 91])]
    rows = summarise(PLAIN, joint)
    assert [row["arm"] for row in rows] == ["na=2", "na=1", "own 1", "own 1 cap 24"]
    assert rows[0]["change_percent"] is None and rows[1]["change_percent"]["value"] == pytest.approx(4.0, abs=0.1)
    assert rows[2]["cloze_points"]["value"] == 0 and "cloze_percent" not in rows[3]
    assert png("mini", {"16": rows, "32": rows}).startswith(b"\x89PNG")


def test_records_round_trip() -> None:
    again = from_record(to_record(PLAIN[0]))
    assert again.name == "na=2" and again.right is not None
    assert (again.nats == PLAIN[0].nats).all() and again.mean_distinct == 40


def test_arms_have_names_of_their_own() -> None:
    for groups in (1, 8):
        plain, joint = standard_arms(8, 64, groups)
        names = [arm.name for arm in (*plain, *joint)]
        assert len(set(names)) == len(names) and names[0] == "na=8"
        assert any(arm.in_groups for arm in joint) == (groups > 1)


@pytest.fixture(scope="module", params=["mini-v2", "mini-v3"])
def model(request: pytest.FixtureRequest):
    from eval.consolidation.model import BatchedModel

    return BatchedModel(CHECKPOINTS / request.param), CHECKPOINTS / request.param


def batch_of(texts: list[list[int]], prompt: int):
    from eval.consolidation.model import Batch

    return Batch.of(texts, [prompt] * len(texts), [prompt] * len(texts), 0)


def random_texts(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 4096, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.slow
def test_the_full_arm_is_the_model(model) -> None:
    from sglang_moe_opt.pruning.student import load_teacher

    ours, folder = model
    batch = batch_of(random_texts([12, 9]), 3)
    teacher = load_teacher(folder, torch.float32, "cpu")
    with torch.inference_mode():
        expected = teacher(batch.ids, use_cache=False).logits
    torch.testing.assert_close(ours.logits(batch, Arm(ours.shape.top_k)), expected, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_alone_a_text_runs_under_its_own_experts(model) -> None:
    ours, _ = model
    batch = batch_of(random_texts([12]), 3)
    alone = ours.logits(batch, Arm(ours.shape.top_k, k0=2))
    torch.testing.assert_close(alone, ours.logits(batch, Arm(2)), rtol=0, atol=2e-4)
    assert not torch.allclose(alone, ours.logits(batch, Arm(ours.shape.top_k)), atol=1e-2)


@pytest.mark.slow
def test_company_changes_decoding_and_not_the_prompt(model) -> None:
    ours, _ = model
    texts = random_texts([12, 12, 12])
    alone, joint = (ours.logits(batch_of(some, 5), Arm(ours.shape.top_k, k0=1)) for some in (texts[:1], texts))
    torch.testing.assert_close(joint[0, :5], alone[0, :5], rtol=0, atol=2e-4)
    assert not torch.allclose(joint[0, 5:], alone[0, 5:], atol=1e-2)


@pytest.mark.slow
def test_a_capped_step_touches_no_more(model) -> None:
    ours, _ = model
    batch = batch_of(random_texts([10] * 12), 2)
    _, own = ours.nats(batch, Arm(ours.shape.top_k, k0=1))
    _, capped = ours.nats(batch, Arm(ours.shape.top_k, k0=1, max_experts=24))
    _, full = ours.nats(batch, Arm(ours.shape.top_k))
    assert all(a <= 24.01 for a in capped[12])
    assert all(a <= b <= c for a, b, c in zip(own[12], capped[12], full[12], strict=True))


@pytest.mark.slow
def test_plain_skipping_counts_for_smaller_batches_in_the_same_pass(model) -> None:
    ours, _ = model
    texts = random_texts([10] * 8)
    _, both = ours.nats(batch_of(texts, 2), Arm(3), [4, 8])
    halves = [ours.nats(batch_of(half, 2), Arm(3))[1][4] for half in (texts[:4], texts[4:])]
    np.testing.assert_allclose(both[4], np.mean(halves, axis=0))
    np.testing.assert_allclose(both[8], ours.nats(batch_of(texts, 2), Arm(3))[1][8])


def test_steps_of_texts_that_end_apart() -> None:
    from eval.consolidation.model import Batch

    batch = Batch.of([[1, 2, 3, 4, 5], [6, 7, 8]], [1, 1], [3, 2], 2)
    assert batch.steps.tolist() == [[-1, 0, 1, 2, 3], [-1, 1, 2, -1, -1]]
    assert batch.scored.tolist() == [[False] * 3 + [True] * 2, [False, False, True, False, False]]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (["--batch", "24"], "batch: got 24, allowed: a divisor of 256 texts"),
        (["--texts", "32", "--batch", "32"], "texts: got 32, allowed: 64 or more; one batch has no interval"),
    ],
)
def test_sizes_that_do_not_fit_end_in_one_line(
    sizes: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "mini-v2", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out.json")]
    assert main([*options, "--journal", str(tmp_path / "journal.json"), *sizes]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}") and printed.count("\n") == 1
    assert not list(tmp_path.iterdir())
