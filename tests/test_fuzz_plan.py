"""Whatever stands in a plan: a plan that works, or one line that names a field; no file outside its folder is read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.files import MAX_JSON_BYTES
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PlanError, PrunePlan, SidecarFile
from tests.fuzz import BOUNDED, junk, numbers, objects, text

SHAPES = (
    MoEShape(3, (1, 2), 6, 64, 2, False, "softmax"),
    MoEShape(3, (1, 2), 8, 64, 1, True, "sigmoid", n_group=8, topk_group=4),
)
MODEL = "0" * 32
ids = st.one_of(st.lists(st.integers(-1, 70), max_size=64).map(sorted), st.lists(numbers, max_size=5), junk)
layers = st.one_of(
    st.dictionaries(st.one_of(st.sampled_from(["1", "2", "01", "-1", 1, 2]), text), ids, max_size=3), junk
)
sidecars = st.one_of(objects(list(SidecarFile.model_fields)), st.none(), junk)
near = st.fixed_dictionaries(
    {"model": st.just(MODEL), "num_experts": st.sampled_from([64, 1, 63, True, 64.0]), "layers": layers},
    optional={"weights": sidecars, "version": st.sampled_from([1, 2, "1"]), "method": junk, "provenance": junk},
)
plans = st.one_of(near, objects(list(PrunePlan.model_fields)), junk)
json_like = st.text(alphabet='{}[]:,"layers0123 \n\\u', max_size=80).map(str.encode)
WHOLE = {"model": MODEL, "num_experts": 64, "layers": {"1": list(range(32)), "2": list(range(64))}}


def survives(make: Any, file: Path = Path("plan.json")) -> None:
    """The plan fits a model or not; or it is refused by field."""
    try:
        plan = make()
        if (sidecar := plan.weights_path(file)) is not None:
            assert (file.parent / sidecar).resolve().is_relative_to(file.parent.resolve())
        for shape in SHAPES:
            plan.check(shape, MODEL)
            plan.gate_mode(shape)
    except PlanError as error:
        assert error.field and "\n" not in str(error) and len(str(error)) < 2000


def test_a_whole_plan_is_one() -> None:
    plan = PrunePlan.from_object(WHOLE)
    plan.check(SHAPES[0], MODEL)
    assert PrunePlan.from_object(json.loads(plan.model_dump_json())) == plan


@BOUNDED
@given(plans)
def test_any_content(content: Any) -> None:
    survives(lambda: PrunePlan.from_object(content))


@BOUNDED
@given(st.one_of(st.binary(max_size=200), json_like))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.json"
    file.write_bytes(content)
    survives(lambda: PrunePlan.load(file), file)


@BOUNDED
@given(st.text(alphabet="./\\ab\0~$", max_size=12))
def test_a_sidecar_lies_in_the_plans_folder(name: str) -> None:
    survives(lambda: PrunePlan.from_object({**WHOLE, "weights": {"file": name, "sha256": "0" * 64}}))


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"layers": {"1": [0], "1": [1]}}', "NaN", '{"num_experts": 1e999}', "1" * 5000]
)
def test_tricks_of_json(tmp_path: Path, content: str) -> None:
    file = tmp_path / "plan.json"
    file.write_text(content)
    with pytest.raises(PlanError):
        PrunePlan.load(file)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as large:
        large.truncate(MAX_JSON_BYTES + 1)
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "large", Path("/dev/zero"), tmp_path / "absent"):
        with pytest.raises(PlanError, match="plan: got "):
            PrunePlan.load(path)
