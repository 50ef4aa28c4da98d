"""One point inside a client process: its clock, who asks what under which hint, and what came of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import gevent
from gevent.event import Event

from loadtest.api import APIS, Ask, encode
from loadtest.arrivals import Arrival, poisson, trace
from loadtest.client import StreamClient
from loadtest.prompts import PromptSource, parse
from loadtest.record import CUT_OFF, Record
from loadtest.spec import PointSpec

BACK_OFF_S = 0.25
"""Rest after a failure, so that a dead server is not asked thousands of times a second."""


class Session:
    """Shared by the users of one point.

    Users take numbers as they come; user u of n asks prompts u, u + n, u + 2n, ..., under the profile that its number
    falls to, so that every arm and every round deals the same.
    """

    def __init__(self, spec: PointSpec, source: PromptSource | None = None) -> None:
        self.spec = spec
        self.records: list[Record] = []
        self.gate = Event()
        self.over = Event()
        self.zero = 0.0
        self.first_sent: dict[int, float] = {}
        self.first_idle: float | None = None
        self._idle = 0
        self._numbers = itertools.count(spec.part, spec.parts)
        self._source = source or parse(spec.prompts, vocab_size=spec.vocab_size, data_dir=spec.data_dir, seed=spec.seed)
        self._profiles = _deal(spec.hints)

    def open(self, zero: float) -> None:
        """Let the users begin at `zero` of `time.monotonic()`."""
        self.zero = zero
        self.gate.set()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.zero

    def client(self) -> StreamClient:
        return StreamClient(self.spec.url, self.spec.api, self.spec.silence_s, self.spec.headers)

    def number(self) -> int:
        """The next user's."""
        return next(self._numbers)

    def body(self, index: int, output_len: int | None = None, input_len: int | None = None) -> tuple[str, bytes]:
        """The profile and the JSON of the request with this number."""
        total = self.spec.parsed_load.concurrency or 1
        profile, hint = self._profiles[index % total % len(self._profiles)]
        prompt = self._source.draw(index)
        ask = Ask(
            resized(prompt.ids, input_len), prompt.text, output_len or prompt.output_len or self.spec.output_len, hint
        )
        return profile, encode(APIS[self.spec.api].body(ask, self.spec.model))

    def bodies(self, number: int) -> Iterator[tuple[str, bytes]]:
        """What the user with this number asks, one after the other."""
        total = self.spec.parsed_load.concurrency or 1
        mine: Iterator[int] = itertools.count(number, total)
        if self.spec.requests is not None:
            mine = iter(range(number, max(self.spec.requests, number + 1), total))
        return (self.body(index) for index in mine)

    def wants_more(self) -> bool:
        """Whether a user who has an answer goes on."""
        return self.spec.requests is not None or self.elapsed < self.spec.seconds

    def sent(self, number: int) -> None:
        self.first_sent.setdefault(number, self.elapsed)

    def add(self, record: Record) -> None:
        self.records.append(record)

    def idle(self) -> None:
        """A user has nothing more to do."""
        if self.first_idle is None:
            self.first_idle = self.elapsed
        self._idle += 1
        if self._idle >= self.spec.users:
            self.over.set()

    def arrivals(self) -> list[Arrival]:
        """Of this process, in an open loop."""
        spec, load = self.spec, self.spec.parsed_load
        if load.kind == "trace":
            assert spec.trace is not None
            found = trace(spec.trace, load.value, spec.seconds, spec.max_input, spec.output_len).arrivals
            return list(found)[spec.part :: spec.parts]
        times = poisson(load.value / spec.parts, spec.seconds, spec.seed * spec.parts + spec.part)
        return [Arrival(at, 0, 0) for at in times]

    @property
    def cut_off(self) -> int:
        return sum(record.error == CUT_OFF for record in self.records)


def run_closed(session: Session) -> None:
    """One user: asks, waits for the answer, asks again."""
    number = session.number()
    client = session.client()
    bodies = session.bodies(number)
    following = next(bodies, None)
    session.gate.wait()
    total = session.spec.parsed_load.concurrency or 1
    gevent.sleep(max(0.0, session.spec.ramp_s * number / total - session.elapsed))
    try:
        while following is not None:
            profile, body = following
            session.sent(number)
            record = client.ask(body, profile, session.zero)
            session.add(record)
            if record.error == CUT_OFF:
                raise gevent.GreenletExit
            if record.failed:
                gevent.sleep(BACK_OFF_S)
            following = next(bodies, None) if session.wants_more() else None
        session.idle()
    finally:
        client.close()


def run_open(session: Session) -> None:
    """All arrivals of this process: each is asked when it is due, whatever is still on the way."""
    arrivals = session.arrivals()
    session.gate.wait()
    running: list[gevent.Greenlet] = []
    try:
        for k, arrival in enumerate(arrivals):
            index = session.spec.part + k * session.spec.parts
            prepared = session.body(index, arrival.output_tokens or None, arrival.input_tokens or None)
            gevent.sleep(max(0.0, arrival.at - session.elapsed))
            session.sent(0)
            running.append(gevent.spawn(_ask_once, session, *prepared))
        gevent.joinall(running)
    finally:
        gevent.killall(running)
    session.idle()


def resized(ids: tuple[int, ...] | None, length: int | None) -> tuple[int, ...] | None:
    """Token ids repeated or cut to a length, where one is given; texts are left as they are."""
    return ids if ids is None or not length else tuple(itertools.islice(itertools.cycle(ids), length))


def _ask_once(session: Session, profile: str, body: bytes) -> None:
    client = session.client()
    try:
        session.add(client.ask(body, profile, session.zero))
    finally:
        client.close()


def _deal(hints: dict[str, tuple[object, float]]) -> list[tuple[str, object]]:
    """100 seats in the shares of the profiles, spread evenly (largest remainder at every seat)."""
    if len(hints) == 1:
        return [(label, hint) for label, (hint, _) in hints.items()]
    whole = sum(share for _, share in hints.values())
    given = dict.fromkeys(hints, 0)
    seats: list[tuple[str, object]] = []
    for seat in range(1, 101):
        label = max(hints, key=lambda name: hints[name][1] / whole * seat - given[name])
        given[label] += 1
        seats.append((label, hints[label][0]))
    return seats
