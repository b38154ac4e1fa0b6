"""The HTTP client towards providers, against a server that says byte for byte what a test gives it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from lurus_routing.upstream import open_session

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def server_of(*parts: bytes) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A server that sends the first part, the others once it is told to, and keeps the connection open."""
    go_on, is_over = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(parts[0])
        await go_on.wait()
        for part in parts[1:]:
            writer.write(part)
        await is_over.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        try:
            yield f"http://{host}:{port}", go_on
        finally:
            is_over.set()


async def test_broken_framing_is_told_at_once_to_who_reads_though_the_provider_stays() -> None:
    async with (
        server_of(HEAD + b"5\r\nhello\r\n", b"no number\r\n") as (url, go_on),
        open_session(frozenset({"127.0.0.1"})) as session,
        session.get(url) as response,
    ):
        assert await response.content.readany() == b"hello"
        reading = asyncio.ensure_future(response.content.readany())
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await asyncio.wait_for(reading, WAIT_SECONDS)
