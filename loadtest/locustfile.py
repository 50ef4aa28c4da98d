"""For plain Locust: `locust -f loadtest/locustfile.py --host http://localhost:30000`, its web UI, workers and all.

Every user keeps one request running; TTFT, TPOT and E2E of every profile appear as Locust's own statistics. One class
of users for each profile of --profile-mix, chosen by its share. --arrivals-per-second makes users send at random
instead (together a Poisson process, whatever is still running), --trace as it was recorded. For interleaved sweeps
with a report see `moe-opt loadtest`.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import numpy as np
from locust import User, events, task

from loadtest.api import APIS, Ask, encode
from loadtest.arms import parse_mix
from loadtest.arrivals import Arrival, trace
from loadtest.client import StreamClient
from loadtest.prompts import PromptSource, parse
from loadtest.record import CUT_OFF, Record, to_lines
from loadtest.session import BACK_OFF_S, resized
from loadtest.sweep import LEAST_VOCABULARY
from loadtest.target import Target, find_target

DEFAULT_MIX = "full=100"


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Options of this file; all of them show in the web UI, too."""
    group = parser.add_argument_group("moe-opt")
    add = group.add_argument
    add("--profile-mix", default=DEFAULT_MIX, env_var="MOE_OPT_PROFILE_MIX", help="PROFILE=SHARE,...: fast=70,full=30")
    add("--prompts", default="random:32", env_var="MOE_OPT_PROMPTS", help="random:LEN, mt-bench, jsonl:FILE, ..")
    add("--data-dir", default="", env_var="SGLANG_MOE_OPT_DATA", help="where the prompt files are")
    add("--output-len", type=int, default=32, env_var="MOE_OPT_OUTPUT_LEN", help="tokens of each answer")
    add("--api", default="auto", env_var="MOE_OPT_API", help="auto, generate, completions or chat")
    add(
        "--arrivals-per-second",
        type=float,
        default=0.0,
        env_var="MOE_OPT_RATE",
        help="of all users of a process, in an open loop; 0: closed loop",
    )
    add("--trace", default="", env_var="MOE_OPT_TRACE", help="CSV of arrivals to replay, dealt out to the users")
    add("--trace-speed", type=float, default=1.0, env_var="MOE_OPT_TRACE_SPEED", help="times as fast as recorded")
    add("--silence", type=float, default=60.0, env_var="MOE_OPT_SILENCE", help="seconds without a byte: failed")
    add("--records", default="", env_var="MOE_OPT_RECORDS", help="JSONL file to append every request to")
    add("--prompt-seed", type=int, default=0, env_var="MOE_OPT_SEED", help="of the prompts")


class StreamUser(User):
    """A user with one streaming connection, of one profile."""

    abstract = True
    profile: str
    hint: Any
    _numbers = itertools.count()

    def on_start(self) -> None:
        shared = self._shared = _by_environment[id(self.environment)]
        self._number = next(StreamUser._numbers)
        self._turn = itertools.count()
        self._client = self._connect()
        self._due = self._arrivals() if shared.is_open else None

    @task
    def request(self) -> None:
        """One request, or in an open loop the wait for the next one, which is then on its own."""
        if self._due is None:
            self._ask(self._client, self._body())
            return
        arrival = next(self._due, None)
        if arrival is None:
            gevent.sleep(1e9)  # the trace is over
            return
        body = self._body(arrival)
        gevent.sleep(max(0.0, self._shared.zero + arrival.at - time.monotonic()))
        gevent.spawn(self._ask_apart, body)

    def on_stop(self) -> None:
        self._client.close()

    def _connect(self) -> StreamClient:
        target = self._shared.target
        return StreamClient(target.url, target.api, self._shared.options.silence)

    def _arrivals(self) -> Iterator[Arrival]:
        """This user's: of a trace every so-manyth, else a Poisson process, which those of all users add up to."""
        shared = self._shared
        users = max(1, self.environment.runner.target_user_count if self.environment.runner else 1)
        if shared.trace:
            yield from shared.trace[self._number % users :: users]
            return
        random = np.random.default_rng([shared.options.prompt_seed, self._number])
        at = time.monotonic() - shared.zero
        while True:
            at += random.exponential(users / shared.options.arrivals_per_second)
            yield Arrival(at)

    def _body(self, arrival: Arrival | None = None) -> bytes:
        shared = self._shared
        prompt = shared.source.draw(self._number + 1009 * next(self._turn))
        ids, length = prompt.ids, prompt.output_len or shared.options.output_len
        if arrival is not None and arrival.output_tokens:
            ids, length = resized(ids, arrival.input_tokens), arrival.output_tokens
        ask = Ask(ids, prompt.text, length, self.hint)
        return encode(APIS[shared.target.api].body(ask, shared.target.model))

    def _ask_apart(self, body: bytes) -> None:
        client = self._connect()
        try:
            self._ask(client, body)
        finally:
            client.close()

    def _ask(self, client: StreamClient, body: bytes) -> None:
        record = client.ask(body, self.profile, self._shared.zero)
        if record.error == CUT_OFF:
            raise gevent.GreenletExit
        self._report(record)
        if record.failed:
            gevent.sleep(BACK_OFF_S)

    def _report(self, record: Record) -> None:
        fire = self.environment.events.request.fire
        about = {"request_type": "SSE", "response_length": record.output_tokens, "context": {}}
        error = RuntimeError(record.error) if record.failed else None
        fire(name=f"{self.profile} E2E", response_time=1000 * record.e2e, exception=error, **about)
        for name, seconds in (("TTFT", record.ttft), ("TPOT", record.tpot)):
            if seconds is not None:
                fire(name=f"{self.profile} {name}", response_time=1000 * seconds, exception=None, **about)
        if self._shared.options.records:
            with Path(self._shared.options.records).open("a", encoding="utf-8") as stream:
                stream.write(to_lines([record]))


class _Shared:
    """What the users of one process have in common."""

    def __init__(self, options: Any) -> None:
        needs_text = not options.prompts.startswith("random:")
        self.options = options
        self.target: Target = find_target(str(options.host), options.api, needs_text=needs_text)
        served = self.target.served
        self.source: PromptSource = parse(
            options.prompts,
            vocab_size=served.shape.vocab_size if served else LEAST_VOCABULARY,
            data_dir=options.data_dir or None,
            seed=options.prompt_seed,
        )
        self.trace = trace(options.trace, options.trace_speed, 1e9, 1 << 20, 1 << 20).arrivals if options.trace else ()
        self.is_open = bool(options.trace or options.arrivals_per_second)
        self.zero = time.monotonic()


_by_environment: dict[int, _Shared] = {}


@events.test_start.add_listener
def look_at_server(environment: Any, **_: Any) -> None:
    """Before any user starts; the web UI may have changed the host."""
    options = environment.parsed_options
    options.host = environment.host or options.host
    _by_environment[id(environment)] = _Shared(options)


def _classes(mix: str) -> dict[str, type[StreamUser]]:
    """A class of users for each profile."""
    return {
        f"User_{profile.label}": type(
            f"User_{profile.label}",
            (StreamUser,),
            {"profile": profile.label, "hint": profile.hint, "weight": share, "abstract": False},
        )
        for profile, share in parse_mix(mix)
    }


logging.getLogger("httpx").setLevel(logging.WARNING)
globals().update(_classes(os.environ.get("MOE_OPT_PROFILE_MIX", DEFAULT_MIX)))  # Locust wants users in the file


@events.init.add_listener
def choose_users(environment: Any, **_: Any) -> None:
    """The classes of --profile-mix, before any user starts."""
    gevent.get_hub().loop.update_now()  # else --run-time counts from before this file's imports
    chosen = _classes(environment.parsed_options.profile_mix)
    environment.user_classes = list(chosen.values())
    environment.available_user_classes = chosen
