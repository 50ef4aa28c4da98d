"""A profile goes into a policy file without touching anything else in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_moe_opt.policy import Policy, PolicyError
from sglang_moe_opt.policy_file import add_profile, check_profile

RULE = {"layers": [6, 4, 4], "rescale": 1.1}
COMMENTED = """\
# ours
profiles:
  # for chat
  fast:     {na: 2}   # quick
  slow:
    prefill: full
    decode:
      na: 3

  # the end
default: fast            # most requests
min_na: 1
"""


def test_comments_and_order_stay(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(COMMENTED)
    add_profile(file, "found", RULE, comment="searched")
    wanted = COMMENTED.replace(
        "      na: 3\n", "      na: 3\n  # searched\n  found: {layers: [6, 4, 4], rescale: 1.1}\n"
    )
    assert file.read_text() == wanted
    assert Policy.load(file).profile("found").prefill.layers == (6, 4, 4)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "default: full\n",
        "default: full",
        "profiles: {}\nmin_na: 2\n",
        "profiles: {}  # none yet\n",
        "profiles: {fast: {na: 2}}\ndefault: fast\n",
        "profiles: {fast: {na: 2}, }\n",
        "profiles:\n    fast: {na: 2}",
        "profiles:\n  fast: {na: 2}\n\n# behind\n",
        "min_na: 0\nprofiles:\n  fast:\n    layers:\n      - 2\n      - 1\ndefault: full\n",
    ],
)
def test_every_way_to_write_a_file(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "policy.yaml"
    before = Policy()
    if text is not None:
        file.write_text(text)
        before = Policy.load(file)
    add_profile(file, "found", RULE, comment="searched")
    after = Policy.load(file)
    assert after.profile("found").decode.rescale == 1.1
    rest = {name: rule for name, rule in after.profiles.items() if name != "found"}
    assert after.model_copy(update={"profiles": rest}) == before
    for line in (text or "").splitlines():
        if "#" in line:
            assert line.partition("#")[2] in file.read_text()


def test_a_name_that_is_taken_needs_replace(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(COMMENTED)
    for name in ("fast", "slow"):
        with pytest.raises(PolicyError, match=f"profiles.{name}: .*--replace"):
            check_profile(file, name, replace=False)
        with pytest.raises(PolicyError, match="--replace"):
            add_profile(file, name, RULE)
    assert file.read_text() == COMMENTED
    add_profile(file, "fast", RULE, replace=True)
    assert file.read_text() == COMMENTED.replace("{na: 2}", "{layers: [6, 4, 4], rescale: 1.1}")
    add_profile(file, "slow", {"na": 1}, replace=True)
    policy = Policy.load(file)
    assert policy.profile("slow").decode.na == 1
    assert policy.default == "fast"
    for comment in ("# ours", "# for chat", "# quick", "# the end", "# most requests"):
        assert comment in file.read_text()


@pytest.mark.parametrize("name", ["full", "custom", "two words", ""])
def test_names_that_are_not_allowed(tmp_path: Path, name: str) -> None:
    with pytest.raises(PolicyError, match="1 to 64 of A-Z"):
        check_profile(tmp_path / "policy.yaml", name, replace=False)


def test_a_file_that_cannot_be_added_to_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    text = "profiles:\n  fast: &rule {na: 2}\n  quick: *rule\n"
    file.write_text(text)
    with pytest.raises(PolicyError, match="unaliased"):
        add_profile(file, "fast", {"na": 3}, replace=True)
    assert file.read_text() == text


def test_a_file_that_is_no_policy(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("profiles: [fast]\n")
    with pytest.raises(PolicyError, match="profiles: got"):
        check_profile(file, "found", replace=False)
