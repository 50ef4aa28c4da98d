"""The bytes of the three APIs: everything that a stream consists of, made before it begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from sglang_moe_opt.fields import FieldError, is_int


@dataclass(frozen=True)
class Stream:
    """What is sent of one answer, as HTTP chunks.

    Attributes:
        opening: at once, before any token.
        tokens: one for each token.
        closing: with the last token's chunk.
        whole: the answer without streaming, as one JSON body.
    """

    opening: bytes
    tokens: tuple[bytes, ...]
    closing: bytes
    whole: bytes


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


END = b"0\r\n\r\n"


def event(content: Any) -> bytes:
    """One server-sent event as an HTTP chunk."""
    return chunk(b"data: " + orjson.dumps(content) + b"\n\n")


DONE = chunk(b"data: [DONE]\n\n") + END
ERROR = event({"error": {"message": "out of order", "code": 500}}) + DONE
TORN = b'20\r\ndata: {"choices": [{"te'


def stream(path: str, body: Mapping[str, Any]) -> Stream:
    """The answer to a request. Raises KeyError, TypeError, AttributeError or ValueError for what is no request."""
    if path == "/generate":
        return _generate(body)
    return _openai(body, is_chat=path == "/v1/chat/completions")


def _generate(body: Mapping[str, Any]) -> Stream:
    tokens = _count("max_new_tokens", body["sampling_params"]["max_new_tokens"])
    prompt = _length(body.get("input_ids") if "input_ids" in body else body["text"])

    def content(count: int) -> dict[str, Any]:
        finish = {"type": "length", "length": tokens} if count == tokens else None
        meta = {"id": "0", "prompt_tokens": prompt, "completion_tokens": count, "finish_reason": finish}
        return {"text": "a" * count, "output_ids": [97] * count, "meta_info": meta}

    return Stream(b"", tuple(event(content(k)) for k in range(1, tokens + 1)), DONE, orjson.dumps(content(tokens)))


def _openai(body: Mapping[str, Any], *, is_chat: bool) -> Stream:
    tokens = _count("max_tokens", body["max_tokens"])
    prompt = _length(body["messages"][0]["content"] if is_chat else body["prompt"])
    usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
    if is_chat:
        opening = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        token = event({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]})
        last = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": "a" * tokens}}
    else:
        opening, last = b"", b""
        token = event({"choices": [{"index": 0, "text": "a", "finish_reason": None}]})
        choice = {"text": "a" * tokens}
    closing = [last]
    if (body.get("stream_options") or {}).get("include_usage"):
        closing.append(event({"choices": [], "usage": usage}))
    whole = {"choices": [{"index": 0, **choice, "finish_reason": "length"}], "usage": usage}
    return Stream(opening, (token,) * tokens, b"".join(closing) + DONE, orjson.dumps(whole))


def _count(field: str, value: Any) -> int:
    """A stream without a token would have no time to end at."""
    if not is_int(value) or value < 1:
        raise FieldError(field, value, "a whole number from 1")
    return value


def _length(prompt: Any) -> int:
    """Tokens: ids as they are, of texts the words."""
    return len(prompt.split()) if isinstance(prompt, str) else len(prompt)


def response(status: int, body: bytes, content_type: str = "application/json") -> bytes:
    """A whole HTTP response."""
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def facts(model: str | None, context: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the server says of itself, path by path; with a model's folder it says so as SGLang does."""
    yield "/health", {}
    yield "/v1/models", {"data": [{"id": model or "none", "max_model_len": context}]}
    if model is None:
        return
    yield "/model_info", {"model_path": model, "tokenizer_path": model}
    yield "/server_info", {"dtype": "float32", "launch_command": "", "skip_tokenizer_init": False}
