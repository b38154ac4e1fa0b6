"""Many streams at once through a real gateway: silent ones, and ones whose clients do not read."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import psutil

from tests.conformance import streams
from tests.conformance.rig import PATHS, Gateway, Provider, post_bytes
from tests.support.raw_client import RawClient
from tests.support.scripted_upstream import Exchange

FIRST_SECONDS = 120.0
# Opened at a time: more than that is a storm, which is another question.
OPENED_AT_ONCE = 50
# What a client that does not read leaves to its kernel.
RECEIVE_BUFFER_BYTES = 4096
FLOOD_BYTES = 12 * 1024 * 1024


async def say_nothing(exchange: Exchange) -> None:
    """Begins an answer, and falls silent until the gateway leaves."""
    await exchange.send_stream_head()
    await exchange.send_chunk(b"".join(streams.begin("A")))
    await exchange.until_gone(3600)


@dataclass
class Flood:
    """Writes far more than anybody buffers, to everybody who asks, and counts what was taken of it."""

    exchanges: list[Exchange] = field(default_factory=list)

    async def __call__(self, exchange: Exchange) -> None:
        """The script."""
        self.exchanges.append(exchange)
        await exchange.send_stream_head()
        await exchange.send_chunk(b"".join(streams.begin("A")))
        piece = streams.deltas("A", "z" * 1000)[0]
        while exchange.sent_bytes < FLOOD_BYTES:
            await exchange.send_chunk(piece)
            exchange.sent_bytes += len(piece)
        await exchange.until_gone(3600)

    def taken(self) -> list[int]:
        """How many bytes each one's connection has taken so far."""
        return [exchange.sent_bytes for exchange in self.exchanges]

    async def until_blocked(self, seconds: float) -> list[int]:
        """Waits until no connection takes anything any more, and returns what each has taken."""
        deadline = time.monotonic() + seconds
        before = self.taken()
        while True:
            await asyncio.sleep(0.5)
            now = self.taken()
            if now == before:
                return now
            assert time.monotonic() < deadline, "the gateway goes on reading what nobody takes"
            before = now


async def open_stream(gateway: Gateway, provider: Provider) -> RawClient:
    """Asks for a stream, reads its begin, and returns the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    client = RawClient(reader, writer)
    body = gateway.body("A", provider.model, None, is_streaming=True)
    await client.send(post_bytes(PATHS["A"], body, gateway.lines(())))
    await client.read_head(FIRST_SECONDS)
    assert client.answer.status == 200, client.answer.status
    await client.read_until(lambda answer: b"message_start" in answer.body, FIRST_SECONDS)
    return client


@asynccontextmanager
async def silent_streams(gateway: Gateway, provider: Provider, count: int) -> AsyncIterator[list[RawClient]]:
    """Holds so many streams of which nothing comes but heartbeats."""
    clients: list[RawClient] = []
    try:
        while len(clients) < count:
            size = min(OPENED_AT_ONCE, count - len(clients))
            clients += await asyncio.gather(*(open_stream(gateway, provider) for _ in range(size)))
        yield clients
    finally:
        for client in clients:
            client.leave()


@asynccontextmanager
async def unread_streams(gateway: Gateway, provider: Provider, count: int) -> AsyncIterator[None]:
    """Holds so many streams whose clients have asked, and then take nothing."""
    request = post_bytes(
        PATHS["A"],
        gateway.body("A", provider.model, None, is_streaming=True),
        gateway.lines(()),
    )
    sockets: list[socket.socket] = []
    loop = asyncio.get_running_loop()
    try:
        for _ in range(count):
            client = socket.socket()
            sockets.append(client)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", gateway.port))
            await loop.sock_sendall(client, request)
        yield
    finally:
        for client in sockets:
            client.close()


def resident_bytes(pid: int) -> int:
    """What a process holds in memory that is its own."""
    memory = psutil.Process(pid).memory_full_info()
    return int(memory.uss)


async def steady_bytes(pid: int, seconds: float = 30.0) -> int:
    """Waits until what a process holds changes no more, and returns it."""
    deadline = time.monotonic() + seconds
    before = resident_bytes(pid)
    while True:
        await asyncio.sleep(1.0)
        now = resident_bytes(pid)
        if abs(now - before) < 256 * 1024 or time.monotonic() > deadline:
            return now
        before = now


async def first_byte_seconds(gateway: Gateway, path: str, body: bytes, count: int) -> list[float]:
    """Returns how long ordinary calls take to their first byte, one after the other, sorted."""
    request = post_bytes(path, body, gateway.lines(()))
    found: list[float] = []
    for _ in range(count):
        async with RawClient.connected(gateway.port) as client:
            begin = time.monotonic()
            await client.send(request)
            await client.read_head(FIRST_SECONDS)
            found.append(time.monotonic() - begin)
            with suppress(TimeoutError):
                await client.read_all(FIRST_SECONDS)
    return sorted(found)
