"""Load on a gateway that does not wait for answers, and closed loops of clients to compare it with.

Cheap enough that one process offers thousands of streams a second: heads are
read, bodies are only looked at for the last event of their dialect.
"""

import asyncio
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_CONNECTIONS = 8000
ANSWER_SECONDS = 60.0
TICK_SECONDS = 0.002
# How long a refused client of a closed loop waits; one that does as it is told waits longer.
REFUSED_SECONDS = 0.25
TAIL_BYTES = 400
PATHS = {"A": "/v1/messages", "C": "/v1/chat/completions", "R": "/v1/responses"}
ENDS = {"A": b"message_stop", "C": b"[DONE]", "R": b"response.completed"}
REFUSALS = {"A": 529, "C": 503, "R": 503}
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"retry-after: (\d+)\r\n", re.IGNORECASE)


def stream_request(dialect: str, model: str, key: str) -> bytes:
    """Returns a small streaming request on the wire."""
    fields: dict[str, object] = {"model": model, "stream": True}
    turns = [{"role": "user", "content": "hi"}]
    fields |= {"input": "hi"} if dialect == "R" else {"messages": turns, "max_tokens": 512}
    body = json.dumps(fields).encode()
    head = (
        f"POST {PATHS[dialect]} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        f"anthropic-version: 2023-06-01\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class Window:
    """What came of the load of some seconds."""

    seconds: float = 0.0
    offered_count: int = 0
    # Of streams that came whole; of the seconds, and in all.
    whole_count: int = 0
    first_seconds: list[float] = field(default_factory=list)
    total_seconds: list[float] = field(default_factory=list)
    refused_seconds: list[float] = field(default_factory=list)
    # What is neither whole nor a refusal as it should be, in words.
    wrong: Counter[str] = field(default_factory=Counter)

    @property
    def per_second(self) -> float:
        """Whole streams, each second."""
        return self.whole_count / self.seconds

    @property
    def formed_part(self) -> float:
        """Which part of all answers that are not whole streams are refusals as they should be."""
        refused, wrong = len(self.refused_seconds), sum(self.wrong.values())
        return refused / (refused + wrong) if refused + wrong else 1.0

    def note(self, dialect: str, answer: "Client", now: float) -> None:
        """Counts an answer."""
        total = now - answer.began
        if answer.is_whole(dialect):
            self.first_seconds.append(answer.first - answer.began)
            self.total_seconds.append(total)
        elif answer.status == REFUSALS[dialect] and _is_well_formed(dialect, answer):
            self.refused_seconds.append(total)
        else:
            self.wrong[f"{dialect} {answer.status} {bytes(answer.tail[-120:])!r}"] += 1


def _is_well_formed(dialect: str, answer: "Client") -> bool:
    found = _RETRY_AFTER.search(answer.head)
    error = json.loads(answer.tail)["error"]
    named = error["type"] == "overloaded_error" if dialect == "A" else error["code"] == "server_is_overloaded"
    return named and found is not None and 1 <= int(found[1]) <= 5


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, done: Callable[["Client", str], None]) -> None:
        self._done = done
        self._transport: asyncio.Transport | None = None
        self.dialect = ""
        self.head = b""
        self.tail = b""
        self.status = 0
        self.began = self.first = 0.0
        self._left: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a TCP connection's

    @property
    def is_open(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def is_whole(self, dialect: str) -> bool:
        """Whether it was answered by a stream with its last event."""
        return self.status == 200 and ENDS[dialect] in self.tail

    def ask(self, dialect: str, sent: bytes) -> None:
        """Sends a request."""
        assert self._transport is not None
        self.dialect, self.head, self.tail, self.status = dialect, b"", b"", 0
        self._left = None
        self.began = time.monotonic()
        self._transport.write(sent)

    def data_received(self, data: bytes) -> None:
        if not self.head:
            data = self.tail + data
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self.tail = head
                return
            self.first, self.head = time.monotonic(), head + b"\r\n"
            self.tail, self.status = b"", int(head.split(b" ", 2)[1])
            length = _LENGTH.search(self.head)
            self._left = int(length[1]) if length else None
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        if self._left is not None:
            self._left -= len(data)
        if self._left == 0 or (self._left is None and self.tail.endswith(b"\r\n0\r\n\r\n")):
            dialect, self.dialect = self.dialect, ""
            self._done(self, dialect)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.dialect:
            self.status, dialect, self.dialect = 0, self.dialect, ""
            self._done(self, dialect)

    def close(self) -> None:
        """Closes the connection; what it waits for is not counted."""
        self.dialect = ""
        if self._transport is not None:
            self._transport.close()


class OpenLoad:
    """Streams of three dialects in turn, on kept connections.

    Args:
        port: of the gateway.
        key: that clients present.
        models: by dialect.
    """

    def __init__(self, port: int, key: str, models: dict[str, str]) -> None:
        self._port = port
        requests = [(dialect, stream_request(dialect, model, key)) for dialect, model in models.items()]
        self._requests = itertools.cycle(requests)
        self._idle: list[Client] = []
        self._clients: set[Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._live = 0
        self._window = Window()
        self._opens = self._closes = 0.0
        self._until = 0.0
        self._is_closed_loop = False

    async def closed(self, clients: int, warmup_seconds: float, seconds: float) -> Window:
        """Lets so many clients ask, each when it was answered."""
        self._is_closed_loop = True
        window = self._begin(warmup_seconds, seconds)
        for _ in range(clients):
            self._offer()
        await asyncio.sleep(warmup_seconds + seconds)
        await self._end()
        return window

    async def open(self, per_second: float, warmup_seconds: float, seconds: float) -> Window:
        """Asks so many times a second, whatever is answered."""
        self._is_closed_loop = False
        window = self._begin(warmup_seconds, seconds)
        began, offered = time.monotonic(), 0
        while (now := time.monotonic()) < self._closes:
            due = int((now - began) * per_second)
            for _ in range(due - offered):
                self._offer()
            offered = due
            await asyncio.sleep(TICK_SECONDS)
        await self._end()
        return window

    def _begin(self, warmup_seconds: float, seconds: float) -> Window:
        self._window = Window(seconds=seconds)
        self._opens = time.monotonic() + warmup_seconds
        self._closes = self._opens + seconds
        return self._window

    async def _end(self) -> None:
        """Lets what was begun end."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while self._live:
                await asyncio.sleep(0.02)
        for client in self._clients:
            client.close()
        self._clients.clear()
        self._idle.clear()

    def _offer(self) -> None:
        dialect, sent = next(self._requests)
        now = time.monotonic()
        if self._opens <= now < self._closes:
            self._window.offered_count += 1
        self._live += 1
        while self._idle:
            client = self._idle.pop()
            if client.is_open:
                client.ask(dialect, sent)
                return
            self._clients.discard(client)
        task = asyncio.create_task(self._connect(dialect, sent))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, dialect: str, sent: bytes) -> None:
        if len(self._clients) >= MAX_CONNECTIONS:
            raise RuntimeError("too many connections at once")
        loop = asyncio.get_running_loop()
        try:
            _, client = await loop.create_connection(lambda: Client(self._note), "127.0.0.1", self._port)
        except OSError as error:
            self._live -= 1
            self._window.wrong[f"connect: {error}"] += 1
            return
        self._clients.add(client)
        client.ask(dialect, sent)

    def _note(self, client: Client, dialect: str) -> None:
        self._live -= 1
        now = time.monotonic()
        if self._opens <= client.began < self._closes:
            self._window.note(dialect, client, now)
        if self._opens <= now < self._closes and client.is_whole(dialect):
            self._window.whole_count += 1
        if client.is_open:
            self._idle.append(client)
        else:
            self._clients.discard(client)
        if self._is_closed_loop and now < self._closes:
            wait = 0.0 if client.status == 200 else REFUSED_SECONDS
            self._live += 1
            asyncio.get_running_loop().call_later(wait, self._again)

    def _again(self) -> None:
        self._live -= 1
        if time.monotonic() < self._closes:
            self._offer()
