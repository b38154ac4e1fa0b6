"""The defects a to p of the system that this one replaces cannot come back.

Each test stands for a letter and goes through the whole mesh: a real client's
bytes in, a scripted provider's bytes out, real stores behind. Where a defect
lives in one place (a consumer killed in the middle, a poison message, a
ClickHouse killed in mid-batch), the test stands beside that place; the table
`ELSEWHERE` names it, and the last test checks that it is there.
"""

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.mesh import Mesh, eventually
from tests.support.scripted_upstream import Exchange, ScriptedUpstream, plain, stream

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "b2: re-chunked at every byte": ("tests/dialects/test_watch.py", "every"),
    "e: start with an empty NATS": ("tests/common/test_consumer.py", "makes_the_stream"),
    "g: redelivered five times, one debit": ("tests/billing", "five"),
    "g: poison is parked, neighbours settle": ("tests/billing", "poison"),
    "h: ClickHouse killed in mid-batch": ("tests/log", "kill"),
    "l: no failover after the first event": ("tests/routing", "cut_stream_ends"),
    "m: one probe at half-open": ("tests/routing", "hundred_probes"),
    "o: no plaintext key in a database dump": ("tests/billing", "stored_nowhere"),
    "o: no plaintext credential in a database dump": ("tests/provider", "nowhere_in_plaintext"),
}

CHAT_CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[%b]}\n\n'


def chat_text(text: str) -> bytes:
    """One chunk of text."""
    return CHAT_CHUNK % b'{"index":0,"delta":{"content":%b},"finish_reason":null}' % json.dumps(text).encode()


def chat_end(prompt: int, completion: int) -> list[bytes]:
    """Finish, usage, terminator."""
    usage = b'"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}\n\n'
    return [
        CHAT_CHUNK % b'{"index":0,"delta":{},"finish_reason":"stop"}',
        b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
        + usage % (prompt, completion, prompt + completion),
        b"data: [DONE]\n\n",
    ]


@asynccontextmanager
async def scripted(mesh: Mesh, name: str) -> AsyncIterator[ScriptedUpstream]:
    """A provider of the mesh that does as it is told; serves the models `<name>-*`."""
    async with ScriptedUpstream() as upstream:
        provider = {
            "provider_id": name,
            "dialects": ["DIALECT_ANTHROPIC", "DIALECT_OPENAI_CHAT", "DIALECT_OPENAI_RESPONSES"],
            "base_url": upstream.url,
            "credentials": [{"secret": "a-secret-of-the-test"}],
            "model_mappings": [{"model": f"{name}-*", "upstream_model": "up-*"}],
        }
        # The price first: a gateway that knows the provider then knows it too.
        price = {"model": f"{name}-x", "input_nano_usd": str(10**9), "output_nano_usd": str(2 * 10**9)}
        await asyncio.to_thread(mesh.rest, "POST", "prices", json=price)
        await asyncio.to_thread(mesh.rest, "POST", "providers", json=provider)
        try:
            await asyncio.to_thread(eventually, lambda: is_known(mesh, f"{name}-x"), 10)
            yield upstream
        finally:
            await asyncio.to_thread(mesh.rest, "DELETE", f"providers/{name}")


def is_known(mesh: Mesh, model: str) -> bool:
    """Whether the gateway has heard of a provider for this model."""
    path = f"routes:explain?model={model}&dialect=DIALECT_OPENAI_CHAT"
    found = mesh.rest("GET", path)["candidates"]
    return any(row["provider_id"] != "sandbox" for row in found)


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client with the first key."""
    async with httpx.AsyncClient(base_url=mesh.base_url, headers=mesh.headers(), timeout=30) as found:
        yield found


def chat(model: str, **more: Any) -> dict[str, Any]:
    """A request body."""
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], **more}


async def test_a_first_event_reaches_the_client_before_the_third_is_sent(
    mesh: Mesh, client: httpx.AsyncClient
) -> None:
    seen = asyncio.Event()
    async with scripted(mesh, "defect-a") as upstream:
        upstream.script = stream(
            [chat_text("one"), chat_text("two"), seen, chat_text("three"), *chat_end(1, 3)]
        )
        async with client.stream(
            "POST", "/v1/chat/completions", json=chat("defect-a-x", stream=True)
        ) as answer:
            text = ""
            async for piece in answer.aiter_text():
                text += piece
                if "one" in text:
                    seen.set()
    assert seen.is_set() and "three" in text


async def test_b3_usage_is_asked_for_and_stripped_if_the_client_did_not_ask(
    mesh: Mesh, client: httpx.AsyncClient
) -> None:
    async with scripted(mesh, "defect-b3") as upstream:
        upstream.script = stream([chat_text("hello"), *chat_end(11, 7)])
        answer = await client.post("/v1/chat/completions", json=chat("defect-b3-x", stream=True))
        sent = upstream.requests[0].json()
    assert sent["stream_options"] == {"include_usage": True}
    assert "usage" not in answer.text and "[DONE]" in answer.text
    row = await asyncio.to_thread(mesh.log_row, answer.headers["x-request-id"])
    assert (row["tokens"]["input"], row["tokens"]["output"]) == ("11", "7")


async def test_c_the_cost_metric_is_above_zero_after_one_call(mesh: Mesh, client: httpx.AsyncClient) -> None:
    async with scripted(mesh, "defect-c") as upstream:
        upstream.script = stream([chat_text("hello"), *chat_end(1000, 500)])
        await client.post("/v1/chat/completions", json=chat("defect-c-x", stream=True))
    metrics = (await client.get("/metrics")).text
    line = next(
        line
        for line in metrics.splitlines()
        if line.startswith('lurus_cost_nano_usd_total{provider="defect-c"}')
    )
    assert float(line.split()[1]) == 1000 * 1000 + 500 * 2000


async def test_d_a_real_call_ends_in_a_ledger_row(mesh: Mesh, client: httpx.AsyncClient) -> None:
    body = {"model": "up-x", "object": "chat.completion", "id": "c", "created": 1}
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    async with scripted(mesh, "defect-d") as upstream:
        upstream.script = plain({**body, "choices": [choice], "usage": usage})
        answer = await client.post("/v1/chat/completions", json=chat("defect-d-x"))
    entry = await asyncio.to_thread(mesh.transaction, answer.headers["x-request-id"])
    assert int(entry["amount_nano_usd"]) == -(3 * 1000 + 2 * 2000)


@pytest.mark.parametrize("header", ["X-User-ID", "X_User_Id", "x-lurus-account", "x-account-id"])
async def test_i_a_user_named_in_a_header_is_ignored(
    mesh: Mesh, client: httpx.AsyncClient, header: str
) -> None:
    async with scripted(mesh, "defect-i") as upstream:
        upstream.script = stream([chat_text("x"), *chat_end(1, 1)])
        body = chat("defect-i-x", stream=True)
        answer = await client.post("/v1/chat/completions", json=body, headers={header: "acct_somebody-else"})
        names = {name.replace("_", "-") for name, _ in upstream.requests[0].headers}
    assert header.lower().replace("_", "-") not in names
    row = await asyncio.to_thread(mesh.log_row, answer.headers["x-request-id"])
    assert row["account_id"] == "acct_default"


async def test_i_without_a_key_nothing_is_served(mesh: Mesh) -> None:
    async with httpx.AsyncClient(base_url=mesh.base_url) as stranger:
        answer = await stranger.post(
            "/v1/chat/completions", json=chat("sandbox-text"), headers={"X-User-ID": "1"}
        )
    assert answer.status_code == 401


class TestSlowStream:
    """Ten minutes, scaled down by settings: a stream of 5 s under timers of 1 s."""

    @pytest.fixture
    def slow_mesh(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
        timers = {
            "upstream_first_event_seconds": "1",
            "upstream_idle_seconds": "1",
            "heartbeat_seconds": "0.3",
        }
        with Mesh(tmp_path_factory.mktemp("slow"), **timers) as running:
            yield running

    async def test_j_a_stream_that_outlives_every_timer_but_is_never_silent_survives(
        self, slow_mesh: Mesh
    ) -> None:
        pieces = [chat_text(f"piece {number} ") for number in range(10)]
        async with scripted(slow_mesh, "defect-j") as upstream:
            upstream.script = stream([*pieces, *chat_end(1, 10)], pause_seconds=0.5)
            started = time.monotonic()
            async with httpx.AsyncClient(base_url=slow_mesh.base_url, headers=slow_mesh.headers()) as client:
                answer = await client.post(
                    "/v1/chat/completions", json=chat("defect-j-x", stream=True), timeout=30
                )
        assert time.monotonic() - started > 5
        assert "piece 9" in answer.text and answer.text.endswith("data: [DONE]\n\n")
        assert ": keepalive" in answer.text


async def test_k_ids_are_ours_ordered_and_unlike_each_other(mesh: Mesh, client: httpx.AsyncClient) -> None:
    async with scripted(mesh, "defect-k") as upstream:
        upstream.script = stream([chat_text("x"), *chat_end(1, 1)])
        body = chat("defect-k-x", stream=True)
        forged = {"x-request-id": "req_0000000000AAAAAAAAAAAAAAAA", "idempotency-key": "constant"}
        answers = [await client.post("/v1/chat/completions", json=body, headers=forged) for _ in range(5)]
    ids = [answer.headers["request-id"] for answer in answers]
    assert ids == sorted(set(ids)) and all(found.startswith("req_") for found in ids)
    assert forged["x-request-id"] not in ids
    for found in ids:
        await asyncio.to_thread(mesh.transaction, found)


async def test_l_a_stream_that_breaks_has_one_begin_and_no_second_answer(
    mesh: Mesh, client: httpx.AsyncClient
) -> None:
    async def breaks(exchange: Exchange) -> None:
        await exchange.send_stream_head()
        await exchange.send_chunk(
            b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message",'
            b'"role":"assistant","model":"x","content":[],"usage":{"input_tokens":9,"output_tokens":1}}}\n\n'
            b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
            b'"content_block":{"type":"text","text":""}}\n\n'
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            b'"delta":{"type":"text_delta","text":"half an answer"}}\n\n'
        )
        exchange.reset()

    async with scripted(mesh, "defect-l") as upstream:
        upstream.script = breaks
        body = {**chat("defect-l-x"), "max_tokens": 10, "stream": True}
        answer = await client.post("/v1/messages", json=body)
        assert len(upstream.requests) == 1
    assert answer.text.count("event: message_start") == 1
    assert "event: error" in answer.text and "message_stop" not in answer.text


async def test_n_the_body_is_the_clients_but_for_the_models_value(
    mesh: Mesh, client: httpx.AsyncClient
) -> None:
    body = (
        b'{ "temperature" : 1.0, "unknown":{"model":"defect-n-x","deep":[1e3, 12345678901234567890]},\n'
        b'\t"model":  "defect-n-x" ,"messages":[{"role":"user",'
        b'"content":"\\u00e9 \\"model\\": \\"defect-n-x\\""}]}'
    )
    async with scripted(mesh, "defect-n") as upstream:
        upstream.script = plain({"error": {"message": "no", "type": "invalid_request_error"}}, status=400)
        await client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        sent = upstream.requests[0].body
    begin, end = body.split(b'"model":  "defect-n-x"')
    assert sent == begin + b'"model":  "up-x"' + end


def test_o_no_secret_stands_in_the_data_directory_but_where_it_belongs(mesh: Mesh) -> None:
    secret = "a-provider-secret-that-must-not-be-found-anywhere"
    provider = {
        "provider_id": "defect-o",
        "dialects": ["DIALECT_ANTHROPIC"],
        "base_url": "http://127.0.0.1:9",
        "credentials": [{"secret": secret}],
        "supported_models": ["none"],
    }
    answer = mesh.rest("POST", "providers", json=provider)
    assert secret not in json.dumps(answer)
    key = mesh.rest("POST", "keys", json={"account_id": "acct_default"})["secret"]
    answer = mesh.http.post("/v1/chat/completions", json=chat("sandbox-text"), headers={"x-api-key": key})
    mesh.log_row(answer.headers["x-request-id"])
    mesh.rest("DELETE", "providers/defect-o")
    for needle in (secret, key):
        command = [
            "grep",
            "--recursive",
            "--files-with-matches",
            "--text",
            "--fixed-strings",
            needle,
            str(mesh.data_dir),
        ]
        found = subprocess.run(command, capture_output=True, text=True).stdout
        assert found == ""


async def test_p_image_blocks_arrive_untouched(mesh: Mesh, client: httpx.AsyncClient) -> None:
    image = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo=" * 1000},
    }
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}}
    content = [image, document, {"type": "text", "text": "What is this?"}]
    body = {"model": "defect-p-x", "max_tokens": 10, "messages": [{"role": "user", "content": content}]}
    async with scripted(mesh, "defect-p") as upstream:
        upstream.script = plain(
            {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}, status=400
        )
        await client.post("/v1/messages", json=body)
        assert upstream.requests[0].json() == {**body, "model": "up-x"}


async def test_p_when_all_fail_the_answer_is_an_error_of_the_gateway(
    mesh: Mesh, client: httpx.AsyncClient
) -> None:
    async with scripted(mesh, "defect-q") as upstream:
        upstream.script = plain(
            "<html>secret internals</html>", status=500, headers={"content-type": "text/html"}
        )
        answer = await client.post("/v1/chat/completions", json=chat("defect-q-x"))
    assert 500 <= answer.status_code < 600
    assert "secret internals" not in answer.text and answer.json()["error"]["type"]


@pytest.mark.parametrize("defect", ELSEWHERE)
def test_the_other_defects_have_their_tests(defect: str) -> None:
    place, word = ELSEWHERE[defect]
    files = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).glob("test_*.py"))
    names = [line for file in files for line in file.read_text().splitlines() if "def test_" in line]
    assert any(word in name for name in names), f"no test named for {defect} in {place}"
