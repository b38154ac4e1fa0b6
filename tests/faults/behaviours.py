"""What the models of the faulty provider do: `fault-` and a name of this page, with numbers behind it.

`fault-cut-3` is the behaviour `cut` with 3. Where a behaviour speaks of events, a plain answer gets what
comes closest: half a body, or a body that comes slowly. A model without `fault-` is answered without a fault.
"""

import asyncio
import functools
import json
import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from .answers import MIB, USAGES, Piece, error_body, event, gzip_bomb, unknown_event
from .calls import Call

# Long enough for what was sent to be read by itself.
MOMENT_SECONDS = 0.3
_MODEL = re.compile(r"(?:^|/)fault-([a-z]+(?:-[a-z]+)*)((?:-\d{1,10})*)$")


class Behaviour(NamedTuple):
    """A behaviour by its name. `numbers` names the numbers that may follow, with their defaults."""

    run: Callable[..., Awaitable[None]]
    about: str
    numbers: tuple[tuple[str, int], ...] = ()


BEHAVIOURS: dict[str, Behaviour] = {}


class UnknownBehaviour(Exception):
    """A model's name asks for a fault that does not exist."""


def parse(model: str) -> tuple[str, tuple[int, ...]]:
    """Returns the behaviour that a model's name asks for, and its numbers; `ok` for an ordinary name.

    Raises:
        UnknownBehaviour: it begins with `fault-` and there is no such behaviour.
    """
    found = _MODEL.search(model)
    if found is None:
        if "fault-" in model:
            raise UnknownBehaviour(model)
        return "ok", ()
    name, numbers = found[1], tuple(int(digits) for digits in found[2].split("-")[1:])
    if name not in BEHAVIOURS or len(numbers) > len(BEHAVIOURS[name].numbers):
        raise UnknownBehaviour(model)
    return name, numbers


async def run(call: Call, name: str, numbers: tuple[int, ...]) -> None:
    """Answers a call so."""
    behaviour = BEHAVIOURS[name]
    rest = [default for _, default in behaviour.numbers[len(numbers) :]]
    await behaviour.run(call, *numbers, *rest)


def _behaves(
    name: str, about: str, **numbers: int
) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., Awaitable[None]]]:
    def keep(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        BEHAVIOURS[name] = Behaviour(function, about, tuple(numbers.items()))
        return function

    return keep


# No fault


@_behaves("ok", "an honest answer of so many words, with a pause after each event", words=5, ms=0)
async def _ok(call: Call, words: int, ms: int) -> None:
    call.write(words)
    await call.answer(pause_seconds=ms / 1000)


@_behaves("late", "waits before the head", ms=1000)
async def _late(call: Call, ms: int) -> None:
    await asyncio.sleep(ms / 1000)
    await call.answer()


@_behaves("drip", "one event, or one byte of a plain answer, at a time with a pause between", ms=50)
async def _drip(call: Call, ms: int) -> None:
    if call.entry.is_streaming:
        await call.answer(pause_seconds=ms / 1000)
        return
    body = call.encoded()
    await call.send_head({"content-type": "application/json", "content-length": str(len(body))})
    for byte in body:
        await call.exchange.send(bytes([byte]))
        await asyncio.sleep(ms / 1000)
    call.note_body()
    call.entry.is_complete = True


# Failures that are told


@_behaves("status", "fails with this status; a second number is its retry-after", status=500, seconds=-1)
async def _status(call: Call, status: int, seconds: int) -> None:
    headers = {"retry-after": str(seconds)} if seconds >= 0 else {}
    body = json.dumps(error_body(call.entry.dialect, status)).encode()
    await call.send_body(body, status, headers)


@_behaves("flaky", "every nth call of the model fails with 500, the others are answered", every=2)
async def _flaky(call: Call, every: int) -> None:
    if call.number_of_model % max(every, 1) == 0:
        await _status(call, 500, -1)
    else:
        await call.answer()


@_behaves("error-event", "an error event after so many words, and no end", words=2)
async def _error_event(call: Call, words: int) -> None:
    if not call.entry.is_streaming:
        await _status(call, 529, -1)
        return
    await call.part(words)
    told = error_body(call.entry.dialect, 529)
    name = {"anthropic": "error", "openai_responses": "error"}.get(call.entry.dialect, "")
    if name == "error" and "type" not in told:
        told = {**told["error"], "type": "error", "sequence_number": 999}
    await call.exchange.send_chunk(event(told, name))
    await call.exchange.end_chunks()


# 200 that is no answer


@_behaves("html", "a page with status 200")
async def _html(call: Call) -> None:
    await call.send_body(b"<html><body>Bad gateway</body></html>", headers={"content-type": "text/html"})


@_behaves("empty", "an empty body, or a stream without any event, with status 200")
async def _empty(call: Call) -> None:
    if call.entry.is_streaming:
        await call.begin()
        await call.finish()
    else:
        await call.send_body(b"")


@_behaves("error-object", "a JSON error object with status 200")
async def _error_object(call: Call) -> None:
    await call.send_body(json.dumps(error_body(call.entry.dialect, 500)).encode())


@_behaves("json-body", "one JSON body, though a stream was asked for")
async def _json_body(call: Call) -> None:
    await call.plain()


# Connections that break, and silence


@_behaves("reset", "breaks the connection before the head; with a number, after so many words", words=-1)
async def _reset(call: Call, words: int) -> None:
    if words >= 0:
        await call.part(words)
    call.reset()


@_behaves("hang-up", "closes the connection before the head")
async def _hang_up(call: Call) -> None:
    call.close()


@_behaves("cut", "closes the connection after so many words", words=2)
async def _cut(call: Call, words: int) -> None:
    await call.part(words)
    call.close()


@_behaves("cut-head", "closes the connection after the head, before anything else")
async def _cut_head(call: Call) -> None:
    await _head_only(call)
    call.close()


@_behaves("silent", "never answers; with a number, falls silent after so many words", words=-1)
async def _silent(call: Call, words: int) -> None:
    if words >= 0:
        await call.part(words)
    await call.fall_silent()


@_behaves("silent-head", "sends the head and nothing else")
async def _silent_head(call: Call) -> None:
    await _head_only(call)
    await call.fall_silent()


async def _head_only(call: Call) -> None:
    if call.entry.is_streaming:
        await call.begin()
        return
    named = {"content-type": "application/json", "content-length": "1000"}
    await call.send_head(named)


# Odd framing of events


@_behaves("bytes", "chunks of one byte")
async def _bytes(call: Call) -> None:
    if not call.entry.is_streaming:
        await _drip(call, 0)
        return
    await call.begin()
    for piece in call.pieces:
        for byte in piece.data:
            await call.exchange.send_chunk(bytes([byte]))
        call.note(piece)
    await call.finish()


async def _rewritten(call: Call, rewrite: Callable[[int, Piece], bytes]) -> None:
    """Sends every event as `rewrite` says, and a plain answer as it is."""
    if not call.entry.is_streaming:
        await call.plain()
        return
    await call.begin()
    for number, piece in enumerate(call.pieces):
        await call.send(piece, rewrite(number, piece))
    await call.finish()


_ENDS = (b"\n", b"\r\n", b"\r")
# Behaviours that spell every event in another way.
_SPELLINGS: dict[str, tuple[str, Callable[[int, Piece], bytes]]] = {
    "crlf": ("lines end in CR LF", lambda _, piece: piece.data.replace(b"\n", b"\r\n")),
    "cr": ("lines end in CR", lambda _, piece: piece.data.replace(b"\n", b"\r")),
    "mixed": (
        "lines end in LF, CR LF and CR by turns",
        lambda number, piece: piece.data.replace(b"\n", _ENDS[number % 3]),
    ),
    "comments": ("a comment before every event", lambda _, piece: b": a comment\n\n" + piece.data),
    "no-space": (
        "`data:` without a space behind it",
        lambda _, piece: piece.data.replace(b"data: ", b"data:").replace(b"event: ", b"event:"),
    ),
}
for _name, (_about, _spelling) in _SPELLINGS.items():
    _behaves(_name, _about)(functools.partial(_rewritten, rewrite=_spelling))


@_behaves("bom", "a byte order mark before the first event or the body")
async def _bom(call: Call) -> None:
    if not call.entry.is_streaming:
        await call.send_body(b"\xef\xbb\xbf" + call.encoded())
        call.note_body()
        return
    await _rewritten(call, lambda number, piece: (b"" if number else b"\xef\xbb\xbf") + piece.data)


@_behaves("no-blank", "no blank line behind the last event")
async def _no_blank(call: Call) -> None:
    last = len(call.pieces) - 1
    await _rewritten(call, lambda number, piece: piece.data[:-1] if number == last else piece.data)


@_behaves("huge", "an event whose line has so many bytes, amid the answer", size=9 * MIB)
async def _huge(call: Call, size: int) -> None:
    huge = event({"type": "tomorrow", "filler": "x" * min(size, 64 * MIB)}, "tomorrow")
    await _inserted(call, huge)


async def _inserted(call: Call, data: bytes) -> None:
    """Sends `data` before the second word."""
    place = len(call.until(1))
    await _rewritten(call, lambda number, piece: (data if number == place else b"") + piece.data)


# Events that say something wrong


@_behaves("invalid-json", "an event that is no JSON amid the answer, or a plain answer that is none")
async def _invalid_json(call: Call) -> None:
    if call.entry.is_streaming:
        await _inserted(call, b'event: ping\ndata: {"type": "ping", \n\n')
    else:
        await call.send_body(call.encoded()[:-2])


@_behaves("unknown-events", "events of unknown types amid the answer")
async def _unknown_events(call: Call) -> None:
    await _inserted(call, unknown_event(call.entry.dialect) * 2)


@_behaves("two-starts", "the first event once more amid the answer")
async def _two_starts(call: Call) -> None:
    await _inserted(call, call.pieces[0].data)


@_behaves("out-of-order", "the words before what announces them")
async def _out_of_order(call: Call) -> None:
    early = [piece for piece in call.pieces if piece.text]
    call.pieces = [*early[:1], *(piece for piece in call.pieces if piece is not early[0])]
    await call.answer()


@_behaves("no-terminator", "a stream that ends in order without its last event")
async def _no_terminator(call: Call) -> None:
    call.pieces = [piece for piece in call.pieces if not piece.is_terminal]
    await call.answer()


def _usage_behaviour(how: str) -> Callable[[Call], Awaitable[None]]:
    async def behave(call: Call) -> None:
        call.write(5, how)
        await call.answer()

    return behave


for _how in USAGES[1:]:
    _behaves(f"usage-{_how}", f"usage that is {_how}")(_usage_behaviour(_how))


# Odd HTTP


@_behaves("redirect", "a redirect to 127.0.0.1, to the provider itself, which counts who follows", status=302)
async def _redirect(call: Call, status: int) -> None:
    await call.send_body(b"", status, {"location": f"{call.own_url}/redirected"})


@_behaves("length-long", "a content-length that is longer than the body, then the connection is closed")
async def _length_long(call: Call) -> None:
    body = call.encoded()
    await call.send_body(body[:-10], headers={"content-length": str(len(body))})
    call.entry.is_complete = False
    call.close()


@_behaves("length-short", "a content-length that is shorter than the body")
async def _length_short(call: Call) -> None:
    body = call.encoded()
    await call.send_body(body, headers={"content-length": str(len(body) - 10)})
    call.entry.is_complete = False
    call.close()


@_behaves("gzip-bomb", "a body of so many MiB in a thousandth of the bytes", mib=1024)
async def _gzip_bomb(call: Call, mib: int) -> None:
    await call.send_head({"content-type": "application/json", "content-encoding": "gzip"})
    for block in gzip_bomb(mib):
        await call.exchange.send(block)
    call.close()


@_behaves("informational", "so many answers of status 103 before the right one", count=100)
async def _informational(call: Call, count: int) -> None:
    for _ in range(count):
        await call.exchange.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n")
    await call.answer()


@_behaves("large-header", "a header of so many bytes before an honest answer", size=MIB)
async def _large_header(call: Call, size: int) -> None:
    await call.answer({"x-large": "x" * size})


@_behaves("cookie", "headers that are no business of the client's: cookies, proxies, hops")
async def _cookie(call: Call) -> None:
    await call.answer(
        {
            "set-cookie": "session=of-the-provider; Path=/",
            "proxy-authenticate": "Basic",
            "keep-alive": "timeout=5",
            "server": "fault-kit",
            "strict-transport-security": "max-age=1",
        }
    )


@_behaves("bad-chunks", "a chunk whose length is no number, after the first words")
async def _bad_chunks(call: Call) -> None:
    if call.entry.is_streaming:
        await call.part(2)
        await call.exchange.send(b"zz\r\nnothing\r\n")
    else:
        await call.send_head({"content-type": "application/json", "transfer-encoding": "chunked"})
        await call.exchange.send(b"zz\r\nnothing\r\n")
    call.close()


@_behaves("stuck-chunks", "as bad-chunks a moment later, and the connection stays open")
async def _stuck_chunks(call: Call) -> None:
    if call.entry.is_streaming:
        await call.part(2)
    else:
        await call.send_head({"content-type": "application/json", "transfer-encoding": "chunked"})
    await asyncio.sleep(MOMENT_SECONDS)
    await call.exchange.send(b"zz\r\nnothing\r\n")
    await call.fall_silent()


@_behaves("no-http", "bytes that are no HTTP")
async def _no_http(call: Call) -> None:
    await call.exchange.send(b"220 mail.example ESMTP\r\n")
    call.close()
