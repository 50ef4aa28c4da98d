"""The tokenizer manager's side: resolve hints, hand them to the scheduler, report them in ``meta_info``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from sglang_moe_opt.engine.http.live import LiveSchedules
from sglang_moe_opt.engine.request import WIRE_KEY
from sglang_moe_opt.engine.settings import Settings
from sglang_moe_opt.engine.setup import model_shape
from sglang_moe_opt.hints import FIELD, HintError, ResolvedHint, resolve
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy

HINT_KEY = "moe_skip"


class WireHint(str):
    """A hint that this process has resolved: its text for the scheduler, with the schedule it stands for.

    A client can send text under the same key, but never this type.
    """

    hint: ResolvedHint


@dataclass(frozen=True)
class Resolver:
    """Policy and model as the HTTP process knows them, and the custom schedules in flight."""

    policy: Policy
    shape: MoEShape
    default: ResolvedHint
    live: LiveSchedules = field(compare=False)

    @classmethod
    def create(cls, policy: Policy, shape: MoEShape) -> Resolver:
        policy.check(shape)
        return cls(policy, shape, resolve(None, policy, shape), LiveSchedules(policy.max_live_schedules))

    def admit(self, custom_params: Any, header: str | None = None) -> tuple[Any, ResolvedHint]:
        """Resolve the hint in a request's ``custom_params``; without one, that of the header, then the default.

        Returns:
            ``custom_params`` as the scheduler shall get it, and the schedule.

        Raises:
            HintError: the hint is wrong.
        """
        params = custom_params if isinstance(custom_params, dict) else {}
        wire = params.get(WIRE_KEY)
        if isinstance(wire, WireHint):
            return custom_params, wire.hint
        if wire is not None:
            raise HintError(f"custom_params.{WIRE_KEY}", wire, "nothing: this key is internal, use moe_skip")
        value = params.get(HINT_KEY)
        if value is None and header is None:
            hint = self.default
        elif value is None:
            hint = resolve(header, self.policy, self.shape, "header x-moe-skip")
        else:
            hint = resolve(value, self.policy, self.shape, FIELD)
        if HINT_KEY not in params and hint is self.default:
            return custom_params, hint
        text = WireHint(hint.to_wire())
        text.hint = hint
        rest = {key: item for key, item in params.items() if key != HINT_KEY}
        return {**rest, WIRE_KEY: text}, hint


_resolver: Resolver | None = None


def get_resolver() -> Resolver | None:
    """The process's resolver; None where skipping is not configured."""
    return _resolver


def tokenizer_manager_init(result: None, manager: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``TokenizerManager.__init__``."""
    global _resolver
    settings = Settings.from_env()
    _resolver = Resolver.create(settings.load_policy(), model_shape(manager.model_config)) if settings.enabled else None


def create_tokenized_object(original: Callable[..., Any], manager: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND ``_create_tokenized_object``: hints of the Python engine and of endpoints without an admission hook."""
    if _resolver is None or not isinstance(obj.sampling_params, dict):
        return original(manager, obj, *args, **kwargs)
    before = obj.sampling_params.get("custom_params")
    params, _ = _resolver.admit(before)
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
    if _resolver is None or not isinstance(obj.sampling_params, dict):
        return responses
    _, hint = _resolver.admit(obj.sampling_params.get("custom_params"))
    return _annotated(responses, describe(hint))


def describe(hint: ResolvedHint) -> dict[str, Any]:
    """What a response says of its schedule: the profile and the mean number of routed experts per MoE layer."""
    return {
        "profile": hint.profile,
        "mean_na": hint.mean_na,
        "dynamic": not (hint.prefill.is_static and hint.decode.is_static),
    }


async def _annotated(responses: AsyncIterator[dict], info: dict[str, Any]) -> AsyncIterator[dict]:
    async with aclosing(responses):  # type: ignore[type-var]
        async for response in responses:
            response["meta_info"]["moe_skip"] = info
            yield response
