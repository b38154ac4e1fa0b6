"""More to do than there is processor time: new chats are refused, those that run are not touched."""

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psutil
import pytest
from tests.edge.busy_edge import PER_SECOND
from tests.support.open_load import PATHS, REFUSALS, OpenLoad

pytestmark = [pytest.mark.anyio, pytest.mark.row("F21")]
JSON = {"content-type": "application/json"}
CHAT = PATHS["C"]
WAIT_SECONDS = 30.0
TURN_SECONDS = 0.05
TIMES, LOAD_SECONDS = 4, 4.0
CONNECTIONS = 60
MIB = 1 << 20


class Turns:
    """Counts turns of the event loop."""

    count = 0


@asynccontextmanager
async def busy_loop() -> AsyncIterator[Turns]:
    """Leaves the event loop that the edge runs on no time to sleep; counts its turns."""
    turns = Turns()

    async def work() -> None:
        while True:
            turns.count += 1
            until = time.monotonic() + TURN_SECONDS
            while time.monotonic() < until:
                pass
            await asyncio.sleep(0)

    working = asyncio.create_task(work())
    try:
        yield turns
    finally:
        working.cancel()


async def until_refused(edge: Any) -> tuple[dict[str, str], Any]:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        status, headers, body = await edge.call("POST", CHAT, data=b"{}", headers=JSON)
        if status != 200:
            assert status == REFUSALS["C"]
            return headers, body
        assert time.monotonic() < deadline, "it is never too much"


@asynccontextmanager
async def running_streams(edge: Any, relayed: Any, count: int) -> AsyncIterator[tuple[Any, asyncio.Event]]:
    """Streams that have begun and end when the event is set; other calls are answered at once."""
    may_end = asyncio.Event()
    begun = [relayed.head(is_streaming=True), *relayed.data(b"data: 1\n\n")]
    edge.routing.script = relayed.playing([*begun, may_end, *relayed.data(b"data: 2\n\n"), relayed.END])
    streams = [await edge.session.post(edge.url + CHAT, data=b"{}", headers=JSON) for _ in range(count)]
    for stream in streams:
        await stream.content.readany()
    edge.routing.script = relayed.plain(b"{}")
    yield streams, may_end
    may_end.set()
    for stream in streams:
        stream.close()


class TestLateLoop:
    async def test_new_chats_are_refused_and_running_streams_end_whole(
        self, in_process_edge: Any, relayed: Any
    ) -> None:
        async with in_process_edge(min_live_requests=2) as edge:
            async with running_streams(edge, relayed, 4) as (streams, may_end):
                async with busy_loop():
                    await until_refused(edge)
                    asked = len(edge.routing.requests)
                    for path in ("/health", "/ready", "/metrics"):
                        assert (await edge.call("GET", path))[0] == 200
                    may_end.set()
                    for stream in streams:
                        assert await stream.content.read() == b"data: 2\n\n"
                assert len(edge.routing.requests) == asked
            async with asyncio.timeout(WAIT_SECONDS):
                while (await edge.call("POST", CHAT, data=b"{}", headers=JSON))[0] != 200:
                    await asyncio.sleep(0.05)

    async def test_a_few_are_served_however_late_it_is(self, in_process_edge: Any, relayed: Any) -> None:
        async with in_process_edge() as edge, running_streams(edge, relayed, 4), busy_loop():
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                assert (await edge.call("POST", CHAT, data=b"{}", headers=JSON))[0] == 200


async def test_connections_do_not_wait_for_a_turn_of_the_loop_each(in_process_edge: Any) -> None:
    async with in_process_edge() as edge:
        async with busy_loop() as turns, asyncio.timeout(WAIT_SECONDS):
            began = turns.count
            asking = [asyncio.open_connection("127.0.0.1", edge.server.port) for _ in range(CONNECTIONS)]
            opened = await asyncio.gather(*asking)
            while len(edge.server.server_state.connections) < CONNECTIONS:
                await asyncio.sleep(0)
            assert turns.count - began < CONNECTIONS / 2
        for _, writer in opened:
            writer.close()


@contextmanager
def full(edge: Any) -> Iterator[None]:
    """As if the loop had been late for long."""
    lateness = edge.server._relays.shedder.lateness
    lateness.value = 0
    try:
        yield
    finally:
        lateness.value = float("inf")


class TestRefusal:
    @pytest.fixture
    async def edge(self, make_edge: Any) -> AsyncIterator[Any]:
        async with make_edge(max_loop_late_seconds=0) as edge:
            with full(edge):
                yield edge

    @pytest.mark.parametrize("letter", PATHS)
    @pytest.mark.parametrize("prefix", ["/v1", ""])
    async def test_it_speaks_the_dialect(self, edge: Any, letter: str, prefix: str) -> None:
        path = prefix + PATHS[letter].removeprefix("/v1") + "?beta=true"
        status, headers, body = await edge.call("POST", path, data=b"{}", headers=JSON)
        assert status == REFUSALS[letter] and 1 <= int(headers["retry-after"]) <= 5
        assert headers["request-id"] == headers["x-request-id"]
        if letter == "A":
            assert body["error"]["type"] == "overloaded_error"
            assert body["request_id"] == headers["request-id"]
        else:
            assert body["error"]["code"] == "server_is_overloaded"
        assert edge.routing.requests == []

    async def test_each_has_an_id_of_its_own_and_waits_differ(self, edge: Any) -> None:
        found = [(await edge.call("POST", CHAT, data=b"{}", headers=JSON))[1] for _ in range(20)]
        assert len({headers["request-id"] for headers in found}) == 20
        assert len({headers["retry-after-ms"] for headers in found}) > 1

    async def test_what_is_no_chat_is_not_refused(self, edge: Any) -> None:
        for path in ("/", "/health", "/ready", "/metrics", "/v1/nothing"):
            assert (await edge.call("GET", path))[0] in (200, 404)
        assert (await edge.call("GET", CHAT))[0] == 405

    @pytest.mark.parametrize("pieces", [1, 3])
    async def test_the_connection_is_kept_behind_a_small_body(self, edge: Any, pieces: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.server.port)
        post = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n" % CHAT.encode()
        try:
            for _ in range(2):
                for piece in [post + b'{"a":1'] if pieces == 1 else [post, b'{"a', b'":1']:
                    writer.write(piece)
                    await asyncio.sleep(0.02)
                assert (await read_answer(reader))[0] == 503
            writer.write(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            status, _, body = await read_answer(reader)
            assert (status, body) == (200, b'{"status":"alive"}')
        finally:
            writer.close()

    @pytest.mark.parametrize(
        "header", [b"Content-Length: 150000", b"Transfer-Encoding: chunked", b"Connection: close"]
    )
    async def test_other_bodies_are_not_read_and_the_answer_is(self, edge: Any, header: bytes) -> None:
        answer = await edge.raw(b"POST %b HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % (CHAT.encode(), header))
        assert answer.startswith(b"HTTP/1.1 503") and b"\r\nconnection: close\r\n" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "server_is_overloaded"

    async def test_a_body_that_never_comes_ends_the_connection_without_a_second_answer(
        self, make_edge: Any
    ) -> None:
        async with make_edge(max_loop_late_seconds=0, client_body_seconds=0.3) as edge:
            with full(edge):
                answer = await edge.raw(
                    b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n" % CHAT.encode()
                )
            assert answer.count(b"HTTP/1.1") == 1 and answer.startswith(b"HTTP/1.1 503")

    async def test_what_waits_behind_an_answer_is_refused_in_its_turn(self, edge: Any, relayed: Any) -> None:
        may_end = asyncio.Event()
        edge.routing.script = relayed.playing([may_end, relayed.head(), *relayed.data(b"{}"), relayed.END])
        edge.server._relays.shedder.lateness.value = 1
        post = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}" % CHAT.encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.server.port)
        try:
            writer.write(post)
            async with asyncio.timeout(WAIT_SECONDS):
                while not edge.routing.requests:
                    await asyncio.sleep(0.01)
            writer.write(post)
            await asyncio.sleep(0.05)
            edge.server._relays.shedder.lateness.value = 0
            may_end.set()
            assert [(await read_answer(reader))[0] for _ in range(2)] == [200, 503]
        finally:
            writer.close()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Status, head and body of an answer that states its length."""
    async with asyncio.timeout(WAIT_SECONDS):
        head = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head)
        assert found, head
        return int(head.split(b" ", 2)[1]), head, await reader.readexactly(int(found[1]))


async def test_at_four_times_the_capacity_each_is_served_whole_or_refused_in_form() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.edge.busy_edge"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), 60))
        edge, load = psutil.Process(process.pid), OpenLoad(port, "key", dict.fromkeys(PATHS, "m"))
        before = edge.memory_info().rss
        window = await load.open(TIMES * PER_SECOND, 0, LOAD_SECONDS)
        assert not window.wrong, window.wrong
        assert window.refused_seconds and window.first_seconds
        assert len(window.first_seconds) + len(window.refused_seconds) == window.offered_count
        assert edge.memory_info().rss - before < 64 * MIB
        async with asyncio.timeout(WAIT_SECONDS):
            while (await load.closed(1, 0, 0.2)).refused_seconds:
                pass
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), WAIT_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
