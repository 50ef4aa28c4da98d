"""What a running server says about itself: model, context length, number format, policy."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from eval.endpoint import EndpointError
from eval.plans import NamedPlan, under
from eval.results import PlanEntry, ScheduleEntry
from eval.schedules import Labelled, resolve_all
from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PLAN_FILE, PLAN_KEY, PlanError, PrunePlan
from sglang_moe_opt.policy import Policy


@dataclass(frozen=True)
class ServedModel:
    """A server and its model.

    Attributes:
        url: of the server, without a path.
        name: what requests call the model.
        path: folder or hub id of the checkpoint, as the server sees it.
        tokenizer: folder or hub id of its tokenizer.
        dtype: the server's --dtype, `auto` being the checkpoint's own.
        context: tokens of prompt and answer together.
        config: the checkpoint's config.json.
        policy_source: the policy the server was started with: `builtin` or a path; None where it does not say.
        plan: the plan it is served under, or that the checkpoint was written under; None for a whole model.
    """

    url: str
    name: str
    path: str
    tokenizer: str
    dtype: str
    context: int
    config: dict[str, Any]
    policy_source: str | None
    plan: NamedPlan | None = None

    @property
    def title(self) -> str:
        """What reports call the model: a hub id, or a folder's last part."""
        return Path(self.name).name if Path(self.name).is_absolute() else self.name

    @property
    def shape(self) -> MoEShape:
        return MoEShape.from_config(self.config)

    @property
    def folder(self) -> Path | None:
        """The checkpoint's folder where this machine can read it."""
        folder = Path(self.path)
        return folder if (folder / "config.json").exists() else None

    @property
    def fingerprint(self) -> str:
        """32 hex digits over config.json and, where they can be read, the weights."""
        return fingerprint(self.config, self.folder)

    @property
    def whole_fingerprint(self) -> str:
        """That of the whole model, which a checkpoint written under a plan was made from."""
        return self.plan.plan.model if self.plan and self.plan.is_exported else self.fingerprint

    def schedules(self, wanted: Sequence[Labelled], policy: Policy) -> list[ScheduleEntry]:
        """Expand schedules on the model, under the plan if there is one. Raises FieldError."""
        entries = resolve_all(wanted, policy, self.shape)
        return under(self.plan_entry, entries) if self.plan_entry else entries

    def known_under(self, plan: NamedPlan | None) -> ServedModel:
        """The same, its plan called as here. Raises EndpointError where it is served under another one."""
        wanted, found = (one and one.plan.digest for one in (plan, self.plan))
        if found != wanted:
            raise EndpointError(f"{self.url}: serves the model under the plan {found}, not {wanted}")
        return replace(self, plan=plan)

    @cached_property
    def plan_entry(self) -> PlanEntry | None:
        """What results record of the plan; None for a whole model."""
        if self.plan is None:
            return None
        return self.plan.entry(self.shape, self.fingerprint if self.plan.is_exported else None)

    def policy(self, file: Path | None = None) -> Policy:
        """The policy in `file`, else the one the server was started with, else the built-in one. Raises PolicyError."""
        return load_policy(file if file is not None else self.policy_source)


def load_policy(source: str | Path | None) -> Policy:
    """The policy in a file; the built-in one for `builtin` and None. Raises PolicyError."""
    return Policy.builtin() if source in (None, "builtin") else Policy.load(str(source))


def connect(url: str, model: str | None = None) -> ServedModel:
    """Ask a server what it serves.

    Args:
        url: such as http://localhost:30000.
        model: folder or hub id to read config.json and the tokenizer from, where the server's own path is not readable.

    Raises:
        FieldError: the URL is none.
        EndpointError: nothing answers there, or it is no SGLang server.
    """
    if not url.startswith(("http://", "https://")):
        raise FieldError("--url", url, "a URL such as http://localhost:30000")
    url = url.rstrip("/").removesuffix("/v1")
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        info = _get(client, "/model_info")
        models = _get(client, "/v1/models")
        server = _get(client, "/server_info")
        said = _get(client, "/moe_prune_plan", is_ours=True)
    try:
        path = info["model_path"]
        card = models["data"][0]
        name, context, dtype = card["id"], int(card["max_model_len"]), server["dtype"]
    except (KeyError, IndexError, TypeError) as error:
        raise EndpointError(f"{url}: not an SGLang server: no {error} in what it says of its model") from None
    served = ServedModel(
        url=url,
        name=name,
        path=path,
        tokenizer=model or info.get("tokenizer_path") or path,
        dtype=str(dtype),
        context=context,
        config=read_model_config(model or path),
        policy_source=_flag(server.get("launch_command") or "", "--moe-opt-config"),
    )
    return replace(served, plan=_find_plan(served, said))


def _find_plan(served: ServedModel, said: Any) -> NamedPlan | None:
    """The plan that the server names, else the one in a folder that `moe-opt prune export` wrote.

    Raises:
        EndpointError: the server's answer is no plan.
        FieldError: the folder's plan cannot be read, or is not the one that its weights were written under.
    """
    exported = None if served.folder is None else served.folder / PLAN_FILE
    if said is not None:
        try:
            file, plan = Path(said["file"]), PrunePlan.from_object(said["plan"])
        except (KeyError, TypeError, FieldError) as error:
            raise EndpointError(f"{served.url}: /moe_prune_plan: not a plan ({error})") from None
        if PLAN_KEY in served.config and file.name == served.config[PLAN_KEY]:
            return NamedPlan(Path(served.path).name, file, plan, is_exported=True)
        return NamedPlan(file.stem, file, plan)
    if exported is None or not exported.exists():
        return None
    plan = PrunePlan.load(exported)
    if PLAN_KEY not in served.config and {len(kept) for kept in plan.layers.values()} != {served.shape.num_experts}:
        allowed = f"{served.shape.num_experts} in each layer, as config.json says: is this the plan of these weights?"
        raise PlanError("layers", "other numbers of kept experts", allowed, str(exported))
    return NamedPlan(Path(served.path).name, exported, plan, is_exported=True)


def _get(client: httpx.Client, path: str, *, is_ours: bool = False) -> Any:
    """The answer as JSON; None where `is_ours` and the server has no plugin of ours. Raises EndpointError."""
    try:
        response = client.get(path)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EndpointError(f"{client.base_url}: cannot be reached ({error}); is a server running there?") from None
    if is_ours and response.status_code == 404:
        return None
    if response.status_code != 200:
        raise EndpointError(f"{client.base_url}: {path} answered HTTP {response.status_code}: not an SGLang server?")
    try:
        return response.json()
    except ValueError:
        raise EndpointError(f"{client.base_url}: {path} did not answer in JSON: not an SGLang server?") from None


def read_model_config(model: str) -> dict[str, Any]:
    """config.json of a folder or of a hub id. Raises ValueError."""
    file = Path(model) / "config.json"
    if not file.exists():
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(model, "config.json"))
        except (OSError, ValueError):  # not there, not reachable, or no hub id at all
            raise FieldError(
                "--model", model, "a readable checkpoint folder or hub id, for config and tokenizer"
            ) from None
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def _flag(command: str, flag: str) -> str | None:
    """The value of a flag in a command line."""
    words = shlex.split(command)
    for word, following in pairwise([*words, ""]):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None
