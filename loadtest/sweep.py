"""A load test from beginning to end: every arm under every load, in turns, each point kept as soon as it is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlparse

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from eval.results import ResultsError
from eval.runner import git_revision, machine
from loadtest.folder import ArmEntry, LoadtestFolder, Manifest, PointFile, ServerMemory
from loadtest.generators import Generators
from loadtest.load import Load, in_turns
from loadtest.spec import PointSpec
from loadtest.target import Target, Watch, check_hints
from loadtest.time_left import TimeLeft, clock
from sglang_moe_opt.perfmodel.roofline import Machine

WARM_UP_TOKENS = 4
FEW = 8
"""Users of an arm's warm-up; a server's first arm also meets the largest load once, so that nothing is new to it."""
LEAST_VOCABULARY = 32000
"""Of a model whose config is not known: smaller ones are not served any more."""
_PACKAGES = ("sglang-moe-opt", "sglang", "torch", "locust", "gevent", "geventhttpclient")


class SweepError(RuntimeError):
    """A sweep that cannot start or go on: one line."""


@dataclass(frozen=True)
class Options:
    """How points are measured; see `Manifest` and `PointSpec` for most of them.

    Attributes:
        patience_s: a server that does not answer for so long ends the sweep.
        probe: measures this machine beside every point; None where the server is elsewhere.
        memory: tells what a server holds, by its URL; measured once it is warm.
    """

    loads: Sequence[Load]
    prompts: str
    output_len: int
    rounds: int = 3
    seconds: float = 5.0
    max_seconds: float = 300.0
    ramp_s: float = 0.0
    requests: int | None = None
    silence_s: float = 60.0
    patience_s: float = 60.0
    processes: int = 1
    seed: int = 0
    data_dir: str | None = None
    trace: str | None = None
    max_input: int = 1 << 20
    goodput_ms: Mapping[str, float] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()
    resume: bool = False
    probe: Callable[[], Machine] | None = None
    memory: Mapping[str, Callable[[], ServerMemory]] = field(default_factory=dict)


class Sweep:
    """One load test.

    Args:
        arms: the first is what the others are compared with.
        targets: the server of each arm, by its URL.
        options: how.
        folder: where it goes.
        console: shows progress; None shows nothing.
    """

    def __init__(
        self,
        arms: Sequence[ArmEntry],
        targets: Mapping[str, Target],
        options: Options,
        folder: LoadtestFolder,
        console: Console | None = None,
    ) -> None:
        self._arms, self._targets, self._options, self._folder = arms, targets, options, folder
        self._by_label = {arm.label: arm for arm in arms}
        self._console = console or Console(quiet=True)
        self._left = TimeLeft(options.seconds, options.max_seconds)
        self.failures = 0

    def run(self) -> None:
        """Measure what is not there yet.

        Raises:
            SweepError: a server is gone for good, or the folder holds another run.
            GeneratorError: a client process died.
        """
        options = self._options
        points = in_turns([arm.label for arm in self._arms], options.loads, options.rounds)
        manifest = self._manifest()
        self._folder.write_manifest(manifest)
        todo = [point for point in points if not self._folder.has_point(*point)]
        with (
            httpx.Client(timeout=60, trust_env=False, headers=dict(options.headers)) as client,
            Generators(options.processes) as generators,
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}  {task.fields[left]}"),
                console=self._console,
            ) as progress,
        ):
            for arm in self._arms:
                check_hints(client, self._targets[arm.url], {label: hint for label, (hint, _) in arm.hints.items()})
            bar = progress.add_task("warm-up", total=len(points), completed=len(points) - len(todo), left="")
            if todo:
                self._warm_up(client, generators)
                self._folder.write_manifest(self._with_memory(manifest))
            for index, (turn, load, label) in enumerate(todo):
                left = self._left.of((point[1], point[2]) for point in todo[index:])
                where = f"round {turn}/{options.rounds}  {load.label}  {label}"
                progress.update(bar, description=where, left=f"{clock(left)} left" if left is not None else "")
                self._wait_for(client, self._by_label[label], where)
                start = time.monotonic()
                self._point(client, generators, turn, load, self._by_label[label])
                self._left.learn(load, label, time.monotonic() - start)
                progress.advance(bar)

    def _point(self, client: httpx.Client, generators: Generators, turn: int, load: Load, arm: ArmEntry) -> None:
        options, target = self._options, self._targets[arm.url]
        with suppress(httpx.HTTPError):  # the point itself will show what is wrong
            target.flush(client)
        now = options.probe() if options.probe else None
        began = datetime.now(UTC).isoformat(timespec="seconds")
        with Watch(target, client) as watch:
            records, result, cost = generators.run(self._spec(arm, load, turn))
        self.failures += sum(record.failed for record in records)
        self._folder.write_point(
            PointFile(
                arm=arm.label,
                load=load.label,
                round=turn,
                started_at=began,
                begin=0.0 if load.is_open else result.began or 0.0,
                end=min(options.seconds, result.ended) if load.is_open else result.ended,
                cut_off=result.cut_off,
                server=watch.side,
                client=cost,
                read_bandwidth=now.read_bandwidth if now else None,
                peak_flops=now.peak_flops if now else None,
            ),
            records,
        )

    def _spec(self, arm: ArmEntry, load: Load, turn: int) -> PointSpec:
        options, target = self._options, self._targets[arm.url]
        vocabulary = self._targets[self._arms[0].url].served
        return PointSpec(
            url=target.url,
            api=target.api,
            model=target.model,
            load=load.label,
            seconds=options.seconds,
            max_seconds=options.max_seconds,
            requests=options.requests,
            ramp_s=options.ramp_s,
            silence_s=options.silence_s,
            hints=arm.hints,
            prompts=options.prompts,
            data_dir=options.data_dir,
            vocab_size=vocabulary.shape.vocab_size if vocabulary else LEAST_VOCABULARY,
            output_len=options.output_len,
            max_input=options.max_input,
            seed=options.seed + turn,
            trace=options.trace,
            headers=dict(options.headers),
        )

    def _warm_up(self, client: httpx.Client, generators: Generators) -> None:
        """Short answers, not kept."""
        largest = max((load.concurrency or FEW for load in self._options.loads), default=FEW)
        firsts = {arm.url: arm for arm in reversed(self._arms) if not arm.is_baseline_server}
        for arm in self._arms:
            for users in sorted({min(FEW, largest), largest if arm is firsts.get(arm.url) else min(FEW, largest)}):
                spec = self._spec(arm, Load("closed", users), 0)
                quick = {"seconds": 0.0, "requests": None, "ramp_s": 0.0, "output_len": WARM_UP_TOKENS, "trace": None}
                generators.run(spec.model_copy(update=quick))

    def _with_memory(self, manifest: Manifest) -> Manifest:
        """What every server holds now; a run that goes on keeps what was measured at its beginning."""
        now = {url: measure() for url, measure in self._options.memory.items()}
        pairs = zip(manifest.arms, self._arms, strict=True)  # a run that goes on has other URLs
        arms = [old if old.memory else old.model_copy(update={"memory": now.get(arm.url)}) for old, arm in pairs]
        return manifest.model_copy(update={"arms": arms})

    def _wait_for(self, client: httpx.Client, arm: ArmEntry, where: str) -> None:
        """Raises SweepError if the arm's server stays silent."""
        target, end = self._targets[arm.url], time.monotonic() + self._options.patience_s
        while not target.is_up(client):
            if time.monotonic() > end:
                raise SweepError(
                    f"{target.url} has not answered for {self._options.patience_s:.0f} s (at {where}); "
                    f"what was measured is in {self._folder.root}: go on with --resume"
                )
            time.sleep(0.5)

    def _manifest(self) -> Manifest:
        """A new run's manifest, or the one in the folder if it is of this run."""
        options, served = self._options, self._targets[self._arms[0].url].served
        new = Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=list(options.command),
            model=served.title if served else self._targets[self._arms[0].url].model,
            model_fingerprint=served.fingerprint if served else None,
            model_config_json=served.config if served else None,
            arms=list(self._arms),
            loads=[load.label for load in options.loads],
            rounds=options.rounds,
            prompts=options.prompts,
            output_len=options.output_len,
            seconds=options.seconds,
            max_seconds=options.max_seconds,
            requests=options.requests,
            ramp_s=options.ramp_s,
            goodput_ms=dict(options.goodput_ms),
            api=self._targets[self._arms[0].url].api,
            trace=options.trace,
            seed=options.seed,
            versions={name: found for name in _PACKAGES if (found := _version(name))},
            machine=machine(),
            git_revision=git_revision(),
        )
        if not self._folder.manifest_file.exists():
            return new
        if not options.resume:
            raise SweepError(f"--out: {self._folder.root} holds a run already: --resume goes on with it")
        return _continued(self._folder.read_manifest(), new, self._folder)


_SAME = ("model_fingerprint", "prompts", "output_len", "seconds", "requests", "ramp_s", "api", "trace", "seed")


def _continued(old: Manifest, new: Manifest, folder: LoadtestFolder) -> Manifest:
    """The old run with more rounds or loads, perhaps. Raises ResultsError where it measured something else."""
    for name in _SAME:
        if getattr(old, name) != getattr(new, name):
            raise ResultsError(
                f"--resume: {folder.root}: that run has {name} {getattr(old, name)!r}, this one {getattr(new, name)!r}"
            )
    if [_identity(arm) for arm in old.arms] != [_identity(arm) for arm in new.arms]:
        raise ResultsError(f"--resume: {folder.root}: that run has other arms: {', '.join(a.label for a in old.arms)}")
    return old.model_copy(update={"loads": new.loads, "rounds": new.rounds})


def _identity(arm: ArmEntry) -> tuple[str, dict[str, Any], str | None]:
    """An arm but for its port: a server that was started for the run has another one each time."""
    return arm.label, arm.hints, arm.plan.digest if arm.plan else None


def is_here(url: str) -> bool:
    """Whether a server runs on this machine, by its address."""
    return urlparse(url).hostname in ("127.0.0.1", "localhost", "::1", "0.0.0.0")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
