"""``/moe_opt/profiles``: the live policy with its statistics (GET), and its reload from the policy file (POST)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, Final

from sglang_moe_opt.engine.events import emit
from sglang_moe_opt.engine.http import statistics
from sglang_moe_opt.engine.http.reload import adopt, successor
from sglang_moe_opt.engine.http.resolver import get_resolver, set_resolver
from sglang_moe_opt.engine.http.tokenizer import describe
from sglang_moe_opt.engine.metrics import HttpMetrics
from sglang_moe_opt.engine.settings import Settings
from sglang_moe_opt.fields import FieldError, show
from sglang_moe_opt.hints import ResolvedHint
from sglang_moe_opt.policy import CUSTOM, PolicyError

PATH: Final = "/moe_opt/profiles"


class Profiles:
    """The endpoint's two methods."""

    def __init__(self, metrics: HttpMetrics, has_admin_key: bool) -> None:
        self._metrics, self._has_admin_key = metrics, has_admin_key
        self._one_at_a_time = asyncio.Lock()
        self._loaded_at = _now()

    async def get(self) -> dict[str, Any]:
        """The policy in force, each profile on this model, and what ran under it since the start."""
        resolver = get_resolver()
        assert resolver is not None  # the route is there only with a policy
        counts = await asyncio.to_thread(statistics.computed, resolver.shape.top_k)
        running = resolver.live.in_flight.by_profile()

        def served(name: str) -> dict[str, Any]:
            seen = {"requests": self._metrics.requests[name], "in_flight": running[name]}
            return seen if counts is None else {**seen, "computed": counts.get(name)}

        return {
            "generation": resolver.generation,
            "loaded_at": self._loaded_at,
            "file": Settings.from_env().policy_name,
            "policy": resolver.policy.model_dump(mode="json"),
            "model": {"moe_layers": len(resolver.shape.moe_layer_ids), "top_k": resolver.shape.top_k},
            "profiles": {name: {**_identity(hint), **served(name)} for name, hint in resolver.profile_hints().items()},
            "custom": {**served(CUSTOM), "live_schedules": len(resolver.live)},
            "refused": {str(status): number for status, number in sorted(self._metrics.refused.items())},
            "reload": "with the admin key" if self._has_admin_key else "off: start with --admin-api-key",
        }

    async def reload(self, body: bytes, dry_run: bool) -> tuple[dict[str, Any], int]:
        """Read the policy file anew; the answer and its HTTP status. With ``dry_run`` only say what would change."""
        if not self._has_admin_key:
            message = "the policy is reloaded with the admin key only: start the server with --admin-api-key"
            return {"error": {"message": message, "param": None, "code": 403}}, 403
        async with self._one_at_a_time:
            current = get_resolver()
            assert current is not None
            try:
                if body:
                    raise PolicyError("body", f"{len(body)} bytes", "none: the server reads its policy file anew")
                after, change = await asyncio.to_thread(successor, current, Settings.from_env())
            except FieldError as error:
                emit("policy_refused", f"policy not reloaded: {error}", is_error=True, **_refusal(error))
                return {"error": {"message": str(error), "param": error.field, "code": 400}}, 400
            answer = {"generation": after.generation, "dry_run": dry_run, **change.to_object()}
            if change and not dry_run:
                self._loaded_at = _now()
                adopt(after)
                set_resolver(after)
                emit("policy_reloaded", f"policy reloaded: {answer}", **answer)
            return answer, 200


def add_routes(app: Any, metrics: HttpMetrics, has_admin_key: bool) -> None:
    """Serve the endpoint: reading like any other request, reloading under SGLang's admin key and never without one."""
    from sglang.srt.utils.auth import AuthLevel, auth_level
    from starlette.responses import JSONResponse

    profiles = Profiles(metrics, has_admin_key)

    async def get_profiles() -> dict[str, Any]:
        return await profiles.get()

    # Not ADMIN_FORCE: one such endpoint makes SGLang match every request of a server without keys against all routes.
    @auth_level(AuthLevel.ADMIN_OPTIONAL)
    async def reload_profiles(request: Any) -> Any:
        dry_run = request.query_params.get("dry_run", "").lower() in ("1", "true")
        answer, status = await profiles.reload(await request.body(), dry_run)
        return JSONResponse(answer, status_code=status)

    app.add_api_route(PATH, get_profiles, methods=["GET"])
    app.add_route(PATH, reload_profiles, methods=["POST"])


def _identity(hint: ResolvedHint) -> dict[str, Any]:
    """What a profile does here; equal digests share a cache namespace."""
    return {**describe(hint), "digest": {"prefill": hint.prefill.digest, "decode": hint.decode.digest}}


def _refusal(error: FieldError) -> dict[str, str]:
    return {"field": error.field, "value": show(error.value), "allowed": error.allowed}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
