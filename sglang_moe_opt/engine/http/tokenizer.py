"""The tokenizer manager's side: resolve hints, hand them to the scheduler, report them in ``meta_info``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from sglang_moe_opt.engine.http.resolver import Resolver, get_resolver, set_resolver
from sglang_moe_opt.engine.request import WIRE_KEY
from sglang_moe_opt.engine.settings import Settings
from sglang_moe_opt.engine.setup import model_shape
from sglang_moe_opt.hints import ResolvedHint


def tokenizer_manager_init(result: None, manager: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``TokenizerManager.__init__``."""
    settings = Settings.from_env()
    shape = model_shape(manager.model_config) if settings.enabled else None
    set_resolver(None if shape is None else Resolver.create(settings.load_policy(), shape))


def create_tokenized_object(original: Callable[..., Any], manager: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND ``_create_tokenized_object``: hints of the Python engine and of endpoints without an admission hook."""
    resolver = get_resolver()
    if resolver is None or not isinstance(obj.sampling_params, dict):
        return original(manager, obj, *args, **kwargs)
    before = obj.sampling_params.get("custom_params")
    params, _ = resolver.admit(before, in_session=has_session(obj))
    if params is not before:
        obj.sampling_params = {**obj.sampling_params, "custom_params": params}
    tokenized = original(manager, obj, *args, **kwargs)
    sent = tokenized.sampling_params.custom_params
    if isinstance(sent, dict) and WIRE_KEY in sent:
        # Plain text: msgpack refuses a subclass of str, and pickle would carry the tables along.
        tokenized.sampling_params.custom_params = {**sent, WIRE_KEY: str(sent[WIRE_KEY])}
    return tokenized


def wait_one_response(
    original: Callable[..., AsyncIterator[dict]], manager: Any, obj: Any, *args: Any, **kwargs: Any
) -> AsyncIterator[dict]:
    """AROUND ``_wait_one_response``: every answer's ``meta_info`` says which schedule it ran under."""
    responses = original(manager, obj, *args, **kwargs)
    resolver = get_resolver()
    if resolver is None or not isinstance(obj.sampling_params, dict):
        return responses
    _, hint = resolver.admit(obj.sampling_params.get("custom_params"), in_session=has_session(obj))
    return _annotated(responses, describe(hint))


def has_session(request: Any) -> bool:
    """Whether a request continues on the KV cache of a session's earlier turns."""
    return bool(getattr(request, "session_params", None))


def describe(hint: ResolvedHint) -> dict[str, Any]:
    """What a response says of its schedule: the profile and the mean number of routed experts per MoE layer."""
    return {
        "profile": hint.profile,
        "mean_na": hint.mean_na,
        "dynamic": hint.is_dynamic,
    }


async def _annotated(responses: AsyncIterator[dict], info: dict[str, Any]) -> AsyncIterator[dict]:
    async with aclosing(responses):  # type: ignore[type-var]
        async for response in responses:
            response["meta_info"]["moe_skip"] = info
            yield response
