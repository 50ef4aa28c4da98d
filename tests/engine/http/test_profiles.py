"""`/moe_opt/profiles` behind SGLang's own check of keys, on a real FastAPI application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_moe_opt.engine.http import resolver as resolver_module
from sglang_moe_opt.engine.http.middleware import setup_http_server
from sglang_moe_opt.engine.http.profiles import PATH
from sglang_moe_opt.engine.http.resolver import Resolver, get_resolver
from sglang_moe_opt.engine.http.scope import current_request
from sglang_moe_opt.engine.settings import CONFIG_ENV, LOG_ENV, Settings
from tests.engine.stand_ins import SHAPE

fastapi = pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
auth = pytest.importorskip("sglang.srt.utils.auth")
http_server = pytest.importorskip("sglang.srt.entrypoints.http_server")

ADMIN, USER = "admin-secret", "user-secret"


class Service:
    """An application as SGLang sets it up: our routes and middleware, then the check of keys."""

    def __init__(self, file: Path, monkeypatch: pytest.MonkeyPatch, api_key: str | None, admin_key: str | None) -> None:
        self.file = file
        file.write_text("profiles: {fast: {na: 2}}")
        monkeypatch.setenv(CONFIG_ENV, str(file))
        start = Resolver.create(Settings.from_env().load_policy(), SHAPE)
        monkeypatch.setattr(resolver_module, "_resolver", start)
        self.app = fastapi.FastAPI()
        monkeypatch.setattr(http_server, "app", self.app)
        self.app.post("/ask")(self.ask)
        setup_http_server(SimpleNamespace(admin_api_key=admin_key))
        if api_key or admin_key or auth.app_has_admin_force_endpoints(self.app):
            auth.add_api_key_middleware(self.app, api_key=api_key, admin_api_key=admin_key)
        self.during: Any = None

    async def ask(self) -> dict[str, Any]:
        scope, resolver = current_request(), get_resolver()
        assert scope is not None and resolver is not None
        _, hint = resolver.admit({"moe_skip": "fast"})
        scope.admit(resolver.live, hint)
        if self.during is not None:
            await self.during()
        again = get_resolver()
        return {"mean_na": hint.mean_na, "same_policy": again is resolver}

    async def send(self, method: str, path: str = PATH, key: str | None = None, **more: Any) -> Any:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            return await client.request(method, path, headers=headers, **more)

    def call(self, *args: Any, **more: Any) -> Any:
        return asyncio.run(self.send(*args, **more))


@pytest.fixture
def open_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    yield Service(tmp_path / "policy.yaml", monkeypatch, None, None)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    yield Service(tmp_path / "policy.yaml", monkeypatch, USER, ADMIN)


def test_reading_takes_the_api_key(service: Service) -> None:
    assert service.call("GET").status_code == 401
    assert service.call("GET", key=USER).status_code == 200


@pytest.mark.parametrize("key", [None, USER, "wrong", ADMIN + "x"])
def test_reloading_takes_the_admin_key(service: Service, key: str | None) -> None:
    service.file.write_text("profiles: {fast: {na: 3}}")
    assert service.call("POST", key=key).status_code == 401
    assert service.call("GET", key=USER).json()["profiles"]["fast"]["mean_na"] == 2
    assert service.call("POST", key=ADMIN).status_code == 200
    assert service.call("GET", key=USER).json()["profiles"]["fast"]["mean_na"] == 3


def test_the_admin_key_alone_leaves_requests_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(tmp_path / "policy.yaml", monkeypatch, None, ADMIN)
    assert service.call("GET").status_code == 200
    assert service.call("POST").status_code == 401
    assert service.call("POST", key=ADMIN).status_code == 200


@pytest.mark.parametrize("api_key", [None, USER])
def test_without_an_admin_key_nobody_reloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api_key: str | None
) -> None:
    service = Service(tmp_path / "policy.yaml", monkeypatch, api_key, None)
    answer = service.call("POST", key=api_key)
    assert answer.status_code == 403 and "--admin-api-key" in answer.json()["error"]["message"]
    assert service.call("GET", key=api_key).json()["reload"].startswith("off")


def test_a_server_without_keys_gets_no_middleware_for_them(open_service: Service) -> None:
    assert [entry.cls.__name__ for entry in open_service.app.user_middleware] == ["MoESkipMiddleware"]


def test_a_bad_file_is_refused_by_field_and_changes_nothing(service: Service) -> None:
    service.file.write_text("profiles: {fast: {na: two}}")
    answer = service.call("POST", key=ADMIN)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "profiles.fast.na"
    assert "got 'two'" in answer.json()["error"]["message"]
    state = service.call("GET", key=USER).json()
    assert (state["generation"], state["profiles"]["fast"]["mean_na"]) == (1, 2)
    assert state["refused"] == {}  # the operator's own


def test_a_body_is_not_taken_for_a_policy(service: Service) -> None:
    answer = service.call("POST", key=ADMIN, content=b"profiles: {}")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "body"


def test_a_dry_run_changes_nothing(service: Service) -> None:
    service.file.write_text("profiles: {fast: {na: 3}, more: {na: 1}}")
    answer = service.call("POST", key=ADMIN, path=f"{PATH}?dry_run=true").json()
    assert answer == {
        "generation": 2,
        "dry_run": True,
        "added": ["more"],
        "removed": [],
        "redefined": ["fast"],
        "fields": [],
    }
    assert service.call("GET", key=USER).json()["generation"] == 1


def test_a_request_sees_one_policy_to_its_end(service: Service) -> None:
    async def reload() -> None:
        service.file.write_text("profiles: {fast: {na: 3}}")
        assert (await service.send("POST", key=ADMIN)).status_code == 200

    service.during = reload
    answer = service.call("POST", "/ask", key=USER)
    assert answer.json() == {"mean_na": 2.0, "same_policy": True}
    assert answer.headers["x-moe-skip-mean-na"] == "2"
    service.during = None
    assert service.call("POST", "/ask", key=USER).json()["mean_na"] == 3


def test_reloads_come_one_after_another(service: Service) -> None:
    async def both() -> list[int]:
        service.file.write_text("profiles: {fast: {na: 3}}")
        answers = await asyncio.gather(*(service.send("POST", key=ADMIN) for _ in range(5)))
        return [answer.json()["generation"] for answer in answers]

    assert asyncio.run(both()) == [2] * 5


def test_what_the_server_says_of_itself(service: Service) -> None:
    async def look() -> None:
        state = (await service.send("GET", key=USER)).json()
        assert state["profiles"]["fast"]["in_flight"] == 1

    service.during = look
    assert service.call("POST", "/ask", key=USER).status_code == 200
    state = service.call("GET", key=USER).json()
    fast = state["profiles"]["fast"]
    assert (fast["requests"], fast["in_flight"], fast["dynamic"]) == (1, 0, False)
    assert len(fast["digest"]["prefill"]) == 32 and state["profiles"]["full"]["digest"]["decode"] == "full"
    assert state["policy"]["profiles"] == {"fast": {"na": 2}}
    assert state["file"] == "policy.yaml" and str(service.file.parent) not in json.dumps(state)
    assert state["model"] == {"moe_layers": 4, "top_k": 6}
    assert state["custom"]["live_schedules"] == 0


def test_events_as_json(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(LOG_ENV, "json")
    caplog.set_level("INFO", "sglang_moe_opt")
    service = Service(tmp_path / "policy.yaml", monkeypatch, None, ADMIN)
    service.file.write_text("profiles: {fast: {na: 3}}")
    service.call("POST", key=ADMIN)
    service.file.write_text("default: |\n  two\n  lines\n")
    service.call("POST", key=ADMIN)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["server_started", "policy_reloaded", "policy_refused"]
    assert [event["level"] for event in events] == ["info", "info", "warning"]
    assert events[0]["profiles"] == ["full", "fast"] and events[0]["reload"] is True
    assert events[1]["redefined"] == ["fast"] and events[1]["generation"] == 2
    assert events[2]["field"] == "default"
    assert {event["source"] for event in events} == {"sglang-moe-opt"}


def test_events_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    service = Service(tmp_path / "policy.yaml", monkeypatch, None, ADMIN)
    service.file.write_text("profiles: {fast: {na: two}}")
    service.call("POST", key=ADMIN)
    lines = [record.getMessage() for record in caplog.records if record.name.endswith(".events")]
    assert lines[0].startswith("sglang-moe-opt: version 0.") and "policy policy.yaml; profiles full, fast" in lines[0]
    assert (
        lines[1]
        == "sglang-moe-opt: policy not reloaded: profiles.fast.na: got 'two', allowed: an integer from 0 to 1024"
    )
