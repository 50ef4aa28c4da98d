"""What a soak sends is what it says: good hints are good, bad ones bad, and every reload changes something."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

from loadtest.soak.traffic import BAD_HINTS, BROKEN, KNOWN, SHARES, STATIC_NA, Job, Traffic, policy
from sglang_moe_opt.engine.http.reload import Change, successor
from sglang_moe_opt.engine.http.resolver import Resolver
from sglang_moe_opt.engine.settings import Settings
from sglang_moe_opt.hints import HintError, resolve
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy, PolicyError

SHAPES = (MoEShape(5, (1, 2, 3, 4), 6, 64, 2, False, "softmax"), MoEShape(5, (1, 2, 3, 4), 8, 64, 1, True, "sigmoid"))
POLICIES = [Policy.from_object(yaml.safe_load(policy(generation))) for generation in (1, 2, 3)]


def draw(seed: int, number: int = 2000) -> list[Job]:
    traffic = Traffic(seed, 6, 4096, 6)
    return [traffic.draw() for _ in range(number)]


def test_equal_seeds_draw_equal_jobs() -> None:
    assert draw(3) == draw(3) != draw(4)


def test_every_kind_comes_in_its_share() -> None:
    counts = Counter(job.kind for job in draw(0))
    assert {kind: round(100 * number / 2000) for kind, number in counts.items()} == pytest.approx(SHARES, abs=3)


@pytest.mark.parametrize("shape", SHAPES)
def test_hints_are_good_or_bad_as_they_say(shape: MoEShape) -> None:
    traffic = Traffic(1, shape.top_k, 4096, 6)
    for job in (traffic.draw() for _ in range(1000)):
        for found in POLICIES:
            if job.kind == "bad hint":
                with pytest.raises(HintError):
                    resolve(job.hint, found, shape)
            else:
                resolve(job.hint, found, shape)
    for hint in BAD_HINTS:
        with pytest.raises(HintError):
            resolve(hint, POLICIES[0], shape)


def test_jobs_can_be_cut_and_bodies_say_what_jobs_do() -> None:
    for job in draw(2):
        body = job.body()
        assert body["sampling_params"]["max_new_tokens"] == job.new_tokens > job.cut_after
        assert body["stream"] == job.streams
        assert ("custom_params" in body["sampling_params"]) == (job.hint is not None and not job.in_header)
        assert job.streams or job.kind not in ("cut stream", "cut early")
        assert not (job.kind == "cut early" and isinstance(job.hint, dict))


def test_every_reload_changes_the_policy_and_fits(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    settings = Settings(str(file), None)
    file.write_text(policy(1))
    current = Resolver.create(settings.load_policy(), SHAPES[0])
    for generation in (2, 3, 4):
        file.write_text(policy(generation))
        current, change = successor(current, settings)
        assert current.generation == generation and {"turning", "auto"} <= set(change.redefined)


@pytest.mark.parametrize(("text", "field"), BROKEN)
@pytest.mark.parametrize("generation", [1, 2])
def test_broken_policies_are_refused_for_their_field(tmp_path: Path, text: str, field: str, generation: int) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(policy(generation))
    settings = Settings(str(file), None)
    current = Resolver.create(settings.load_policy(), SHAPES[0])
    file.write_text(text)
    with pytest.raises(PolicyError) as caught:
        successor(current, settings)
    assert caught.value.field == field


@pytest.mark.parametrize("shape", SHAPES)
def test_known_answers_stand_for_what_profiles_say(shape: MoEShape) -> None:
    """Each definition of a profile is one of the schedules asked for; the answer's header tells them apart."""
    for name, schedules in KNOWN.items():
        asked = [resolve(schedule, POLICIES[0], shape) for schedule in schedules]
        assert len({str(hint.mean_na) for hint in asked}) == len(asked)
        for found in POLICIES:
            hint = resolve(name, found, shape)
            assert (hint.prefill, hint.decode) in [(one.prefill, one.decode) for one in asked]


@pytest.mark.parametrize("shape", SHAPES)
def test_counted_profiles_are_never_redefined(shape: MoEShape) -> None:
    for name, na in STATIC_NA.items():
        assert {resolve(name, found, shape).mean_na for found in POLICIES} == {na}
    assert set(Change.between(*POLICIES[:2]).redefined) == {"turning", "auto"}
