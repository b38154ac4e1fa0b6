"""An HTTP/1.1 server on a raw socket that answers exactly as it is told, byte by byte.

    async with ScriptedUpstream() as upstream:
        upstream.script = stream([b"data: 1\\n\\n", b"data: [DONE]\\n\\n"], pause_seconds=0.1)
        ...  # call upstream.url
        assert upstream.requests[0].json()["model"] == "gpt-x"

A script is an async function of one `Exchange`: it sends what it likes, when it
likes, and may break the connection. `upstream.scripts` is used up first, one
script a request; then `upstream.script` answers. Nothing is parsed beyond what
is needed to find the end of a request.
"""

import asyncio
import json
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

MAX_HEAD_BYTES = 256 * 1024
GONE_SECONDS = 10.0
# Connections that come at the same moment: those above it would be made a second later.
BACKLOG = 1024
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class ReceivedRequest:
    """A request as it came off the socket."""

    method: str
    target: str
    # In order, repeats kept, names in lower case, values as they came.
    headers: list[tuple[str, bytes]]
    body: bytes
    # The bytes of the request line and the headers.
    head: bytes
    # Counts connections from 0: equal numbers mean a reused connection.
    connection: int
    # Monotonic time of arrival, and of the moment when the peer closed the connection.
    arrived: float
    gone_at: float | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def header(self, name: str) -> str:
        """Returns the values of a header, joined by commas; empty if there is none."""
        return ",".join(value.decode("latin-1") for key, value in self.headers if key == name)

    def json(self) -> Any:
        """Returns the body as JSON."""
        return json.loads(self.body)


class Exchange:
    """One request being answered: what a script sees."""

    def __init__(self, connection: "_Connection", request: ReceivedRequest) -> None:
        self._connection = connection
        self.request = request
        self.is_chunked = False
        # For scripts that count.
        self.sent_bytes = 0

    async def send(self, data: bytes) -> None:
        """Writes these very bytes, and waits until the kernel has taken them."""
        await self._connection.write(data)

    async def send_head(
        self,
        status: int = 200,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        reason: str = "X",
    ) -> None:
        """Writes a status line and headers, nothing else."""
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in pairs), "", ""]
        await self.send("\r\n".join(lines).encode("latin-1"))

    async def send_stream_head(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Begins a chunked stream of events."""
        named = {"content-type": "text/event-stream", "transfer-encoding": "chunked", **(headers or {})}
        await self.send_head(status, named)
        self.is_chunked = True

    async def send_chunk(self, data: bytes) -> None:
        """Writes one chunk of a chunked body."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_chunks(self) -> None:
        """Ends a chunked body in order."""
        await self.send(b"0\r\n\r\n")

    async def until_gone(self, seconds: float = GONE_SECONDS) -> None:
        """Waits until the peer closes the connection.

        Raises:
            TimeoutError: if it does not.
        """
        await asyncio.wait_for(self.request.gone.wait(), seconds)

    def close(self) -> None:
        """Closes the connection (FIN) after what was written."""
        self._connection.close()

    def reset(self) -> None:
        """Breaks the connection (RST)."""
        self._connection.reset()


Script = Callable[[Exchange], Awaitable[None]]


def plain(
    body: bytes | str | dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Script:
    """Answers with one body, JSON unless the headers say otherwise, and keeps the connection."""
    data = (
        json.dumps(body).encode()
        if isinstance(body, dict)
        else body.encode()
        if isinstance(body, str)
        else body
    )

    async def script(exchange: Exchange) -> None:
        named = {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
        await exchange.send_head(status, named)
        await exchange.send(data)

    return script


def stream(
    chunks: Sequence[bytes | float | asyncio.Event],
    *,
    pause_seconds: float = 0.0,
    headers: Mapping[str, str] | None = None,
    is_ended: bool = True,
) -> Script:
    """Answers with a stream, one HTTP chunk for each piece.

    Args:
        chunks: bytes to send; a number is a pause in seconds, an event is waited for.
        pause_seconds: after each piece.
        headers: in addition to those of an event stream.
        is_ended: False breaks off without the last chunk.
    """

    async def script(exchange: Exchange) -> None:
        await exchange.send_stream_head(headers=headers)
        for piece in chunks:
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            elif isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                await exchange.send_chunk(piece)
                if pause_seconds:
                    await asyncio.sleep(pause_seconds)
        if is_ended:
            await exchange.end_chunks()
        else:
            exchange.close()

    return script


def raw(data: bytes) -> Script:
    """Answers with these very bytes, then closes."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(data)
        exchange.close()

    return script


async def silent(exchange: Exchange) -> None:
    """Never answers; ends when the peer leaves."""
    await exchange.until_gone(3600)


async def reset(exchange: Exchange) -> None:
    """Breaks the connection before a status line."""
    exchange.reset()


async def hang_up(exchange: Exchange) -> None:
    """Closes the connection before a status line."""
    exchange.close()


class ScriptedUpstream:
    """The server. One may be stopped and started again on the same port."""

    def __init__(self, script: Script | None = None) -> None:
        self.script: Script = script or plain({})
        self.scripts: list[Script] = []
        self.requests: list[ReceivedRequest] = []
        self.connection_count = 0
        # What a script raised, other than because its peer had left.
        self.failures: list[BaseException] = []
        self.port = 0
        # Speaks TLS with these certificates, if they are set before the start.
        self.tls: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listens, on the port of the last time if there was one."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, limit=2**20, backlog=BACKLOG, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuses new connections and breaks the open ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            connection.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> "ScriptedUpstream":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def until_requests(self, count: int, seconds: float = GONE_SECONDS) -> ReceivedRequest:
        """Waits for the so-manieth request and returns it."""
        deadline = time.monotonic() + seconds
        while len(self.requests) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self.requests)} requests instead of {count}")
            await asyncio.sleep(0.002)
        return self.requests[count - 1]

    def _next_script(self) -> Script:
        return self.scripts.pop(0) if self.scripts else self.script

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(reader, writer, self.connection_count)
        self.connection_count += 1
        self._connections.add(connection)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(connection)
        except asyncio.CancelledError:
            pass
        finally:
            self._connections.discard(connection)
            self._tasks.discard(task)
            await connection.end()

    async def _serve(self, connection: "_Connection") -> None:
        while (request := await connection.read_request()) is not None:
            self.requests.append(request)
            script = self._next_script()
            try:
                await script(Exchange(connection, request))
            except (ConnectionError, BrokenPipeError):
                return
            except Exception as error:
                self.failures.append(error)
                connection.reset()
            if connection.is_closed:
                return


class _Connection:
    """One connection; a task of its own reads, so that a peer that leaves is noticed at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self._reader, self._writer = reader, writer
        self._number = number
        self._buffer = bytearray()
        self._news = asyncio.Event()
        self._current: ReceivedRequest | None = None
        self._has_ended = False
        self.is_closed = False
        self._pump = asyncio.ensure_future(self._read())

    async def read_request(self) -> ReceivedRequest | None:
        """Returns the next request, None if the peer closed before one."""
        head = await self._take_head()
        if head is None:
            return None
        lines = head.split(b"\r\n")
        method, target, _ = lines[0].decode("latin-1").split(" ", 2)
        pairs = [line.partition(b":") for line in lines[1:] if line]
        headers = [(name.decode("latin-1").lower(), value.strip()) for name, _, value in pairs]
        named = dict(headers)
        if b"chunked" in named.get("transfer-encoding", b""):
            body = await self._take_chunks()
        else:
            body = await self._take(int(named.get("content-length", b"0")))
        request = ReceivedRequest(method, target, headers, body, head, self._number, time.monotonic())
        self._current = request
        if self._has_ended:
            self._note_gone()
        return request

    async def write(self, data: bytes) -> None:
        if self.is_closed:
            raise ConnectionResetError("closed by the script")
        try:
            self._writer.write(data)
            await self._writer.drain()
        except RuntimeError as error:
            # So says uvloop of a connection that the peer has left.
            if "closed" not in str(error):
                raise
            raise ConnectionResetError("closed by the peer") from error

    def close(self) -> None:
        self.is_closed = True
        self._writer.close()

    def reset(self) -> None:
        self.is_closed = True
        with suppress(OSError, AttributeError):
            found = self._writer.get_extra_info("socket")
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._writer.transport.abort()

    async def end(self) -> None:
        self._pump.cancel()
        with suppress(asyncio.CancelledError):
            await self._pump
        self._note_gone()
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        with suppress(OSError):
            while data := await self._reader.read(2**16):
                self._buffer += data
                self._news.set()
        self._has_ended = True
        self._note_gone()
        self._news.set()

    def _note_gone(self) -> None:
        request = self._current
        if request is not None and request.gone_at is None:
            request.gone_at = time.monotonic()
            request.gone.set()

    async def _more(self) -> bool:
        """Waits for more bytes; False if none will come."""
        if self._has_ended:
            return False
        self._news.clear()
        await self._news.wait()
        return True

    async def _take_head(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES or not await self._more():
                return None
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return head

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not await self._more():
                break
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def _take_chunks(self) -> bytes:
        body = b""
        while True:
            while b"\r\n" not in self._buffer:
                if not await self._more():
                    return body
            line = bytes(self._buffer[: self._buffer.index(b"\r\n") + 2])
            del self._buffer[: len(line)]
            size = int(line.split(b";")[0], 16)
            body += (await self._take(size + 2))[:-2]
            if not size:
                return body
