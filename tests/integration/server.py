"""Real servers for the tests: started once per kind, at most two at a time, always stopped."""

from __future__ import annotations

import atexit
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from checkpoints import checkpoint, has_text
from plans import write_plan

from sglang_moe_opt.exposition import total
from sglang_moe_opt.launch import plan_launch
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PrunePlan
from sglang_moe_opt.policy import Policy
from sglang_moe_opt.pruning.export import Export

MAX_ALIVE = 2
FIRST_PORT, LAST_PORT = 31000, 32768
START_DEADLINE_S = 600
LOG_TAIL = 200

POLICY = """\
profiles:
  balanced: {na: 4}
  fast: {na: 2}
  quick: {na: 2}
  lean: {na: 1}
  adaptive: {min_ratio: 0.2, min_na: 2}
  thrifty: {prefill: full, decode: {na: 1}}
  auto:
    auto:
      levels: [full, fast, lean]
      speedup: {fast: {1: 1.5, 2: 1.5, 4: 1.0}, lean: {1: 1.5, 2: 1.5, 4: 1.0}}
      hold_steps: 2
  wary: {auto: {levels: [full, fast], speedup: {fast: {1: 1.0}}}}
  together: {na: 8, consolidate: 2}
  apart: {na: 8, consolidate: 8}
default: full
allow_custom: true
min_na: 1
max_live_schedules: 64
consolidation: {max_batch: 40}
"""
"""Profiles of every server with a policy; `fast` and `quick` are two names of one schedule, `apart` is `full`. `auto`
decodes under `fast` alone and in full from four on, `wary` always in full."""


@dataclass(frozen=True)
class Kind:
    """What a server is started with. Equal kinds share one server.

    Attributes:
        model: name of a checkpoint.
        policy: with the policy of the tests; otherwise the plugin is loaded and skipping is not configured.
        plan: name of the plan that it is served under.
        exported: the checkpoint is written under the plan first, and that is served.
        args: further arguments of ``sglang serve``.
        env: environment variables on top of ours, as pairs.
    """

    model: str = "random-v2"
    dtype: str = "float32"
    policy: bool = True
    plan: str | None = None
    exported: bool = False
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


V2 = Kind()
V3 = Kind("random-v3", args=("--chunked-prefill-size", "400", "--enable-mixed-chunk"))
MINI_V2 = Kind("mini-v2")
MINI_V3 = Kind("mini-v3")
CHUNKED_UNISOLATED = Kind(
    args=("--chunked-prefill-size", "128"),
    env=(("SGLANG_MOE_OPT_CACHE_ISOLATION", "0"), ("SGLANG_MOE_OPT_CPU_KERNELS", "0")),
)
"""Three settings in one server, to save starts: chunks are tested without hints, where isolation has no part, and here
on upstream's own path; the servers of V3 test them on our kernels."""
UNCONFIGURED = Kind(policy=False)
EDITED = Kind(
    policy=False,
    args=("--json-model-override-args", '{"num_experts_per_tok": 2}', "--max-running-requests", "2"),
)
"""A smaller top-k from the config; few requests at a time, so that the others queue."""
ADMIN_KEY = "operator"
# SGLang gives each rank a NUMA node of its own; on a machine with fewer it must be told the cores.
_CORES = (("SGLANG_CPU_OMP_THREADS_BIND", "0|1" if (os.cpu_count() or 1) > 1 else "0|0"),)


def two_ranks(kind: Kind) -> Kind:
    """The same on two tensor-parallel ranks; these servers have an admin key as well, to save starts."""
    return replace(kind, args=(*kind.args, "--tp", "2", "--admin-api-key", ADMIN_KEY), env=_CORES)


def eventually(holds: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether the condition comes true in time: a server may answer before it has counted what it did."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@dataclass
class Server:
    """A running server."""

    kind: Kind
    model: Path
    url: str
    process: subprocess.Popen[bytes]
    log: Path
    client: httpx.Client = field(repr=False)

    @property
    def shape(self) -> MoEShape:
        return MoEShape.from_path(self.model)

    @property
    def policy(self) -> Policy:
        return Policy.load(self.log.with_suffix(".yaml"))

    @property
    def plan(self) -> PrunePlan:
        return PrunePlan.load(plan_file(self.log))

    def flush_cache(self) -> None:
        """Empty the prefix cache; waits for the requests that still run."""
        flushed = eventually(lambda: self.client.post("/flush_cache").status_code == 200)
        assert flushed, f"the prefix cache could not be flushed\n{self.log_tail()}"

    def generate(
        self,
        ids: list[int],
        hint: object = None,
        *,
        new_tokens: int = 64,
        params: dict[str, Any] | None = None,
        **body: Any,
    ) -> dict[str, Any]:
        """Greedy tokens for one prompt through ``/generate``, as the server's answer."""
        reply = self.client.post(
            "/generate", json=request_body(ids, hint, new_tokens=new_tokens, params=params, **body)
        )
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    def prompt_logprobs(self, ids: list[int], hint: object = None, *, start: int = 0) -> list[dict[int, float]]:
        """Log-probabilities at each position after ``start``: of the prompt's own token, the best five and a sample."""
        info = self.generate(
            ids,
            hint,
            new_tokens=1,
            return_logprob=True,
            logprob_start_len=start,
            top_logprobs_num=5,
            token_ids_logprob=list(range(0, 4096, 101)),
        )["meta_info"]
        own, top, sampled = (info[f"input_{name}_logprobs"] for name in ("token", "top", "token_ids"))
        positions = [
            {int(token): value for value, token, _ in [one, *(best or []), *(some or [])]}
            for one, best, some in zip(own, top, sampled, strict=True)
        ]
        return positions[1:]  # nothing comes before the first token

    def tokens(self, ids: list[int], hint: object = None, **body: Any) -> list[int]:
        """The greedy tokens alone."""
        ids_out: list[int] = self.generate(ids, hint, **body)["output_ids"]
        return ids_out

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that carry these labels, 0 where there are none."""
        return total(self.client.get("/metrics").text, name, **labels) or 0.0

    def is_well(self) -> bool:
        """Whether it still answers a normal request."""
        return self.process.poll() is None and len(self.tokens([11, 12, 13], new_tokens=2)) == 2

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL:])

    def stop(self) -> None:
        """End the process group at once: asked politely, a server waits seconds for requests that there are not."""
        self.client.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)


def request_body(
    ids: list[int], hint: object = None, *, new_tokens: int = 64, params: dict[str, Any] | None = None, **body: Any
) -> dict[str, Any]:
    """Body of a greedy ``/generate`` request; without a hint there are no custom parameters at all."""
    sampling: dict[str, Any] = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
    if hint is not None:
        sampling["custom_params"] = {"moe_skip": hint}
    return {"input_ids": ids, "sampling_params": sampling | (params or {}), **body}


class Servers:
    """Starts servers on demand and keeps the two that were used last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._alive: OrderedDict[Kind, Server] = OrderedDict()
        self._broken: dict[Kind, StartError] = {}
        self._ports = _free_ports()

    def get(self, kind: Kind) -> Server:
        """The server of this kind, started first where it is not alive; fails with the end of its log."""
        if kind in self._broken:  # not every test of it waits for the deadline
            raise self._broken[kind]
        server = self._alive.get(kind)
        if server is not None and server.process.poll() is not None:
            del self._alive[kind]
            pytest.fail(f"the server died with {server.process.returncode}:\n{server.log_tail()}", pytrace=False)
        if server is None:
            model = checkpoint(kind.model)  # may skip: before anything is stopped for it
            while len(self._alive) >= MAX_ALIVE:
                self._alive.popitem(last=False)[1].stop()
            server = self._alive[kind] = self._start(kind, model)
            try:
                _wait_until_ready(server)
            except BaseException as error:
                self._alive.pop(kind).stop()
                if isinstance(error, StartError):
                    self._broken[kind] = error
                raise
        self._alive.move_to_end(kind)
        return server

    def close(self) -> None:
        while self._alive:
            self._alive.popitem()[1].stop()

    def _start(self, kind: Kind, model: Path) -> Server:
        port = next(self._ports)
        log = self._folder / f"{kind.model}-{port}.log"
        policy = log.with_suffix(".yaml")
        policy.write_text(POLICY)
        # The gauge of running requests moves only when a decode step is logged.
        extra = ["--port", str(port), "--dtype", kind.dtype, "--decode-log-interval", "1", *kind.args]
        served = model
        if kind.plan is not None:
            plan_path = write_plan(kind.plan, model, plan_file(log))
            if kind.exported:
                served = log.with_suffix(".exported")
                Export.prepare(model, plan_path, served).write()
            else:
                extra += ["--moe-prune-plan", str(plan_path)]
        env = {name: value for name, value in os.environ.items() if not name.startswith("SGLANG_MOE_OPT_")}
        # Small models gain nothing from a second thread, and lose most of their speed where another process needs it.
        env.setdefault("OMP_NUM_THREADS", "1")
        # Huge pages pay over hours; a start is quicker without.
        env.setdefault("PYTHONMALLOC", "pymalloc")
        env.setdefault("GLIBC_TUNABLES", "")
        if kind.policy:
            ours = ["--model", str(served), "--config", str(policy)]
            command = ["-m", "sglang_moe_opt.cli.main", "serve", *ours, *extra]
        else:
            plan = plan_launch(str(served), on_cpu=True, extra=extra, policy=None)
            command = ["-m", "sglang_moe_opt.cli.sglang_serve", *plan.argv]
            env = {**plan.env, **env}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**env, **dict(kind.env)},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        url = f"http://127.0.0.1:{port}"
        # Connections for a whole batch at a time, kept open; a prompt may take long on a busy machine.
        client = httpx.Client(base_url=url, timeout=300, limits=httpx.Limits(max_connections=200), trust_env=False)
        return Server(kind, model, url, process, log, client)


def plan_file(log: Path) -> Path:
    """Where the plan of the server with this log lies."""
    return log.with_suffix(".plan.json")


def start_servers(folder: Path) -> Iterator[Servers]:
    """A manager that stops its servers whatever happens, also when pytest is interrupted."""
    servers = Servers(folder)
    atexit.register(servers.close)
    try:
        yield servers
    finally:
        servers.close()
        atexit.unregister(servers.close)


def needs_text(server: Server) -> None:
    """Skip the test where the model has no tokenizer."""
    if not has_text(server.model):
        pytest.skip("no tokenizer: the trained checkpoint, whose tokenizer the random models borrow, is not there")


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise StartError(f"the server ended with {server.process.returncode}:\n{server.log_tail()}")
        try:
            if server.client.get("/health", timeout=20).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise StartError(f"the server was not ready after {START_DEADLINE_S} s:\n{server.log_tail()}")


class StartError(RuntimeError):
    """A server that did not come up; the message ends with its log."""


def _die_with_parent() -> None:
    """Have the kernel end the server if pytest is killed before it can."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _free_ports() -> Iterator[int]:
    """Ports nobody listens on. Another run of the tests may be about to: start where it hardly does.

    The processes of one run (pytest-xdist) take turns: even ports and odd ones.
    """
    turn = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2
    for port in range(random.randrange(FIRST_PORT, LAST_PORT - 200, 2) + turn, LAST_PORT, 2):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                yield port
