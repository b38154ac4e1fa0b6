"""Claude Code against the gateway (wire-contract E.7)."""

from pathlib import Path

import pytest
from tests.conformance.rig import Gateway
from tests.sdk_matrix import facts
from tests.sdk_matrix.agents import CLAUDE, Model, Tap, claude_turn
from tests.sdk_matrix.answers import Answer, Call, original_thinking

BASH = Call(1, "Bash", '{"command":"echo said-$((40 + 2))","description":"Says a number"}')
ASKS = Answer(("I ask ", "the shell."), calls=(BASH,))
THINKS = Answer((), ("The shell ", "knows."), (BASH,))
SAYS = Answer(("The shell ", "said 42 – «ok» 🌞."))

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(CLAUDE is None, reason="Claude Code is not installed: npm was not here"),
]


async def test_K01_a_revoked_key_is_shown_once(gateway: Gateway, tmp_path: Path) -> None:
    created = await gateway.rest("POST", "keys", json={"account_id": "acct_default"})
    provider = await gateway.add("A", script=Model("A", [SAYS], is_relayed=True).script())
    await gateway.rest("POST", f"keys/{created['key']['key_id']}:revoke", json={})
    async with Tap(gateway.port) as tap:
        turn = await claude_turn(tap.url, created["secret"], provider.model, tmp_path)
    assert turn.code != 0 and tap.posts == ["/v1/messages"], (tap.posts, turn)
    assert "key" in turn.events[0]["result"].lower(), turn
    assert not provider.upstream.requests


async def test_K02_a_spent_quota_is_shown_in_our_words(gateway: Gateway, tmp_path: Path) -> None:
    secret = await poor_key(gateway)
    provider = await gateway.add("A", script=Model("A", [SAYS], is_relayed=True).script())
    async with Tap(gateway.port) as tap:
        turn = await claude_turn(tap.url, secret, provider.model, tmp_path)
    assert turn.code != 0 and tap.posts == ["/v1/messages"], (tap.posts, turn)
    refused = await gateway.http.post(
        "/v1/messages",
        json={"model": provider.model, "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]},
        headers={"authorization": f"Bearer {secret}"},
    )
    assert refused.status_code == 429
    assert refused.json()["error"]["message"] in turn.events[0]["result"], (refused.text, turn)


async def poor_key(gateway: Gateway) -> str:
    """Returns a key of an account without money."""
    account = await gateway.rest("POST", "accounts", json={"display_name": "poor"})
    created = await gateway.rest("POST", "keys", json={"account_id": account["account_id"]})
    return str(created["secret"])


@pytest.mark.parametrize("dialect", ["A", "C", "R"])
async def test_K05_a_turn_with_a_tool_completes(gateway: Gateway, tmp_path: Path, dialect: str) -> None:
    model = Model(dialect, [ASKS, SAYS], is_relayed=dialect == "A")
    provider = await gateway.add(dialect, script=model.script())
    turn = await claude_turn(gateway.mesh.base_url, gateway.key, provider.model, tmp_path)
    assert not model.problems, model.problems
    assert turn.code == 0, turn.output + turn.errors
    (said,) = turn.events
    assert said["result"] == "".join(SAYS.text) and not said["is_error"], turn
    assert said["usage"]["output_tokens"] == 2 * facts.OUTPUT_TOKENS
    assert said["usage"]["cache_read_input_tokens"] == 2 * facts.CACHED_TOKENS
    assert len(model.bodies) == 2
    assert "said-42" in str(model.bodies[1]) and "said-42" not in str(model.bodies[0])


@pytest.mark.parametrize("dialect", ["A", "R"])
async def test_K07_thinking_comes_back_to_its_provider(
    gateway: Gateway, tmp_path: Path, dialect: str
) -> None:
    model = Model(dialect, [THINKS, SAYS], is_relayed=dialect == "A")
    provider = await gateway.add(dialect, script=model.script())
    turn = await claude_turn(gateway.mesh.base_url, gateway.key, provider.model, tmp_path)
    assert not model.problems, model.problems
    assert turn.code == 0 and turn.events[0]["result"] == "".join(SAYS.text), turn
    if dialect == "R":
        assert model.views[1].thinking == [original_thinking("R", THINKS)]
    else:
        blocks = [b for m in model.bodies[1]["messages"] if m["role"] == "assistant" for b in m["content"]]
        assert [b for b in blocks if b["type"] == "thinking"] == [original_thinking("A", THINKS)]
