"""Admission at the HTTP endpoints: a bad hint is answered with 400 or 429 before the response begins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from sglang_moe_opt.engine.events import request_refused
from sglang_moe_opt.engine.http.resolver import HINT_KEY, Resolver, get_resolver
from sglang_moe_opt.engine.http.scope import current_request
from sglang_moe_opt.engine.http.tokenizer import has_session
from sglang_moe_opt.hints import FIELD, HintError


async def serve_generate_request(original: Callable[..., Awaitable[Any]], obj: Any, request: Any) -> Any:
    """AROUND the handler of ``/generate``; ``sampling_params`` is one object or one per prompt."""
    resolver = get_resolver()
    if resolver is not None:
        try:
            _admit_generate(resolver, obj)
        except HintError as error:
            from sglang.srt.entrypoints.http_server import ORJSONResponse

            request_refused(error)
            content = {"error": {"message": str(error), "param": error.field, "code": error.status}}
            return ORJSONResponse(content, status_code=error.status, headers=_retry_after(error))
    return await original(obj, request)


def _admit_generate(resolver: Resolver, obj: Any) -> None:
    params = obj.sampling_params
    batch = params if isinstance(params, list) else [params]
    admitted = []
    for one in batch:
        one = {} if one is None else one
        if not isinstance(one, dict):
            admitted.append(one)
            continue
        before = one.get("custom_params")
        after = _admit(resolver, before, has_session(obj))
        _refuse_sessions(obj, before)
        admitted.append(one if after is before else {**one, "custom_params": after})
    obj.sampling_params = admitted if isinstance(params, list) else admitted[0]


async def handle_openai_request(
    original: Callable[..., Awaitable[Any]], serving: Any, request: Any, raw_request: Any
) -> Any:
    """AROUND ``OpenAIServingBase.handle_request``: completions, chat completions and their relatives."""
    resolver = get_resolver()
    if resolver is not None and hasattr(request, "custom_params"):
        try:
            params = _admit(resolver, request.custom_params, has_session(request))
            _refuse_sessions(request, request.custom_params)
            request.custom_params = params
        except HintError as error:
            request_refused(error)
            response = serving.create_error_response(
                str(error), err_type="BadRequestError", status_code=error.status, param=error.field
            )
            response.headers.update(_retry_after(error) or {})
            return response
    return await original(serving, request, raw_request)


def _admit(resolver: Resolver, custom_params: Any, in_session: bool) -> Any:
    scope = current_request()
    params, hint = resolver.admit(custom_params, scope.header if scope else None, in_session=in_session)
    if scope is not None:
        scope.admit(resolver.live, hint)
    return params


def _refuse_sessions(request: Any, custom_params: Any) -> None:
    """A session continues on the KV cache of its earlier turns, whatever schedule those ran under."""
    if not has_session(request):
        return
    scope = current_request()
    if isinstance(custom_params, dict) and HINT_KEY in custom_params:
        raise HintError(FIELD, custom_params[HINT_KEY], "no hint together with session_params")
    if scope is not None and scope.header is not None:
        raise HintError("header x-moe-skip", scope.header, "no hint together with session_params")


def _retry_after(error: HintError) -> dict[str, str] | None:
    return {"retry-after": "1"} if error.status == 429 else None
