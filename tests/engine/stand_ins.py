"""What the engine's tests share: a small model, a policy, and simple objects in place of SGLang's requests."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from sglang_moe_opt.engine.state import EngineState
from sglang_moe_opt.hints import ResolvedHint, resolve
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy

SHAPE = MoEShape(5, (1, 2, 3, 4), 6, 64, 2, False, "softmax")
POLICY = Policy.from_object({"min_na": 0, "max_live_schedules": 2, "profiles": {"fast": {"na": 2}}})


def hint(value: object = None, shape: MoEShape = SHAPE) -> ResolvedHint:
    """A request's schedule; None is the full model."""
    return resolve(value, POLICY, shape)


def make_state(shape: MoEShape = SHAPE, default: object = None, max_tokens: int = 64, **changed: Any) -> EngineState:
    """The scheduler's state on CPU; ``always_on=True`` is what an accelerator has."""
    state = EngineState.create(shape, POLICY, hint(default, shape), "cpu", max_tokens)
    for name, value in changed.items():
        setattr(state, name, value)
    return state


def request(value: object = None, prompt: int = 4, **changed: Any) -> SimpleNamespace:
    """A request that the hook on ``Req.__init__`` has seen."""
    return SimpleNamespace(moe_opt_hint=hint(value), origin_input_ids=array("q", range(prompt)), **changed)


def extend_batch(reqs: Sequence[Any], prefix_lens: list[int], extend_lens: list[int], mixed: bool = False) -> Any:
    """A batch that computes ``extend_lens`` tokens behind ``prefix_lens``; ``mixed`` carries decoding requests too."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    mode = ForwardMode.MIXED if mixed else ForwardMode.EXTEND
    return SimpleNamespace(reqs=list(reqs), forward_mode=mode, prefix_lens=prefix_lens, extend_lens=extend_lens)


def decode_batch(reqs: Sequence[Any]) -> Any:
    """A batch that decodes."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    return SimpleNamespace(reqs=list(reqs), forward_mode=ForwardMode.DECODE, prefix_lens=None, extend_lens=None)
