"""The connection guard over raw sockets. Names carry the row of reliability.md §10."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import uvicorn

from lurus_edge.guard import guarded
from lurus_edge.limits import GuardLimits

pytestmark = pytest.mark.anyio

LIMITS = GuardLimits(
    head_seconds=0.2,
    body_seconds=0.2,
    body_bytes_per_second=1_000,
    keep_alive_seconds=0.3,
    write_stall_seconds=0.3,
    linger_seconds=0.3,
    body_bytes=100_000,
)
HOST = b"Host: a\r\n"
GET = b"GET /ok HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"POST /ok HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"


class App:
    """Answers with the length of the body, streams on /sse, floods on /flood; remembers what reached it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.paths: list[str] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self.disconnected = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        self.headers = scope["headers"]
        if scope["path"] == "/sse":
            await self._stream(send)
            return
        if scope["path"] == "/flood":
            await self._flood(receive, send)
            return
        if scope["path"] == "/refuse":
            await self._refuse(send)
            return
        length = await self._read(receive)
        if length is not None:
            body = f"{scope['method']} {scope['path']} {length}\n".encode()
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-length", b"%d" % len(body))],
                }
            )
            await send({"type": "http.response.body", "body": body})

    async def _read(self, receive: Any) -> int | None:
        length = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected.set()
                return None
            length += len(message["body"])
            if not message["more_body"]:
                return length

    async def _refuse(self, send: Any) -> None:
        """Answers before it has read the body."""
        headers = [(b"content-length", b"7"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": b"refused"})

    async def _stream(self, send: Any) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/event-stream")],
            }
        )
        for number in range(10):
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"data: end\n\n"})

    async def _flood(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        watcher = asyncio.create_task(self._read_to_disconnect(receive))
        while not self.disconnected.is_set():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        await watcher

    async def _read_to_disconnect(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.disconnected.set()


class Quiet(uvicorn.Server):
    """A server that leaves the signals alone."""

    async def serve_until_told(self) -> None:
        await self._serve()


class Rig:
    def __init__(self, app: App, port: int) -> None:
        self.app = app
        self.port = port

    async def send(self, *pieces: bytes, pause: float = 0.0) -> bytes:
        """Writes the pieces with a pause after each, and reads until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writing = asyncio.create_task(self._write(writer, pieces, pause))
            answer = await asyncio.wait_for(reader.read(), 5)
            writing.cancel()
            return answer
        finally:
            writer.close()

    @staticmethod
    async def _write(writer: asyncio.StreamWriter, pieces: tuple[bytes, ...], pause: float) -> None:
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        except ConnectionError:
            pass


@asynccontextmanager
async def running(limits: GuardLimits) -> AsyncIterator[Rig]:
    app = App()
    config = uvicorn.Config(
        app, port=0, http=guarded(limits), ws="none", lifespan="off", access_log=False, log_config=None
    )
    server = Quiet(config)
    serving = asyncio.create_task(server.serve_until_told())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield Rig(app, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = server.force_exit = True
        await serving


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Rig]:
    async with running(LIMITS) as rig:
        yield rig


@pytest.fixture
def rig(server: Rig) -> Rig:
    server.app.forget()
    return server


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:80]
    return int(answer[9:12])


def refusal(answer: bytes) -> Any:
    """Returns the JSON body of an answer that must be one refusal and nothing else."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nconnection: close" in head
    assert b"\r\ncontent-type: application/json" in head
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert fields[b"request-id"] == fields[b"x-request-id"]
    assert fields[b"request-id"].startswith(b"req_")
    return json.loads(body)


async def test_complete_requests_share_a_connection(rig: Rig) -> None:
    post = b"POST /ok HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello"
    chunked = CHUNKED + b"2;x=y\r\nab\r\n0\r\nX-Trailer: 1\r\n\r\n"
    last = b"GET /end HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    answer = await rig.send(GET, post, chunked, last, pause=0.02)
    assert rig.app.paths == ["/ok", "/ok", "/ok", "/end"]
    for body in (b"GET /ok 0\n", b"POST /ok 5\n", b"POST /ok 2\n", b"GET /end 0\n"):
        assert body in answer


async def test_trailers_never_become_headers(rig: Rig) -> None:
    await rig.send(CHUNKED + b"2\r\nab\r\n0\r\nAuthorization: evil\r\n\r\n")
    assert all(name != b"authorization" for name, _ in rig.app.headers)


async def test_an_idle_kept_connection_is_closed_without_an_answer(rig: Rig) -> None:
    started = time.monotonic()
    answer = await rig.send(GET)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert 0.25 < time.monotonic() - started < 10
    assert answer.endswith(b"GET /ok 0\n")


@pytest.mark.row("B16")
async def test_b16_a_length_over_the_limit_is_refused_before_the_body(rig: Rig) -> None:
    head = b"POST %s HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 100001\r\n\r\n"
    answer = await rig.send(head % b"/v1/messages?beta=true")
    assert status(answer) == 413
    body = refusal(answer)
    assert body["type"] == "error"
    assert body["error"]["type"] == "request_too_large"
    assert body["request_id"].encode() in answer.partition(b"\r\n\r\n")[0]
    assert b"x-should-retry: false" in answer
    answer = await rig.send(head % b"/v1/chat/completions")
    assert (status(answer), refusal(answer)["error"]["code"]) == (413, "request_too_large")
    answer = await rig.send(head % b"/responses")  # Codex repeats a 413 six times.
    assert (status(answer), refusal(answer)["error"]["code"]) == (400, "request_too_large")
    assert rig.app.paths == []


async def test_b16_a_client_that_sends_the_whole_body_first_reads_the_answer(rig: Rig) -> None:
    head = b"POST /ok HTTP/1.1\r\n" + HOST + b"Content-Length: 9000000\r\n\r\n"
    answer = await rig.send(head, *[b"x" * 1_000_000] * 9)
    assert status(answer) == 413


@pytest.mark.row("B16")
async def test_b16_an_early_answer_is_read_and_not_a_reset() -> None:
    """Closed with bytes unread, the kernel would break the connection, and the answer with it."""
    head = b"POST /refuse HTTP/1.1\r\n" + HOST + b"Connection: close\r\nContent-Length: 8000000\r\n\r\n"
    async with running(replace(LIMITS, body_bytes=9_000_000, linger_seconds=3.0)) as rig:
        answer = await rig.send(head, *[b"x" * 1_000_000] * 8)
    assert status(answer) == 503 and answer.endswith(b"refused")


@pytest.mark.row("B17")
async def test_b17_a_chunked_body_is_refused_at_the_limit(rig: Rig) -> None:
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    answer = await rig.send(CHUNKED, *[chunk] * 40)
    assert status(answer) == 413
    refusal(answer)
    assert rig.app.disconnected.is_set()


@pytest.mark.row("B17")
async def test_b17_tiny_chunks_are_refused(rig: Rig) -> None:
    async with running(GuardLimits(body_bytes=32 << 20)) as rig:
        answer = await rig.send(CHUNKED, *[b"1\r\nx\r\n" * 10_000] * 40)
        assert status(answer) == 400


HOSTILE = {
    "b30_cr_in_value": GET[:-2] + b"X: a\rb\r\n\r\n",
    "b30_nul_in_value": GET[:-2] + b"X: a\0b\r\n\r\n",
    "b30_obs_fold": GET[:-2] + b"X: a\r\n b\r\n\r\n",
    "b30_bare_lf": GET[:-2] + b"X: a\n\r\n",
    "b30_bare_lf_everywhere": b"GET /ok HTTP/1.1\nHost: a\n\n",
    "b30_space_before_colon": b"GET /ok HTTP/1.1\r\nHost : a\r\n\r\n",
    "b31_cl_and_te": GET[:-2] + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "b31_te_and_cl": GET[:-2] + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "b31_two_cl": GET[:-2] + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "b31_two_equal_cl": GET[:-2] + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    "b31_cl_list": GET[:-2] + b"Content-Length: 5, 5\r\n\r\nabcde",
    "b31_cl_plus": GET[:-2] + b"Content-Length: +5\r\n\r\nabcde",
    "b31_cl_minus": GET[:-2] + b"Content-Length: -1\r\n\r\n",
    "b31_cl_empty": GET[:-2] + b"Content-Length: \r\n\r\n",
    "b31_te_xchunked": GET[:-2] + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "b31_te_identity": GET[:-2] + b"Transfer-Encoding: identity\r\n\r\n",
    "b31_te_gzip_chunked": GET[:-2] + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "b31_te_twice": GET[:-2] + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "b31_te_in_http_1_0": b"POST /ok HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "b31_chunk_size_hex_prefix": CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n",
    "b31_chunk_size_garbage": CHUNKED + b"zz\r\nab\r\n0\r\n\r\n",
    "b31_chunk_size_overflow": CHUNKED + b"fffffffffffffffff\r\n",
    "b31_chunk_terminator": CHUNKED + b"2\r\nabXX0\r\n\r\n",
    "b31_chunk_bare_lf": CHUNKED + b"2\nab\n0\n\n",
    "b32_no_host": b"GET /ok HTTP/1.1\r\n\r\n",
    "b32_two_hosts": b"GET /ok HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "b33_tls_hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 100,
    "http_2_preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http_2_version": b"GET /ok HTTP/2.0\r\nHost: a\r\n\r\n",
    "connect": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "path_not_ascii": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.row("B30", "B31", "B32", "B33")
async def test_b30_to_b33_hostile_framing_is_refused_and_what_follows_is_not_executed(
    rig: Rig, name: str
) -> None:
    answer = await rig.send(HOSTILE[name] + b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n")
    assert status(answer) == 400
    refusal(answer)
    await asyncio.sleep(0.02)
    assert "/smuggled" not in rig.app.paths


@pytest.mark.row("B33")
async def test_b33_tls_is_named_in_the_answer(rig: Rig) -> None:
    assert "TLS" in refusal(await rig.send(HOSTILE["b33_tls_hello"]))["error"]["message"]


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (GET[:-2] + b"X: " + b"a" * 65536 + b"\r\n\r\n", 431),
        (GET[:-2] + b"X: " + b"a" * (1 << 20), 431),
        (GET[:-2] + b"X: a\r\n" * 10_000 + b"\r\n", 431),
        (GET[:-2] + b"X: a\r\n" * 100 + b"\r\n", 431),
        (b"GET /" + b"a" * 20480 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /" + b"a" * 1_000_000, 414),
    ],
    ids=["64 KiB header", "1 MiB header", "10,000 headers", "101 headers", "20 KiB URL", "endless URL"],
)
async def test_b32_sizes_of_the_head(rig: Rig, request_bytes: bytes, expected: int) -> None:
    answer = await rig.send(request_bytes)
    assert status(answer) == expected
    refusal(answer)
    assert rig.app.paths == []


async def test_b32_the_largest_allowed_head_passes(rig: Rig) -> None:
    head = b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 98
    answer = await rig.send(head + b"Y: " + b"b" * 30_000 + b"\r\n\r\n")
    assert status(answer) == 200


async def test_b33_a_silent_connection_is_closed_without_an_answer(rig: Rig) -> None:
    started = time.monotonic()
    assert await rig.send() == b""
    assert time.monotonic() - started < 8


@pytest.mark.row("B34")
async def test_b34_slow_heads_get_408_and_do_not_slow_the_others(rig: Rig) -> None:
    slow = [asyncio.create_task(rig.send(GET[:-2], *[b"X: a\r\n"] * 50, pause=0.05)) for _ in range(100)]
    await asyncio.sleep(0.1)
    started = time.monotonic()
    assert status(await rig.send(b"GET /ok HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")) == 200
    assert time.monotonic() - started < 5
    answers = await asyncio.gather(*slow)
    assert {status(answer) for answer in answers} == {408}
    assert refusal(answers[0])["error"]["code"] == "request_timeout"
    assert rig.app.paths == ["/ok"]


@pytest.mark.parametrize("before", [b"", GET], ids=["first request", "kept connection"])
async def test_b34_a_head_that_stops_gets_408(rig: Rig, before: bytes) -> None:
    answer = await rig.send(before, b"POST /v1/messages HTT", pause=0.05)
    assert answer.count(b"HTTP/1.1 408") == 1


@pytest.mark.row("B35")
async def test_b35_a_slow_body_gets_408(rig: Rig) -> None:
    head = b"POST /v1/messages HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\n"
    answer = await rig.send(head, *[b"x"] * 100, pause=0.02)
    assert status(answer) == 408
    assert refusal(answer)["error"]["type"] == "timeout_error"
    assert rig.app.disconnected.is_set()


async def test_b35_a_half_body_gets_408_and_a_closed_one_nothing(rig: Rig) -> None:
    half = b"POST /ok HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\n" + b"x" * 50
    assert status(await rig.send(half)) == 408
    rig.app.disconnected.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(half)
    await asyncio.sleep(0.05)
    writer.close()
    await asyncio.wait_for(rig.app.disconnected.wait(), 15)


async def test_b35_a_body_that_keeps_the_rate_has_all_the_time_it_needs(rig: Rig) -> None:
    head = b"POST /ok HTTP/1.1\r\n" + HOST + b"Content-Length: 4000\r\n\r\n"
    answer = await rig.send(head, *[b"x" * 200] * 20, pause=0.05)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert answer.endswith(b"POST /ok 4000\n")


async def test_b36_pipelined_requests_are_answered_in_order(rig: Rig) -> None:
    heads = [b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(100)]
    answer = await rig.send(b"".join(heads))
    assert rig.app.paths == [f"/{number}" for number in range(100)]
    bodies = [line for line in answer.split(b"\n") if line.startswith(b"GET /")]
    assert bodies == [b"GET /%d 0" % number for number in range(100)]


@pytest.mark.row("B36")
async def test_b36_a_thousand_at_once_are_answered_in_order_and_then_closed(rig: Rig) -> None:
    heads = [b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(1000)]
    answer = await rig.send(b"".join(heads))
    served = answer.count(b"HTTP/1.1 200")
    assert served >= 100
    assert rig.app.paths == [f"/{number}" for number in range(served)]
    assert answer.count(b"HTTP/1.1 400") == 1


async def test_b36_garbage_behind_a_running_stream_waits_for_its_end(rig: Rig) -> None:
    sse = b"GET /sse HTTP/1.1\r\n" + HOST + b"\r\n"
    answer = await rig.send(sse + b"GARBAGE\r\n\r\n" + GET)
    stream, _, rest = answer.partition(b"0\r\n\r\n")
    assert [b"data: %d" % number in stream for number in range(10)] == [True] * 10
    assert b"data: end" in stream
    assert rest.startswith(b"HTTP/1.1 400")
    assert rig.app.paths == ["/sse"]


async def test_b36_garbage_behind_an_answer_without_a_body_is_answered_after_it(rig: Rig) -> None:
    answer = await rig.send(b"HEAD /ok HTTP/1.1\r\n" + HOST + b"\r\nGARBAGE\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1 400") == 1


async def test_b36_a_bad_body_behind_a_running_stream_is_never_executed(rig: Rig) -> None:
    sse = b"GET /sse HTTP/1.1\r\n" + HOST + b"\r\n"
    answer = await rig.send(sse + CHUNKED + b"zz\r\n")
    assert b"data: end" in answer
    assert answer.count(b"HTTP/1.1 400") == 1
    assert rig.app.paths == ["/sse"]


async def test_a_running_stream_outlives_every_deadline_even_with_half_a_request_behind_it(rig: Rig) -> None:
    sse = b"GET /sse HTTP/1.1\r\n" + HOST + b"\r\n"
    answer = await rig.send(sse, b"GET /ha", pause=0.05)
    assert b"data: end" in answer
    assert answer.count(b"HTTP/1.1 408") == 1


async def test_a_client_that_leaves_with_a_request_pipelined_is_noticed(rig: Rig) -> None:
    flood = b"GET /flood HTTP/1.1\r\n" + HOST + b"\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(flood + GET)
    await asyncio.sleep(0.05)
    writer.transport.abort()
    await asyncio.wait_for(rig.app.disconnected.wait(), 15)
    assert rig.app.paths == ["/flood"]


@pytest.mark.row("F16")
async def test_a_client_that_stops_reading_is_cut(rig: Rig) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", rig.port, limit=1024)
    writer.write(b"GET /flood HTTP/1.1\r\n" + HOST + b"\r\n")
    await asyncio.wait_for(rig.app.disconnected.wait(), 3)
    writer.close()


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
@pytest.mark.parametrize(
    "body", [b"Content-Length: 2\r\n\r\nab", b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"]
)
async def test_b52_an_upgrade_is_a_plain_request_with_its_body(
    rig: Rig, protocol: bytes, body: bytes
) -> None:
    upgrade = (
        b"POST /v1/responses HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n"
    )
    answer = await rig.send(upgrade + body[:-1], body[-1:] + upgrade + b"\r\n" + GET, pause=0.02)
    assert rig.app.paths == ["/v1/responses", "/v1/responses", "/ok"]
    for line in (b"POST /v1/responses 2\n", b"POST /v1/responses 0\n", b"GET /ok 0\n"):
        assert line in answer


@pytest.mark.parametrize("path", [b"//v1/messages", b"/v1/%2e%2e/x", b"/V1/Messages", b"/v1/messages/"])
async def test_b52_odd_paths_reach_the_application_unchanged(rig: Rig, path: bytes) -> None:
    await rig.send(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert rig.app.paths == [path.decode().replace("%2e", ".")]


async def test_an_http_1_0_health_check_needs_no_host(rig: Rig) -> None:
    answer = await rig.send(b"GET /ok HTTP/1.0\r\n\r\n")
    assert status(answer) == 200
