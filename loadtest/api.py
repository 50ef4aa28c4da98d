"""The three streaming APIs that a server may be asked through: what a request says, and what its events mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a prompt as token ids or as text, the length of its answer, and the hint (None sends none)."""

    ids: Sequence[int] | None
    text: str | None
    output_len: int
    hint: Any = None


@dataclass(frozen=True, slots=True)
class Event:
    """What one event of a stream said.

    Attributes:
        has_tokens: it brought output tokens.
        input_tokens, output_tokens: usage so far, where it said that.
        error: what the server complained of.
    """

    has_tokens: bool
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None


class Api(Protocol):
    """One way to ask."""

    path: str

    def body(self, ask: Ask, model: str) -> dict[str, Any]:
        """The request as JSON: greedy, streamed, of exactly `output_len` tokens where the server can do that."""
        ...

    def read(self, event: Mapping[str, Any]) -> Event:
        """The meaning of one event. KeyError or TypeError where it is not what this API sends."""
        ...


class Generate:
    """SGLang's own: takes token ids without a tokenizer, counts tokens in every event."""

    path = "/generate"

    def body(self, ask: Ask, model: str) -> dict[str, Any]:
        sampling: dict[str, Any] = {"temperature": 0, "max_new_tokens": ask.output_len, "ignore_eos": True}
        if ask.hint is not None:
            sampling["custom_params"] = {"moe_skip": ask.hint}
        prompt = {"input_ids": list(ask.ids)} if ask.ids is not None else {"text": ask.text}
        return {**prompt, "sampling_params": sampling, "stream": True}

    def read(self, event: Mapping[str, Any]) -> Event:
        if "error" in event:
            return Event(False, error=_message(event))
        meta = event["meta_info"]
        return Event(True, meta["prompt_tokens"], meta["completion_tokens"])


class _OpenAI:
    path: str

    def body(self, ask: Ask, model: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": model,
            "temperature": 0,
            "max_tokens": ask.output_len,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if ask.hint is not None:
            body["custom_params"] = {"moe_skip": ask.hint}
        return body | self._prompt(ask)

    def read(self, event: Mapping[str, Any]) -> Event:
        if "error" in event or event.get("object") == "error":
            return Event(False, error=_message(event))
        usage = event.get("usage") or {}
        choices = event["choices"]
        return Event(
            bool(choices) and self._has_tokens(choices[0]), usage.get("prompt_tokens"), usage.get("completion_tokens")
        )

    def _prompt(self, ask: Ask) -> dict[str, Any]:
        raise NotImplementedError

    def _has_tokens(self, choice: Mapping[str, Any]) -> bool:
        raise NotImplementedError


class Completions(_OpenAI):
    """OpenAI's completions: text or token ids. A chunk may carry a token whose text is not complete yet."""

    path = "/v1/completions"

    def _prompt(self, ask: Ask) -> dict[str, Any]:
        return {"prompt": list(ask.ids) if ask.ids is not None else ask.text}

    def _has_tokens(self, choice: Mapping[str, Any]) -> bool:
        return "text" in choice


class Chat(_OpenAI):
    """OpenAI's chat completions: one user message. The first chunk names the role, the last the end: no text."""

    path = "/v1/chat/completions"

    def _prompt(self, ask: Ask) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": ask.text}]}

    def _has_tokens(self, choice: Mapping[str, Any]) -> bool:
        delta = choice["delta"]
        return bool(delta.get("content") or delta.get("reasoning_content"))


APIS: dict[str, Api] = {"generate": Generate(), "completions": Completions(), "chat": Chat()}


def encode(body: Mapping[str, Any]) -> bytes:
    """The JSON of a request."""
    return orjson.dumps(body)


def _message(event: Mapping[str, Any]) -> str:
    error = event.get("error", event)
    message = error.get("message", error) if isinstance(error, Mapping) else error
    return " ".join(str(message).split())[:80]
