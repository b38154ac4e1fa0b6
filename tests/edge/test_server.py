"""Starting, draining and stopping the edge."""

import asyncio
import json
import socket
import time
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def is_refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


async def until_refused(port: int) -> None:
    async with asyncio.timeout(15):
        while not is_refused(port):
            await asyncio.sleep(0.02)


async def test_a_drain_lets_a_live_stream_finish_and_takes_no_new_connection(
    make_edge: Any, relayed: Any
) -> None:
    may_end = asyncio.Event()
    steps = [relayed.head(is_streaming=True), *relayed.data(b"data: 1\n\n"), may_end]
    async with make_edge() as edge:
        edge.routing.script = relayed.playing([*steps, *relayed.data(b"data: 2\n\n"), relayed.END])
        idle_reader, idle = await asyncio.open_connection("127.0.0.1", edge.server.port)
        async with edge.session.post(edge.url + CHAT, data=b"{}", headers=JSON) as got:
            await got.content.readany()
            draining = asyncio.create_task(edge.server.drain(0, 5))
            await until_refused(edge.server.port)
            assert await asyncio.wait_for(idle_reader.read(), 15) == b""
            assert not draining.done()
            may_end.set()
            assert await got.content.read() == b"data: 2\n\n"
        await asyncio.wait_for(draining, 15)
        idle.close()


async def test_what_is_announced_is_seen_before_the_door_closes(make_edge: Any) -> None:
    async with make_edge() as edge:
        draining = asyncio.create_task(edge.server.drain(0.3, 5))
        await asyncio.sleep(0.05)
        status, _, body = await edge.call("GET", "/ready")
        assert (status, body["problems"]) == (503, {"edge": "it is draining"})
        status, headers, _ = await edge.call("POST", CHAT, data=b"{}", headers=JSON)
        assert (status, headers["connection"]) == (200, "close")
        await asyncio.wait_for(draining, 15)


@pytest.mark.parametrize("path", ["/v1/messages", CHAT, "/v1/responses"])
async def test_the_drain_limit_ends_streams_with_an_error_and_no_terminator(
    make_edge: Any, relayed: Any, path: str
) -> None:
    never = asyncio.Event()
    steps = [relayed.head(is_streaming=True), *relayed.data(b"data: 1\n\n"), never]
    async with make_edge() as edge:
        edge.routing.script = relayed.playing(steps)
        async with edge.session.post(edge.url + path, data=b"{}", headers=JSON) as got:
            await got.content.readany()
            started = time.monotonic()
            await edge.server.drain(0, 0.3)
            assert time.monotonic() - started < 10
            last = (await got.content.read()).decode()
        payload = json.loads(last.partition("data: ")[2])
        assert "restarted" in json.dumps(payload)
        assert "[DONE]" not in last
        await asyncio.wait_for(edge.routing.ended.wait(), 15)


async def test_the_drain_limit_answers_what_has_no_answer_yet(make_edge: Any, relayed: Any) -> None:
    async with make_edge() as edge:
        edge.routing.script = relayed.playing([asyncio.Event()])
        calling = asyncio.create_task(edge.call("POST", CHAT, data=b"{}", headers=JSON))
        await asyncio.sleep(0.1)
        await edge.server.drain(0, 0.2)
        status, headers, _ = await calling
        assert status == 503
        assert "retry-after" in headers


async def test_leaving_with_an_error_stops_at_once(make_edge: Any, relayed: Any) -> None:
    started = 0.0
    with pytest.raises(RuntimeError, match="from inside"):
        async with make_edge() as edge:
            edge.routing.script = relayed.playing([relayed.head(is_streaming=True), asyncio.Event()])
            await edge.session.post(edge.url + CHAT, data=b"{}", headers=JSON)
            started = time.monotonic()
            raise RuntimeError("from inside")
    assert time.monotonic() - started < 10
    assert edge.routing.ended.is_set()


async def test_a_port_in_use_is_an_error_unless_it_is_shared(in_process_edge: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            async with in_process_edge(edge_port=taken.getsockname()[1]):
                pass
    async with (
        in_process_edge(share_port=True) as first,
        in_process_edge(share_port=True, edge_port=first.server.port) as second,
    ):
        assert second.server.port == first.server.port
        assert (await second.call("GET", "/health"))[0] == 200


async def test_a_routing_service_that_is_away_is_503(in_process_edge: Any, make_edge: Any) -> None:
    from lurus_common.rpc import open_channel

    async with open_channel("127.0.0.1:1", for_inference=True) as channel:

        async def away(*_: Any) -> Any:
            return channel

        async with make_edge(channels=away) as edge:
            status, headers, body = await edge.call("POST", "/v1/messages", data=b"{}", headers=JSON)
            assert (status, body["error"]["type"]) == (503, "api_error")
            assert "retry-after" in headers
            assert (await edge.call("GET", "/v1/models"))[0] == 503
            assert (await edge.call("GET", "/ready"))[0] == 200
