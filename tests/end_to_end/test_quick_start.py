"""What the README promises a newcomer: a key, a streamed answer, and the call in the books to the token."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from tests.support.mesh import Mesh, eventually

START_BALANCE = 100 * 10**9
# Of the sandbox, nano-USD per million tokens; see the shipped catalogue.
INPUT, CACHE_READ, WRITE_5M, WRITE_30M, OUTPUT = (
    3 * 10**9,
    300_000_000,
    3_750_000_000,
    3_750_000_000,
    15 * 10**9,
)

BODIES: dict[str, dict[str, Any]] = {
    "/v1/messages": {
        "model": "sandbox-text",
        "max_tokens": 500,
        "messages": [{"role": "user", "content": "Hi"}],
    },
    "/v1/chat/completions": {"model": "sandbox-text", "messages": [{"role": "user", "content": "Hi"}]},
    "/v1/responses": {"model": "sandbox-text", "input": "Hi"},
}


@pytest.fixture(scope="module", params=["in process", "on the wire"])
def mesh(request: pytest.FixtureRequest, running_mesh: Mesh) -> Iterator[Mesh]:
    """Every test of this page runs twice: edge and routing in one process, and with gRPC between them."""
    if request.param == "in process":
        yield running_mesh
        return
    with running_mesh.on_the_wire() as there:
        yield there


def price_by_hand(tokens: dict[str, str]) -> int:
    """What a row of the log must cost, by the sandbox's prices."""
    count = {name: int(value) for name, value in tokens.items()}
    scaled = (
        count.get("input", 0) * INPUT
        + count.get("cache_read", 0) * CACHE_READ
        + count.get("cache_write_5m", 0) * WRITE_5M
        + count.get("cache_write_30m", 0) * WRITE_30M
        + count.get("output", 0) * OUTPUT
    )
    return -(-scaled // 10**6)


def stated_usage(path: str, usage: dict[str, Any]) -> dict[str, int]:
    """The provider's usage in the words of our contract, without zeros."""
    if path == "/v1/messages":
        found = {
            "input": usage["input_tokens"],
            "cache_read": usage.get("cache_read_input_tokens", 0),
            "cache_write_5m": usage.get("cache_creation_input_tokens", 0),
            "output": usage["output_tokens"],
        }
    else:
        prompt = "prompt" if path == "/v1/chat/completions" else "input"
        completion = "completion" if path == "/v1/chat/completions" else "output"
        details = usage.get(f"{prompt}_tokens_details") or {}
        read, write = details.get("cached_tokens", 0), details.get("cache_write_tokens", 0)
        found = {
            "input": usage[f"{prompt}_tokens"] - read - write,
            "cache_read": read,
            "cache_write_30m": write,
            "output": usage[f"{completion}_tokens"],
        }
    return {name: count for name, count in found.items() if count}


def final_usage(path: str, stream: str) -> dict[str, Any]:
    """The usage that a stream states, merged as its dialect says."""
    merged: dict[str, Any] = {}
    for line in stream.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line[6:])
            for holder in (event, event.get("message"), event.get("response")):
                if isinstance(holder, dict) and isinstance(holder.get("usage"), dict):
                    merged |= {name: value for name, value in holder["usage"].items() if value is not None}
    return merged


def assert_in_the_books(mesh: Mesh, request_id: str, expected: dict[str, int]) -> None:
    """The request is in log and ledger with these tokens, at their price."""
    row = mesh.log_row(request_id)
    counted = {
        name: int(count) for name, count in row["tokens"].items() if name != "reasoning" and int(count)
    }
    assert counted == expected
    assert row["token_source"] == "TOKEN_SOURCE_PROVIDER"
    assert int(row["cost_nano_usd"]) == price_by_hand(row["tokens"]) > 0
    entry = mesh.transaction(request_id)
    assert int(entry["amount_nano_usd"]) == -int(row["cost_nano_usd"])
    assert entry["tokens"] == row["tokens"]


@pytest.mark.parametrize("path", BODIES)
def test_a_plain_call_is_in_the_books_to_the_token(mesh: Mesh, path: str) -> None:
    answer = mesh.http.post(path, json=BODIES[path], headers=mesh.headers())
    assert answer.status_code == 200, answer.text
    assert_in_the_books(mesh, answer.headers["x-request-id"], stated_usage(path, answer.json()["usage"]))


@pytest.mark.parametrize("path", BODIES)
def test_a_streamed_call_is_in_the_books_to_the_token(mesh: Mesh, path: str) -> None:
    body = {**BODIES[path], "stream": True}
    if path == "/v1/chat/completions":
        body["stream_options"] = {"include_usage": True}
    answer = mesh.http.post(path, json=body, headers=mesh.headers())
    assert answer.headers["content-type"].startswith("text/event-stream")
    usage = stated_usage(path, final_usage(path, answer.text))
    assert_in_the_books(mesh, answer.headers["request-id"], usage)


def test_the_balance_falls_by_what_the_ledger_says(mesh: Mesh) -> None:
    answer = mesh.http.post("/v1/messages", json=BODIES["/v1/messages"], headers=mesh.headers())
    mesh.transaction(answer.headers["request-id"])
    entries = mesh.rest("GET", "transactions?account_id=acct_default&page_size=1000")["transactions"]
    spent = sum(int(entry["amount_nano_usd"]) for entry in entries)
    balance = mesh.rest("GET", "balance?account_id=acct_default")
    assert int(balance["balance_nano_usd"]) == spent < START_BALANCE


def test_curl_streams_an_answer(mesh: Mesh) -> None:
    body = json.dumps({**BODIES["/v1/chat/completions"], "stream": True})
    headers = ["-H", f"authorization: Bearer {mesh.key}", "-H", "content-type: application/json"]
    command = [
        "curl",
        "--silent",
        "--no-buffer",
        f"{mesh.base_url}/v1/chat/completions",
        *headers,
        "-d",
        body,
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    assert output.startswith("data: ")
    assert output.rstrip().endswith("data: [DONE]")


class TestOpenAiSdk:
    def client(self, mesh: Mesh) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{mesh.base_url}/v1", api_key=mesh.key, max_retries=0)

    def test_chat_plain_and_streamed_say_the_same(self, mesh: Mesh) -> None:
        with self.client(mesh) as client:
            messages = [{"role": "user", "content": "Say something"}]
            whole = client.chat.completions.create(model="sandbox-text", messages=messages)  # type: ignore[arg-type]
            pieces = client.chat.completions.create(model="sandbox-text", messages=messages, stream=True)  # type: ignore[call-overload]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
        assert text == whole.choices[0].message.content
        assert whole.usage is not None and whole.usage.total_tokens > 0

    def test_responses_stream_helper(self, mesh: Mesh) -> None:
        with self.client(mesh) as client, client.responses.stream(model="sandbox-text", input="Hi") as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
        assert final.output_text and final.usage is not None

    def test_tools(self, mesh: Mesh) -> None:
        schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
        with self.client(mesh) as client:
            answer = client.chat.completions.create(
                model="sandbox-tools",
                messages=[{"role": "user", "content": "weather?"}],
                tools=[tool],  # type: ignore[list-item]
            )
        calls = answer.choices[0].message.tool_calls
        assert calls and calls[0].type == "function" and "city" in json.loads(calls[0].function.arguments)

    def test_models_and_an_unknown_key(self, mesh: Mesh) -> None:
        with self.client(mesh) as client:
            assert "sandbox-text" in {model.id for model in client.models.list()}
        stranger = openai.OpenAI(base_url=f"{mesh.base_url}/v1", api_key="lsk_wrong")
        with stranger, pytest.raises(openai.AuthenticationError):
            stranger.models.list()


class TestAnthropicSdk:
    def client(self, mesh: Mesh) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=mesh.base_url, api_key=mesh.key, max_retries=0)

    def test_stream_helper_with_thinking(self, mesh: Mesh) -> None:
        with (
            self.client(mesh) as client,
            client.messages.stream(
                model="sandbox-thinking", max_tokens=500, messages=[{"role": "user", "content": "Think"}]
            ) as stream,
        ):
            final = stream.get_final_message()
        assert [block.type for block in final.content] == ["thinking", "text"]
        assert final.usage.output_tokens > 0

    def test_plain_count_and_models(self, mesh: Mesh) -> None:
        with self.client(mesh) as client:
            messages = [{"role": "user", "content": "Hi"}]
            answer = client.messages.create(model="sandbox-text", max_tokens=100, messages=messages)  # type: ignore[arg-type]
            count = client.messages.count_tokens(model="sandbox-text", messages=messages)  # type: ignore[arg-type]
            names = [model.id for model in client.models.list()]
        assert answer.stop_reason in ("end_turn", "max_tokens")
        assert count.input_tokens > 0
        assert "sandbox-text" in names

    def test_a_key_works_as_x_api_key_too(self, mesh: Mesh) -> None:
        headers = {"x-api-key": mesh.key, "anthropic-version": "2023-06-01"}
        assert mesh.http.post("/v1/messages", json=BODIES["/v1/messages"], headers=headers).status_code == 200


def test_counting_tokens_costs_nothing(mesh: Mesh) -> None:
    body = {"model": "sandbox-text", "messages": [{"role": "user", "content": "Hi"}]}
    answer = mesh.http.post("/v1/messages/count_tokens", json=body, headers=mesh.headers())
    paid = mesh.http.post("/v1/messages", json=BODIES["/v1/messages"], headers=mesh.headers())
    mesh.transaction(paid.headers["request-id"])
    request_id = answer.headers["request-id"]
    assert (
        mesh.rest("GET", f"transactions?account_id=acct_default&transaction_id={request_id}")["transactions"]
        == []
    )


def test_statistics_count_what_was_served(mesh: Mesh) -> None:
    answer = mesh.http.post("/v1/responses", json=BODIES["/v1/responses"], headers=mesh.headers())
    mesh.log_row(answer.headers["request-id"])
    rows = mesh.rest("GET", "stats?group_by=STATS_GROUP_MODEL&group_by=STATS_GROUP_PROVIDER")["rows"]
    row = next(row for row in rows if row["model"] == "sandbox-text")
    assert (
        row["provider_id"] == "sandbox" and int(row["request_count"]) >= 1 and int(row["cost_nano_usd"]) > 0
    )
    assert eventually(lambda: row["first_event"]["p50_duration"], 1)
