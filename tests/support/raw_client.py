"""A client on a raw socket, for tests that look at bytes, at when they come, and at how a connection ends."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

ANSWER_SECONDS = 20.0
MAX_HEAD_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of an event stream, or one block that holds nothing but comments."""

    # Of `event:`; empty if there is no such line.
    name: str
    # Of all `data:` lines, joined by LF; None if there is none.
    data: str | None
    # Without the colon, as they came.
    comments: tuple[str, ...]
    # Lines of any other field, `id` and `retry` among them.
    others: tuple[str, ...]
    # As it came, with the blank line.
    raw: bytes

    @property
    def json(self) -> Any:
        """The data as JSON."""
        return json.loads(self.data or "")

    @property
    def kind(self) -> str:
        """The `type` in the data; empty if there is none."""
        try:
            return str(json.loads(self.data or "{}").get("type", ""))
        except (ValueError, AttributeError):
            return ""


def read_events(data: bytes) -> list[ServerEvent]:
    """Returns the events that stand in a stream; the last may lack its blank line.

    Fails on bytes that are not UTF-8.

    Source: WHATWG HTML, 9.2.6 "Interpreting an event stream".
    """
    events: list[ServerEvent] = []
    lines: list[bytes] = []
    for line in _lines(data):
        lines.append(line)
        if line.strip(b"\r\n") == b"":
            events.append(_event(lines))
            lines = []
    if lines:
        events.append(_event(lines))
    return [event for event in events if event.raw.strip(b"\r\n")]


def _lines(data: bytes) -> list[bytes]:
    """Splits after CRLF, LF and CR, and nowhere else."""
    lines: list[bytes] = []
    start = position = 0
    while position < len(data):
        following = min((at for mark in (b"\r", b"\n") if (at := data.find(mark, position)) >= 0), default=-1)
        if following < 0:
            break
        position = following + (2 if data[following : following + 2] == b"\r\n" else 1)
        lines.append(data[start:position])
        start = position
    return [*lines, data[start:]] if start < len(data) else lines


def _event(lines: Iterable[bytes]) -> ServerEvent:
    name = ""
    data: list[str] = []
    comments: list[str] = []
    others: list[str] = []
    lines = list(lines)
    for raw in lines:
        line = raw.rstrip(b"\r\n").decode()
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line.startswith(":"):
            comments.append(line[1:])
        elif key == "event":
            name = value
        elif key == "data":
            data.append(value)
        elif line:
            others.append(line)
    return ServerEvent(
        name, "\n".join(data) if data else None, tuple(comments), tuple(others), b"".join(lines)
    )


@dataclass(slots=True)
class RawAnswer:
    """An HTTP answer, so far."""

    status: int
    # In order, repeats kept, names in lower case.
    headers: list[tuple[str, str]]
    # The status line and the headers, as they came.
    head: bytes
    # Without the framing of chunks.
    body: bytes = b""
    # Monotonic times, and how many bytes of the body were there then.
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    # Whether the body ended as its framing demands.
    is_complete: bool = False

    def header(self, name: str) -> str:
        """Returns the values of a header, joined by commas; empty if there is none."""
        return ",".join(value for key, value in self.headers if key == name)

    def has_header(self, name: str) -> bool:
        """Whether the header is there."""
        return any(key == name for key, _ in self.headers)

    @property
    def events(self) -> list[ServerEvent]:
        """The body as events, comments left in."""
        return read_events(self.body)

    def json(self) -> Any:
        """Returns the body as JSON."""
        return json.loads(self.body)

    def arrival(self, text: bytes) -> float:
        """Returns when the last byte of `text` had come (monotonic); fails if it has not."""
        end = self.body.index(text) + len(text)
        return next(when for when, size in self.arrivals if size >= end)


class RawClient:
    """One connection to the edge."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._is_chunked = False
        self._left: int | None = None
        self.answer = RawAnswer(0, [], b"")

    @classmethod
    @asynccontextmanager
    async def connected(cls, port: int) -> AsyncIterator["RawClient"]:
        """Opens a connection, and closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        client = cls(reader, writer)
        try:
            yield client
        finally:
            client.leave()

    def leave(self) -> None:
        """Closes the connection at once, whatever is under way."""
        self._writer.transport.abort()

    def send_no_more(self) -> None:
        """Closes the writing side; what comes can still be read."""
        self._writer.write_eof()

    async def send(self, data: bytes) -> None:
        """Sends bytes; one that stops taking them is no failure here."""
        with suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def read_head(self, seconds: float = ANSWER_SECONDS) -> RawAnswer:
        """Reads until the headers are complete."""
        async with asyncio.timeout(seconds):
            head = await self._reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 100"):
                head = await self._reader.readuntil(b"\r\n\r\n")
        status, *lines = head[:-4].decode("latin-1").split("\r\n")
        pairs = [line.partition(":") for line in lines]
        headers = [(name.lower(), value.strip()) for name, _, value in pairs]
        self.answer = RawAnswer(int(status.split(" ")[1]), headers, head)
        self._is_chunked = "chunked" in self.answer.header("transfer-encoding")
        length = self.answer.header("content-length")
        self._left = int(length) if length else None
        return self.answer

    async def read_until(
        self, check: Callable[[RawAnswer], bool], seconds: float = ANSWER_SECONDS
    ) -> RawAnswer:
        """Reads the body until `check` says so of the answer so far, or until its end."""
        async with asyncio.timeout(seconds):
            while not check(self.answer) and await self._read_more():
                pass
        return self.answer

    async def read_all(self, seconds: float = ANSWER_SECONDS, is_bodiless: bool = False) -> RawAnswer:
        """Reads the body to its end, in order or not: see `is_complete`."""
        if is_bodiless:
            self.answer.is_complete = True
            return self.answer
        return await self.read_until(lambda _: False, seconds)

    async def _read_more(self) -> bool:
        answer = self.answer
        try:
            data = await (self._read_chunk() if self._is_chunked else self._read_part())
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        if not data:
            return False
        answer.body += data
        answer.arrivals.append((time.monotonic(), len(answer.body)))
        return True

    async def _read_chunk(self) -> bytes:
        size = int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16)
        data = (await self._reader.readexactly(size + 2))[:-2]
        if not size:
            self.answer.is_complete = True
        return data

    async def _read_part(self) -> bytes:
        if self._left == 0:
            self.answer.is_complete = True
            return b""
        data = await self._reader.read(min(self._left or 2**16, 2**16))
        if self._left is not None:
            self._left -= len(data)
            self.answer.is_complete = self._left == 0
        return data

    async def until_closed(self, seconds: float = ANSWER_SECONDS) -> bytes:
        """Returns what still comes until the edge closes its side; fails if it does not."""
        async with asyncio.timeout(seconds):
            with suppress(ConnectionError):
                return await self._reader.read()
        return b""
