"""The vendors' SDKs against the gateway (wire-contract E.7); their whole matrix is in tests/sdk_matrix."""

import asyncio

import pytest
from tests.conformance.rig import Gateway, Provider
from tests.sdk_matrix import facts, python_sdks
from tests.sdk_matrix.agents import Model
from tests.sdk_matrix.answers import Answer, Call
from tests.sdk_matrix.scenarios import Result

CLIENTS = {"A": "py-anthropic", "C": "py-chat", "R": "py-responses"}
PAIRS = [(client, dialect) for client in CLIENTS for dialect in "ACR"]
CALLS = (
    Call(1, "get_weather", facts.WEATHER_ARGUMENTS),
    Call(2, "get_time", facts.TIME_ARGUMENTS),
)
ASKS = Answer(facts.BEFORE_CALL, facts.THINKING, CALLS)
SAYS = Answer(facts.TEXT)

pytestmark = pytest.mark.anyio


async def played(gateway: Gateway, client: str, scenario: str, provider: Provider) -> Result:
    """Returns what an SDK saw of a scenario."""
    arguments = (CLIENTS[client], scenario, gateway.mesh.base_url, gateway.key, provider.model)
    return await asyncio.to_thread(python_sdks.run, *arguments)


@pytest.mark.parametrize(("client", "dialect"), [pair for pair in PAIRS if pair[0] != pair[1]])
async def test_K08_stream_helpers_read_translated_answers(
    gateway: Gateway, client: str, dialect: str
) -> None:
    # The model's second answer comes once both results have.
    model = Model(dialect, [ASKS, ASKS, SAYS], is_relayed=False)
    provider = await gateway.add(dialect, script=model.script())
    result = await played(gateway, client, "thinking_streamed", provider)
    assert not model.problems, model.problems
    assert "error" not in result, result
    assert result["text"] == result["deltas"] == ["".join(facts.BEFORE_CALL), "".join(facts.TEXT)], result
    assert result["calls"] == [
        {"name": call.name, "arguments": facts.ARGUMENTS[call.name]} for call in CALLS
    ], result
    assert result["thinking"] == ["".join(facts.THINKING)], result
    assert result["usage"] == {
        "input": facts.INPUT_TOKENS + facts.CACHED_TOKENS,
        "cached": facts.CACHED_TOKENS,
        "output": facts.OUTPUT_TOKENS,
    }


async def test_K09_the_sdks_version_and_key_as_bearer_pass(gateway: Gateway) -> None:
    provider = await gateway.add("A", script=Model("A", [SAYS], is_relayed=True).script())
    result = await played(gateway, "A", "streamed", provider)
    assert result["text"] == ["".join(facts.TEXT)], result
    (received,) = provider.upstream.requests
    assert received.header("anthropic-version") == "2026-10-21"


@pytest.mark.parametrize("fault", ["error", "cut"])
@pytest.mark.parametrize(("client", "dialect"), PAIRS)
async def test_K10_a_stream_that_dies_is_an_exception(
    gateway: Gateway, client: str, dialect: str, fault: str
) -> None:
    broken = Answer(facts.TEXT, fault=fault)
    model = Model(dialect, [broken], is_relayed=client == dialect)
    provider = await gateway.add(dialect, script=model.script())
    result = await played(gateway, client, "streamed", provider)
    assert not model.problems, model.problems
    assert "error" in result, f"no exception, but {result}"
    assert len(provider.upstream.requests) == 1
