"""One load test as a folder of plain files: what ran, what every request did, nothing derived.

    manifest.json                     what ran: arms, loads, prompts, versions, machine, command line
    points/r1-c16-full.json           one point: window, what the server and the machine said meanwhile
    requests/r1-c16-full.jsonl        its requests, one line each

A point is there whole or not at all. Everything else in the folder is made from these files alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.results import PlanEntry, ResultsError, file_name, read_json
from loadtest.load import Load
from loadtest.record import Record, read_lines, to_lines
from sglang_moe_opt.files import write_atomically
from sglang_moe_opt.perfmodel.curve import Consolidated

KIND: Literal["loadtest"] = "loadtest"
Model = TypeVar("Model", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerMemory(_Frozen):
    """What a server holds of the host's memory.

    Attributes:
        scheduler_bytes: anonymous memory of the schedulers, in which a CPU's weights lie (RssAnon).
        all_bytes: of all its processes; pages that servers share are split among them (PSS).
    """

    scheduler_bytes: int
    all_bytes: int


class ArmEntry(_Frozen):
    """A curve of the report: a server, and the hints of its requests with their shares.

    Attributes:
        label: as reports call it; the first arm is what the others are compared with.
        url: of the server.
        hints: label of each profile, with its hint (None sends none) and its share of the users.
        mean_na: routed experts per token, weighted by share; None where that is not known.
        consolidated: how its decode steps share experts; None where they do not.
        is_baseline_server: another server than the one under test.
        plan: of its server; None where that has the whole model.
        memory: of its server once it was warm; None where that was not measured.
    """

    label: str
    url: str
    hints: dict[str, tuple[Any, float]]
    mean_na: float | None = None
    consolidated: Consolidated | None = None
    is_baseline_server: bool = False
    plan: PlanEntry | None = None
    memory: ServerMemory | None = None


class Manifest(_Frozen):
    """What ran. `seconds` is the time that a point lasts at least, `max_seconds` the time at which it is cut off."""

    kind: Literal["loadtest"] = KIND
    version: Literal[1] = 1
    created: str
    command: list[str]
    model: str
    model_fingerprint: str | None
    model_config_json: dict[str, Any] | None
    arms: list[ArmEntry]
    loads: list[str]
    rounds: int
    prompts: str
    output_len: int
    seconds: float
    max_seconds: float
    requests: int | None = None
    ramp_s: float = 0.0
    goodput_ms: dict[str, float] = Field(default_factory=dict)
    api: str
    trace: str | None = None
    seed: int = 0
    versions: dict[str, str]
    machine: dict[str, Any]
    git_revision: str | None

    @property
    def all_loads(self) -> list[Load]:
        return [Load.parse(label) for label in self.loads]


class ServerSide(_Frozen):
    """What the server said while a point ran; None where it does not tell.

    Attributes:
        running, waiting: samples of the requests in its batch and in its queue, while the load was whole.
        distinct_experts: of one MoE layer and decode step, mean.
        slots_kept: computed share of the routed slots of the full model.
        generated_tokens: by its own counter.
    """

    running: list[int] = []
    waiting: list[int] = []
    distinct_experts: float | None = None
    slots_kept: float | None = None
    generated_tokens: int | None = None


class ClientSide(_Frozen):
    """What the client cost: CPU seconds of its processes in `wall_s` seconds, and how late its event loop ran.

    Attributes:
        lag_ms: 99th percentile of how much later than asked a greenlet woke up, in milliseconds.
    """

    processes: int
    cpu_s: float
    wall_s: float
    lag_ms: float


class PointFile(_Frozen):
    """A point. Times in seconds since its first request could be sent.

    Attributes:
        begin, end: the window in which the load was whole: from the last user's first request to the first user's
            last answer; in open loop from the first arrival to the last.
        cut_off: requests that were still running when the point's time was over.
        read_bandwidth: bytes/s that this machine could read just before and after, None where it is not the server's.
    """

    arm: str
    load: str
    round: int
    started_at: str
    begin: float
    end: float
    cut_off: int
    server: ServerSide
    client: ClientSide
    read_bandwidth: float | None = None
    peak_flops: float | None = None


class LoadtestFolder:
    """Reads and writes one load test's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def manifest_file(self) -> Path:
        return self.root / "manifest.json"

    def read_manifest(self) -> Manifest:
        """Raises ResultsError where the file is missing or not a manifest."""
        if not self.manifest_file.exists():
            raise ResultsError(f"{self.root}: no manifest.json there; expected the folder of a load test")
        return _validated(Manifest, self.manifest_file)

    def write_manifest(self, manifest: Manifest) -> None:
        write_atomically(self.manifest_file, manifest.model_dump_json(indent=2) + "\n")

    def has_point(self, turn: int, load: Load, arm: str) -> bool:
        return self._point_file(turn, load, arm).exists()

    def write_point(self, point: PointFile, records: list[Record]) -> None:
        """The requests first: a point counts as there when its own file is."""
        name = _name(point.round, Load.parse(point.load), point.arm)
        write_atomically(self.root / "requests" / f"{name}.jsonl", to_lines(records))
        write_atomically(self.root / "points" / f"{name}.json", point.model_dump_json(indent=1) + "\n")

    def read_point(self, turn: int, load: Load, arm: str) -> tuple[PointFile, list[Record]]:
        """Raises ResultsError naming the file that is missing or broken."""
        point = _validated(PointFile, self._point_file(turn, load, arm))
        requests = self.root / "requests" / f"{_name(turn, load, arm)}.jsonl"
        if not requests.exists():
            raise ResultsError(f"{requests}: missing, but its point is there")
        return point, list(read_lines(requests))

    def _point_file(self, turn: int, load: Load, arm: str) -> Path:
        return self.root / "points" / f"{_name(turn, load, arm)}.json"


def _name(turn: int, load: Load, arm: str) -> str:
    return f"r{turn}-{load.label}-{file_name(arm)}"


def _validated(kind: type[Model], file: Path) -> Model:
    try:
        return kind.model_validate(read_json(file))
    except ValidationError as error:
        first = error.errors()[0]
        raise ResultsError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
