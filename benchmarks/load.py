"""A closed loop of clients: each sends its next request when the last answer is whole.

    python -m benchmarks.load --port 18100 --dialect openai_chat --streams 64 --model fake-n50-d5 --stream

Every answer is checked: all chunks, in order, and the dialect's terminator.
Prints a line of JSON when its window of measurement opens, one when it closes
(so that who has started it can look at the gateway's processor time then), and
one with the result.
"""

import argparse
import asyncio
import gc
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httptools
import uvloop

MAX_ERRORS = 5
MAX_CONNECT_ATTEMPTS = 50
CONNECT_PAUSE_SECONDS = 0.1
TAIL_BYTES = 64
PATHS = {
    "openai_chat": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "openai_responses": "/v1/responses",
}
_ENDS = {
    "openai_chat": b"[DONE]",
    "anthropic": b"message_stop",
    "openai_responses": b"response.completed",
}
_MARK = re.compile(rb"tok(\d{5})@(\d{16})")
_COUNT = re.compile(r"-n(\d+)")
_SENTENCE = "The quick brown fox jumps over the lazy dog. "


class Load:
    """What all clients share: the request, the window, the counts."""

    def __init__(self, given: argparse.Namespace) -> None:
        found = _COUNT.search(given.model)
        self.chunk_count = int(found.group(1)) if found else 50
        self.is_streaming = given.stream
        self.end = _ENDS[given.dialect]
        keys = given.key_file.read_text().split() if given.key_file else [given.key]
        requests = [_request(given, key) for key in keys]
        # Each request takes the next key.
        self.requests = itertools.cycle(requests)
        self.is_stopping = False
        self.is_measuring = False
        self.done_count = 0
        self.first_seconds: list[float] = []
        self.total_seconds: list[float] = []
        self.late_microseconds: list[int] = []
        self.errors: Counter[str] = Counter()
        self.left = given.streams
        self.all_left = asyncio.Event()

    def fail(self, what: str) -> None:
        """Counts an answer that is not as it should be."""
        self.errors[what if len(self.errors) < MAX_ERRORS or what in self.errors else "others"] += 1

    def leave(self) -> None:
        """A client is done."""
        self.left -= 1
        if not self.left:
            self.all_left.set()


def _request(given: argparse.Namespace, key: str) -> bytes:
    text = (_SENTENCE * (given.prompt_bytes // len(_SENTENCE) + 1))[: given.prompt_bytes]
    body: dict[str, object] = {"model": given.model_prefix + given.model}
    if given.dialect == "openai_responses":
        body |= {"input": text, "max_output_tokens": 512}
    else:
        body |= {"max_tokens": 512, "messages": [{"role": "user", "content": text}]}
    if given.stream:
        body["stream"] = True
        if given.dialect == "openai_chat":
            body["stream_options"] = {"include_usage": True}
    encoded = json.dumps(body).encode()
    headers = [
        f"POST {PATHS[given.dialect]} HTTP/1.1",
        f"Host: 127.0.0.1:{given.port}",
        "Content-Type: application/json",
        f"Authorization: Bearer {key}",
        f"x-api-key: {key}",
        "anthropic-version: 2023-06-01",
        f"Content-Length: {len(encoded)}",
        *given.header,
    ]
    return "\r\n".join([*headers, "", ""]).encode() + encoded


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, load: Load, reconnect: "Reconnect") -> None:
        self._load = load
        self._reconnect = reconnect
        self._transport: asyncio.Transport | None = None
        self._is_over = False
        self._is_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a TCP connection's
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._is_over:
            return
        if self._is_waiting:
            self._load.fail(f"connection lost: {exc}")
        self._reconnect.soon()

    def _send(self) -> None:
        if self._load.is_stopping or self._transport is None:
            self._leave()
            return
        self._parser = httptools.HttpResponseParser(self)
        self._whole: list[bytes] = []
        self._tail = b""
        self._next = 0
        self._has_ended = self._is_complete = False
        self._problem = ""
        self._late: list[int] = []
        self._first = 0.0
        self._is_waiting = True
        self._start = time.monotonic()
        self._transport.write(next(self._load.requests))

    def _leave(self) -> None:
        self._is_over = True
        if self._transport is not None:
            self._transport.close()
        self._load.leave()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._problem, self._is_complete = f"not HTTP: {error}", True
        if self._is_complete and self._is_waiting:
            self._is_waiting = False
            self._note()
            self._send()

    def on_body(self, body: bytes) -> None:
        now = time.monotonic()
        self._first = self._first or now
        if not self._load.is_streaming:
            self._whole.append(body)
            return
        data, position = self._tail + body, 0
        for mark in _MARK.finditer(data):
            if int(mark.group(1)) != self._next:
                self._problem = "chunks out of order"
            self._next += 1
            self._late.append(int(now * 1e6) - int(mark.group(2)))
            position = mark.end()
        self._has_ended = self._has_ended or self._load.end in data
        # A mark may be split over two reads.
        self._tail = data[max(position, len(data) - TAIL_BYTES) :]

    def on_message_complete(self) -> None:
        self._is_complete = True

    def _note(self) -> None:
        load, now = self._load, time.monotonic()
        problem = self._problem or self._found_problem()
        if problem:
            load.fail(problem)
            return
        load.done_count += 1
        if load.is_measuring:
            load.first_seconds.append(self._first - self._start)
            load.total_seconds.append(now - self._start)
            load.late_microseconds += self._late

    def _found_problem(self) -> str:
        status, load = self._parser.get_status_code(), self._load
        whole = b"".join(self._whole)
        if status != 200:
            return f"status {status}: {(whole or self._tail)[:120]!r}"
        if not load.is_streaming:
            count = len(_MARK.findall(whole))
            return "" if count == load.chunk_count else f"{count} of {load.chunk_count} chunks"
        if self._next != load.chunk_count or not self._has_ended:
            return f"{self._next} of {load.chunk_count} chunks, terminator seen: {self._has_ended}"
        return ""


class Reconnect:
    """Makes connections, and makes them again."""

    def __init__(self, load: Load, port: int) -> None:
        self._load = load
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()

    def soon(self) -> None:
        """Starts a client."""
        task = asyncio.create_task(self._connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(MAX_CONNECT_ATTEMPTS):
            try:
                await loop.create_connection(lambda: Client(self._load, self), "127.0.0.1", self._port)
                return
            except OSError as error:
                self._load.fail(f"cannot connect: {error}")
                await asyncio.sleep(CONNECT_PAUSE_SECONDS)
        self._load.leave()


def _summary(values: Sequence[float], unit: float) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    places = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    found = {name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] for name, part in places.items()}
    return {name: round(value * unit, 3) for name, value in {**found, "max": ordered[-1]}.items()}


def _say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


async def _run(given: argparse.Namespace) -> None:
    load = Load(given)
    reconnect = Reconnect(load, given.port)
    gc.disable()
    for _ in range(given.streams):
        reconnect.soon()
        await asyncio.sleep(given.ramp_seconds / given.streams)
    await asyncio.sleep(given.warmup_seconds)
    load.is_measuring = True
    began, done_before = time.monotonic(), load.done_count
    _say(window="open")
    await asyncio.sleep(given.seconds)
    seconds, done = time.monotonic() - began, load.done_count - done_before
    _say(window="closed", done=done, seconds=seconds)
    load.is_measuring, load.is_stopping = False, True
    try:
        await asyncio.wait_for(load.all_left.wait(), given.drain_seconds)
    except TimeoutError:
        load.fail(f"{load.left} clients were not done in time")
    _say(
        done=done,
        seconds=round(seconds, 2),
        per_second=round(done / seconds, 1),
        errors=sum(load.errors.values()),
        error_samples=dict(load.errors),
        first_byte_ms=_summary(load.first_seconds, 1e3),
        total_ms=_summary(load.total_seconds, 1e3),
        chunk_late_ms=_summary(load.late_microseconds, 1e-3),
    )


def main() -> None:
    """Runs one load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dialect", choices=PATHS, default="openai_chat")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--streams", type=int, default=16, help="clients at once")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--warmup-seconds", type=float, default=1.0)
    parser.add_argument("--ramp-seconds", type=float, default=0.2)
    parser.add_argument("--drain-seconds", type=float, default=30.0)
    parser.add_argument("--model", default="fake-n50")
    parser.add_argument("--model-prefix", default="", help="put before the model's name")
    parser.add_argument("--prompt-bytes", type=int, default=2000)
    parser.add_argument("--key", default="no-key")
    parser.add_argument("--key-file", type=Path, help="many keys, which take turns")
    parser.add_argument("--header", action="append", default=[])
    uvloop.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
