"""A provider that costs next to nothing, so that what is measured is the gateway in front of it.

    python -m benchmarks.fake_provider --port 19000

Three dialects, plain and streamed. The model's name says how it behaves, which
passes through every gateway: `fake-n50-d20-s16-t10` means 50 chunks, 20 ms
apart, 16 bytes of filler each, the first after 10 ms. Each chunk's text begins
with `tok00007@` and the microseconds of the machine's monotonic clock, so that
the load can tell that none is missing, and how late each is.
"""

import argparse
import asyncio
import gc
import re
import time
from collections.abc import Callable
from functools import lru_cache

import httptools
import msgspec
import uvloop

STAMP = "tok%05d@%016d "
MAX_SCRIPTS = 1000
INPUT_TOKENS = 100
_OPTION = re.compile(r"-([ndst])(\d+)")
_CUT = "\x01"
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_JSON_HEAD = b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
_TICK_SECONDS = 0.001


class _Asked(msgspec.Struct):
    model: str = "fake"
    stream: bool = False


class Script:
    """The bytes of one answer, made once for a dialect and a model."""

    def __init__(self, path: str, model: str) -> None:
        options = {name: int(value) for name, value in _OPTION.findall(model)}
        self.chunk_count = options.get("n", 50)
        self.interval_seconds = options.get("d", 0) / 1000
        self.first_seconds = options.get("t", 0) / 1000
        filler = "x" * options.get("s", 0)
        begin, chunk, end, whole = _DIALECTS[path](model, self.chunk_count, _CUT + filler, filler)
        before, after = chunk.split(_CUT.encode())
        size = len(before) + len(STAMP % (0, 0)) + len(after)
        self._before, self._after = b"%x\r\n%b" % (size, before), after + b"\r\n"
        self.begin = _HEAD + _framed(begin)
        self.end = _framed(end) + b"0\r\n\r\n"
        self.whole = _JSON_HEAD % (200, len(whole), whole)

    def chunk(self, index: int) -> bytes:
        """Returns a chunk of the body, stamped with the time."""
        stamp = STAMP % (index, time.monotonic_ns() // 1000)
        return b"%b%b%b" % (self._before, stamp.encode(), self._after)


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(name: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode({"type": name, **fields}))


def _told(count: int, filler: str) -> str:
    return "".join(STAMP % (index, 0) + filler for index in range(count))


def _encoded(event: Callable[[str], bytes], text: str) -> bytes:
    """An event whose text is cut where the stamp goes; JSON writes the mark in six characters."""
    return event(text).replace(b"\\u0001", _CUT.encode())


def _chat(model: str, count: int, text: str, filler: str) -> tuple[bytes, bytes, bytes, bytes]:
    usage = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": count, "total_tokens": INPUT_TOKENS + count}

    def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _line({"choices": [choice]})

    def _line(more: dict[str, object]) -> bytes:
        base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
        return b"data: %b\n\n" % msgspec.json.encode({**base, **more})

    end = chunk({}, "stop") + _line({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"
    message = {"role": "assistant", "content": _told(count, filler)}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    whole = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [choice],
        "usage": usage,
    }
    begin = chunk({"role": "assistant", "content": ""})
    return begin, _encoded(lambda said: chunk({"content": said}), text), end, msgspec.json.encode(whole)


def _messages(model: str, count: int, text: str, filler: str) -> tuple[bytes, bytes, bytes, bytes]:
    message: dict[str, object] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": 1},
    }
    begin = _event("message_start", message=message) + _event(
        "content_block_start", index=0, content_block={"type": "text", "text": ""}
    )
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    end = (
        _event("content_block_stop", index=0)
        + _event("message_delta", delta=stop, usage={"output_tokens": count})
        + _event("message_stop")
    )
    usage = {"input_tokens": INPUT_TOKENS, "output_tokens": count}
    whole = {**message, **stop, "content": [{"type": "text", "text": _told(count, filler)}], "usage": usage}

    def delta(said: str) -> bytes:
        return _event("content_block_delta", index=0, delta={"type": "text_delta", "text": said})

    return begin, _encoded(delta, text), end, msgspec.json.encode(whole)


def _responses(model: str, count: int, text: str, filler: str) -> tuple[bytes, bytes, bytes, bytes]:
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": []}
    item = {"id": "msg_1", "type": "message", "status": "in_progress", "role": "assistant", "content": []}
    response = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "in_progress",
        "model": model,
        "output": [],
        "usage": None,
    }
    begin = (
        _event("response.created", sequence_number=0, response=response)
        + _event("response.output_item.added", sequence_number=1, output_index=0, item=item)
        + _event("response.content_part.added", sequence_number=2, part=part, **place)
    )
    usage = {"input_tokens": INPUT_TOKENS, "output_tokens": count, "total_tokens": INPUT_TOKENS + count}
    done = {**response, "status": "completed", "usage": usage}
    end = _event("response.completed", sequence_number=4, response=done)
    told = {**item, "status": "completed", "content": [{**part, "text": _told(count, filler)}]}

    def delta(said: str) -> bytes:
        return _event("response.output_text.delta", sequence_number=3, delta=said, **place)

    return begin, _encoded(delta, text), end, msgspec.json.encode({**done, "output": [told]})


_DIALECTS = {"/v1/chat/completions": _chat, "/v1/messages": _messages, "/v1/responses": _responses}


@lru_cache(maxsize=MAX_SCRIPTS)
def _script(path: str, model: str) -> Script:
    return Script(path, model)


class Wheel:
    """One timer for all streams: a thousand of them must not mean a thousand timers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, list[Connection]] = {}
        self._is_armed = False

    def add(self, connection: "Connection", due: float) -> None:
        """Lets a connection go on at a time of the loop, to the millisecond."""
        self._slots.setdefault(int(due / _TICK_SECONDS) + 1, []).append(connection)
        if not self._is_armed:
            self._is_armed = True
            self._loop.call_later(_TICK_SECONDS, self._turn)

    def _turn(self) -> None:
        now = int(self._loop.time() / _TICK_SECONDS)
        for slot in sorted(slot for slot in self._slots if slot <= now):
            for connection in self._slots.pop(slot):
                connection.go_on()
        self._is_armed = bool(self._slots)
        if self._is_armed:
            self._loop.call_later(_TICK_SECONDS, self._turn)


class Connection(asyncio.Protocol):
    """One connection; its requests are answered one after the other."""

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._path = ""
        self._body: list[bytes] = []
        self._script: Script | None = None
        self._is_streaming = False
        self._next = -1
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a TCP connection's

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.abort()

    def on_url(self, url: bytes) -> None:
        self._path = url.decode("ascii", "replace").partition("?")[0]

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body), []
        if self._path not in _DIALECTS:
            self._write(_JSON_HEAD % (200, 2, b"{}"))
            return
        asked = msgspec.json.decode(body, type=_Asked)
        self._script, self._is_streaming = _script(self._path, asked.model), asked.stream
        self._next, self._due = -1, asyncio.get_running_loop().time() + self._script.first_seconds
        if self._script.first_seconds:
            self._wheel.add(self, self._due)
        else:
            self.go_on()

    def go_on(self) -> None:
        """Writes what is due."""
        script = self._script
        if script is None or self._transport is None:
            return
        if not self._is_streaming:
            self._write(script.whole)
        elif not script.interval_seconds:
            chunks = [script.chunk(index) for index in range(script.chunk_count)]
            self._write(b"".join([script.begin, *chunks, script.end]))
        else:
            self._go_on_slowly(script)

    def _go_on_slowly(self, script: Script) -> None:
        self._next += 1
        if not self._next:
            self._write(script.begin)
        elif self._next <= script.chunk_count:
            self._write(script.chunk(self._next - 1))
        else:
            self._write(script.end)
            return
        # From when this one was due, so that a late one does not delay all after it.
        self._due += script.interval_seconds
        self._wheel.add(self, self._due)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    wheel = Wheel(loop)
    server = await loop.create_server(lambda: Connection(wheel), "127.0.0.1", port, backlog=4096)
    gc.freeze()
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, default=19000)
    uvloop.run(_serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
