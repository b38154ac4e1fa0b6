"""The Codex CLI against the gateway (wire-contract E.7)."""

from pathlib import Path

import pytest
from tests.conformance.rig import Gateway
from tests.sdk_matrix import facts
from tests.sdk_matrix.agents import CODEX, Model, Tap, codex_turn
from tests.sdk_matrix.answers import Answer, Call

# Codex offers `apply_patch` only with models that it knows; with newer ones it offers a tool for programs.
KNOWN_MODEL = "gpt-5.5"
PATCH = '*** Begin Patch\n*** Add File: note.txt\n+"quoted" – 世界 \\ back\n+second\n*** End Patch\n'
RUNS = Answer(("I run ", "a command."), calls=(Call(1, "exec_command", '{"cmd":"echo said-$((40 + 2))"}'),))
PATCHES = Answer((), ("I think ", "and patch."), (Call(2, "apply_patch", PATCH, is_custom=True),))
SAYS = Answer(("All ", "done – «ok» 🌞."))

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not CODEX.exists(), reason="the Codex CLI is not installed: npm was not here"),
]


async def test_K03_a_spent_quota_ends_the_turn_at_once(gateway: Gateway, tmp_path: Path) -> None:
    account = await gateway.rest("POST", "accounts", json={"display_name": "poor"})
    created = await gateway.rest("POST", "keys", json={"account_id": account["account_id"]})
    provider = await gateway.add("R", script=Model("R", [SAYS], is_relayed=True).script())
    async with Tap(gateway.port) as tap:
        turn = await codex_turn(tap.url, created["secret"], provider.model, tmp_path)
    assert turn.code != 0 and tap.posts == ["/v1/responses"], (tap.posts, turn)
    assert "quota exceeded" in turn.output.lower(), turn
    assert not provider.upstream.requests


async def test_K04_a_model_that_is_not_allowed_ends_the_turn_at_once(
    gateway: Gateway, tmp_path: Path
) -> None:
    narrow = {"account_id": "acct_default", "allowed_models": ["another-model"]}
    created = await gateway.rest("POST", "keys", json=narrow)
    provider = await gateway.add("R", script=Model("R", [SAYS], is_relayed=True).script())
    async with Tap(gateway.port) as tap:
        turn = await codex_turn(tap.url, created["secret"], provider.model, tmp_path)
    assert turn.code != 0 and tap.posts == ["/v1/responses"], (tap.posts, turn)
    assert provider.model in turn.output, turn
    assert not provider.upstream.requests


@pytest.mark.parametrize("dialect", ["A", "C", "R"])
async def test_K06_a_turn_with_a_command_and_a_patch_completes(
    gateway: Gateway, tmp_path: Path, dialect: str
) -> None:
    model = Model(dialect, [RUNS, PATCHES, SAYS], is_relayed=dialect == "R")
    provider = await gateway.add(dialect, model=KNOWN_MODEL, script=model.script())
    turn = await codex_turn(gateway.mesh.base_url, gateway.key, provider.model, tmp_path)
    assert not model.problems, model.problems
    assert turn.code == 0, turn.output + turn.errors
    (command,) = turn.items("command_execution")
    assert command["aggregated_output"] == "said-42\n"
    assert [change["status"] for change in turn.items("file_change")] == ["completed"]
    assert (tmp_path / "note.txt").read_text() == '"quoted" – 世界 \\ back\nsecond\n'
    assert turn.items("agent_message")[-1]["text"] == "".join(SAYS.text)
    assert len(model.bodies) == 3
    (usage,) = (event["usage"] for event in turn.events if event["type"] == "turn.completed")
    assert usage["output_tokens"] == 3 * facts.OUTPUT_TOKENS, usage
    assert usage["input_tokens"] == 3 * (facts.INPUT_TOKENS + facts.CACHED_TOKENS), usage
    assert usage["cached_input_tokens"] == 3 * facts.CACHED_TOKENS, usage
