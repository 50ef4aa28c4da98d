"""The plugin without a policy is upstream, and a policy without a hint changes no token."""

from __future__ import annotations

import pytest
from reference import prompt
from server import UNCONFIGURED, Kind, Server, Servers, request_body

pytestmark = [pytest.mark.server, pytest.mark.slow]

LENGTHS = (1, 2, 37, 300, 600)

unconfigured = pytest.mark.parametrize("kind", [UNCONFIGURED], ids=["no-policy"])


@unconfigured
def test_a_policy_without_hints_changes_nothing(v2: Server, servers: Servers, kind: Kind) -> None:
    """Tokens and log-probabilities, to the last bit."""
    prompts = [prompt("random-v2", length, seed=8) for length in LENGTHS]
    with_policy = [v2.tokens(ids) for ids in prompts]
    logprobs = v2.prompt_logprobs(prompts[2])
    plain = servers.get(kind)
    plain.flush_cache()
    assert [plain.tokens(ids) for ids in prompts] == with_policy
    assert plain.prompt_logprobs(prompts[2]) == logprobs


@unconfigured
def test_without_a_policy_hints_are_ignored_as_upstream_does(v2: Server, servers: Servers, kind: Kind) -> None:
    ids = prompt("random-v2", 37, seed=9)
    expected = v2.tokens(ids)
    server = servers.get(kind)
    for hint in ("fast", {"na": 1}, "no such profile", {"na": "junk"}):
        reply = server.client.post("/generate", json=request_body(ids, hint), headers={"x-moe-skip": "nonsense"})
        assert reply.status_code == 200
        assert reply.json()["output_ids"] == expected
        assert "moe_skip" not in reply.json()["meta_info"]
        assert not [name for name in reply.headers if name.startswith("x-moe-skip")]
    assert "sglang_moe_opt" not in server.client.get("/metrics").text
