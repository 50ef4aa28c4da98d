"""The server says which plan it runs under, wherever that was named."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_moe_opt.engine.http.middleware import setup_http_server
from sglang_moe_opt.engine.settings import CONFIG_ENV, PRUNE_ENV
from sglang_moe_opt.plan import PrunePlan

fastapi = pytest.importorskip("fastapi")
testclient = pytest.importorskip("fastapi.testclient")


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> object:
    http_server = pytest.importorskip("sglang.srt.entrypoints.http_server")
    app = fastapi.FastAPI()
    monkeypatch.setattr(http_server, "app", app)
    return app


@pytest.fixture
def plan(tmp_path: Path) -> PrunePlan:
    made = PrunePlan(model="0" * 32, num_experts=4, layers={1: (0, 2), 2: (1, 2, 3)}, method={"criterion": "odd"})
    made.save(tmp_path / "half.json")
    return made


def ask(app: object) -> object:
    answer = testclient.TestClient(app).get("/moe_prune_plan")
    return answer.json() if answer.status_code == 200 else answer.status_code


def test_a_server_without_policy_and_plan_is_left_as_it_is(app: object) -> None:
    setup_http_server("server_args")
    assert ask(app) == 404


def test_a_server_of_the_whole_model_says_so(app: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_ENV, "builtin")
    setup_http_server("server_args")
    assert ask(app) is None


@pytest.mark.parametrize("named_by", ["environment", "policy"])
def test_the_plan_comes_with_its_file(
    app: object, plan: PrunePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_by: str
) -> None:
    if named_by == "environment":
        monkeypatch.setenv(PRUNE_ENV, str(tmp_path / "half.json"))
    else:
        (tmp_path / "policy.yaml").write_text("prune_plan: half.json\n")
        monkeypatch.setenv(CONFIG_ENV, str(tmp_path / "policy.yaml"))
    setup_http_server("server_args")
    said = ask(app)
    assert said["file"] == str(tmp_path / "half.json")
    assert PrunePlan.from_object(said["plan"]) == plan
