"""The checks before any task: every kind of server whose scores would mean nothing is refused."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from eval import canary
from eval.canary import Canary, check_server
from eval.endpoint import EndpointError
from eval.plans import NamedPlan
from eval.schedules import parse_profiles, resolve_all
from eval.served import ServedModel, connect
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.plan import PrunePlan
from sglang_moe_opt.policy import Policy
from tests.eval.fake_server import fake_server
from tests.eval.small_data import CHECKPOINT, weightless_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weightless_model(tmp_path_factory.mktemp("model"))


def check(model: Path, fault: str, profiles: str = "full,fast", policy: Policy | None = None) -> Canary:
    with fake_server(model, fault) as server:
        served = connect(server.url)
        policy = policy or served.policy()
        return check_server(served, resolve_all(parse_profiles(profiles), policy, served.shape), policy)


def test_a_good_server_passes_and_says_what_was_not_compared(model: Path) -> None:
    found = check(model, "none")
    assert found.max_difference is None
    assert "no weights to read" in str(found.skipped)
    assert found.hint_effect is not None
    assert found.hint_effect > 0.1
    assert "not compared with Hugging Face" in str(found)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("no_logprobs", "no log-probabilities of the prompt"),
        ("no_echo", "does not echo"),
        ("nan", "not finite"),
        ("constant", "every score would be chance"),
        ("ignores_hint", "ignores the hint: with 1 of 6 experts every log-probability is that of the full model"),
        ("no_header", "ignores the hint (no x-moe-skip header"),
        ("wrong_header", "x-moe-skip: got 'full', expected 'fast'"),
        ("wrong_mean_na", "name the server's policy file with --config"),
        ("refuses", "HTTP 400"),
    ],
)
def test_a_bad_server_is_refused_with_the_reason(model: Path, fault: str, complaint: str) -> None:
    with pytest.raises(EndpointError) as error:
        check(model, fault)
    assert complaint in str(error.value)
    assert str(error.value).startswith("http://127.0.0.1:")
    assert len(str(error.value).splitlines()) == 1


def test_a_hint_is_checked_even_where_only_full_runs(model: Path) -> None:
    with pytest.raises(EndpointError, match="ignores the hint"):
        check(model, "ignores_hint", "full")


def test_without_custom_schedules_a_profile_is_the_probe(model: Path) -> None:
    policy = Policy.from_object({"profiles": {"fast": {"na": 2}}, "allow_custom": False})
    with pytest.raises(EndpointError, match="with 2 of 6 experts"):
        check(model, "ignores_hint", "full,fast", policy)
    assert check(model, "none", "full", policy).hint_effect is None


@pytest.mark.slow
def test_other_weights_than_the_servers_are_noticed(model: Path, tmp_path: Path) -> None:
    weights = CHECKPOINT / "model.safetensors"
    if not weights.exists():
        pytest.skip(f"no trained checkpoint at {CHECKPOINT}")
    folder = weightless_model(tmp_path)
    shutil.copy(weights, folder)
    with pytest.raises(EndpointError, match=r"differ from Hugging Face's on the same weights .* allowed for float32"):
        check(folder, "none")


@pytest.mark.parametrize(
    ("is_pruned", "most", "mean", "passes"),
    [
        (False, 0.6, 0.06, True),
        (False, 0.1, 0.1, False),
        (False, 0.9, 0.06, False),
        (True, 0.1, 0.1, True),
        (True, 0.9, 0.09, True),
        (True, 0.2, 0.2, False),
        (True, 1.6, 0.09, False),
    ],
)
def test_a_plan_may_differ_a_little_more_and_a_whole_model_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_pruned: bool, most: float, mean: float, passes: bool
) -> None:
    experts = {1: (0, 1)}
    plan = NamedPlan("half", tmp_path / "half.json", PrunePlan(model="0" * 32, num_experts=4, layers=experts))
    served = ServedModel("http://a", "m", "m", "m", "bfloat16", 64, {}, None, plan if is_pruned else None)
    count = 101
    others = (mean * count - most) / (count - 1)
    monkeypatch.setattr(canary, "_reference", lambda *_: ([-2.0] * count, None))
    with nullcontext() if passes else pytest.raises(EndpointError, match="differ from Hugging Face's"):
        canary._compare(served, list(range(count + 1)), [-2.0 + most] + [-2.0 - others] * (count - 1))


def test_the_address_of_no_server_is_named(model: Path) -> None:
    with pytest.raises(FieldError, match="--url: got 'localhost:30000'"):
        connect("localhost:30000")
    with pytest.raises(EndpointError, match=r"http://127\.0\.0\.1:9: cannot be reached"):
        connect("http://127.0.0.1:9")


def test_what_a_server_says_of_itself(model: Path) -> None:
    with fake_server(model) as server:
        served = connect(server.url + "/v1/")
        assert served.url == server.url
        assert (served.context, served.dtype, served.policy_source) == (256, "float32", "builtin")
        assert served.folder == model
        assert served.shape.top_k == 6
        assert served.policy() == Policy.builtin()
        before = served.fingerprint
        (model / "model.safetensors").write_bytes(b"weights")
        try:
            assert served.fingerprint != before
        finally:
            (model / "model.safetensors").unlink()
        assert served.fingerprint == before
