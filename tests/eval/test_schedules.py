"""Schedules from the command line and from grid files."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.schedules import GRIDS_DIR, Grid, parse_profiles, resolve_all
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy

POLICY = Policy.builtin()


def shape(layers: int, top_k: int, dense: int = 1) -> MoEShape:
    return MoEShape(
        num_layers=layers,
        moe_layer_ids=tuple(range(dense, layers)),
        top_k=top_k,
        num_experts=64,
        num_shared_experts=2,
        renormalize=False,
        scoring="softmax",
    )


MINI_V2, V2_LITE, V3 = shape(6, 6), shape(27, 6), shape(61, 8, dense=3)


def test_a_command_line_of_every_form() -> None:
    text = 'full, fast,na=3,schedule=[6,4,2,5],{"min_ratio": 0.2, "min_na": 2},{"prefill": "full", "decode": {"na": 1}}'
    found = {one.label: one.hint for one in parse_profiles(text)}
    assert found == {
        "full": "full",
        "fast": "fast",
        "na=3": {"na": 3},
        "schedule=6-4-2-5": {"schedule": [6, 4, 2, 5]},
        "min_ratio=0.2,min_na=2": {"min_ratio": 0.2, "min_na": 2},
        "prefill=full,decode=na=1": {"prefill": "full", "decode": {"na": 1}},
    }


@pytest.mark.parametrize("text", ["full,", "na=x", '{"na": 2', "a b", "full,,fast"])
def test_what_is_no_schedule_is_named(text: str) -> None:
    with pytest.raises(FieldError, match="--profiles"):
        parse_profiles(text)


def test_a_hint_is_checked_on_the_model() -> None:
    with pytest.raises(FieldError, match=r"schedule na=-1\.na: got -1"):
        resolve_all(parse_profiles("na=-1"), POLICY, MINI_V2)
    with pytest.raises(FieldError, match="schedule quick: got 'quick', allowed: the profiles full"):
        resolve_all(parse_profiles("quick"), POLICY, MINI_V2)
    with pytest.raises(FieldError, match="fast"):
        resolve_all(parse_profiles("fast,fast"), POLICY, MINI_V2)


def test_entries_say_what_the_schedule_does() -> None:
    full, down, adaptive = resolve_all(parse_profiles("full,schedule=[6,4,2,3],adaptive"), POLICY, MINI_V2)
    assert (full.mean_na, full.layers, full.dynamic) == (6, [6] * 5, False)
    assert (down.mean_na, down.layers, down.hint) == (4, [6, 5, 4, 3, 2], {"schedule": [6, 4, 2, 3]})
    assert adaptive.dynamic


def test_an_auto_profile_is_described_by_what_bounds_it() -> None:
    rule = {"levels": ["full", "fast"], "speedup": {"fast": {1: 2}}}
    policy = Policy.from_object({"profiles": {"fast": {"na": 2}, "auto": {"auto": rule}}})
    (entry,) = resolve_all(parse_profiles("auto"), policy, MINI_V2)
    assert (entry.layers, entry.dynamic) == ([6] * 5, True)


def test_a_grid_runs_each_behaviour_once(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(
        "schedules:\n  - {hint: full}\n  - {hint: {na: 6}}\ngrid: {b: [6, 2], h: [6, 2], e: [6, 2], p: [1, 5]}\n"
    )
    labels = [entry.label for entry in resolve_all(Grid.load(str(file)).labelled(), POLICY, MINI_V2)]
    assert labels[:2] == ["full", "na=6"]  # asked for one by one: kept, though they do the same
    assert "b6h6e6p1" not in labels
    assert "b6h2e6p1" in labels  # h counts at the first layer only where b does not
    tables = [tuple(entry.layers) for entry in resolve_all(Grid.load(str(file)).labelled(), POLICY, MINI_V2)][1:]
    assert len(set(tables)) == len(tables)


@pytest.mark.parametrize(
    ("name", "model", "count"),
    [("paper_v2_lite", V2_LITE, 141), ("paper_v3", V3, 483), ("mini_v2", MINI_V2, 12), ("mini_v3", shape(6, 8), 14)],
)
def test_shipped_grids_fit_their_models(name: str, model: MoEShape, count: int) -> None:
    entries = resolve_all(Grid.load(name).labelled(), POLICY, model)
    assert entries[0].label == "full"
    assert len(entries) == count


def test_mini_grids_compare_shapes_at_one_mean() -> None:
    for name, model in (("mini_v2", MINI_V2), ("mini_v3", shape(6, 8))):
        entries = {entry.label: entry for entry in resolve_all(Grid.load(name).labelled(), POLICY, model)}
        for label in (label for label in entries if label.startswith("down")):
            number = label.removeprefix("down")
            down, up, flat = entries[label], entries[f"up{number}"], entries[f"na{number}"]
            assert down.mean_na == up.mean_na == flat.mean_na
            assert down.layers == sorted(down.layers, reverse=True) == up.layers[::-1]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("grid: {b: [6], h: [4], e: []}", "grid"),
        ("schedule: []", "schedule"),
        ("- 1", "the file"),
        ("a: [", "YAML"),
    ],
)
def test_a_broken_grid_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, complaint: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(content)
    with pytest.raises(FieldError, match=complaint) as caught:
        Grid.load("grid.yaml")
    assert "grid.yaml" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_grid_lists_the_shipped_ones() -> None:
    with pytest.raises(FieldError) as caught:
        Grid.load("no_such_grid")
    shipped = [file.stem for file in GRIDS_DIR.glob("*.yaml")]
    assert {"paper_v2_lite", "mini_v2", "mini_v3"} <= set(shipped)
    assert all(name in str(caught.value) for name in shipped)
