"""One call of the faulty provider: what was asked, what was sent, and the words to send it with."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .answers import CHAT, DIALECTS, Piece, answer
from .scripted import Exchange

WORDS = 5
MAX_WORDS = 100_000
SILENT_SECONDS = 3600.0
PATHS = dict(zip(("/messages", "/chat/completions", "/responses"), DIALECTS, strict=True))


@dataclass(slots=True)
class ServedCall:
    """What the provider has served for one call: the ledger that others are compared with."""

    # Counts calls from 1; `answer_id` stands in the answer's id, behind the dialect's prefix.
    number: int
    answer_id: str
    dialect: str
    model: str
    behaviour: str
    is_streaming: bool
    asked: dict[str, Any] = field(repr=False)
    # What has left this process, whether or not anybody has read it.
    status: int = 0
    sent_events: int = 0
    sent_text: str = ""
    sent_usage: dict[str, Any] | None = None
    is_terminal_sent: bool = False
    is_complete: bool = False
    # Monotonic times. The peer closed the connection before the answer was complete if `is_peer_gone`.
    arrived: float = 0.0
    ended: float | None = None
    is_peer_gone: bool = False

    def as_json(self) -> dict[str, Any]:
        """Returns all of it."""
        return asdict(self)


class Call:
    """A call being answered: what a behaviour sees."""

    def __init__(self, exchange: Exchange, entry: ServedCall, own_url: str, number_of_model: int) -> None:
        self.exchange = exchange
        self.entry = entry
        # Where the provider listens, and which call of this model it is, counted from 1.
        self.own_url = own_url
        self.number_of_model = number_of_model
        self.write(WORDS)

    def write(self, count: int, usage: str = "stated") -> None:
        """Prepares an answer of so many words."""
        words = [f"w{number} " for number in range(min(count, MAX_WORDS))]
        entry = self.entry
        options = entry.asked.get("stream_options")
        is_told = isinstance(options, dict) and bool(options.get("include_usage"))
        is_silent = entry.dialect == CHAT and entry.is_streaming and not is_told
        said = "absent" if is_silent else usage
        self.pieces, self.body = answer(entry.dialect, entry.answer_id, words, said)

    async def begin(self, headers: Mapping[str, str] | None = None) -> None:
        """Sends the head of a stream."""
        self.entry.status = 200
        await self.exchange.send_stream_head(headers=headers)

    async def send_head(self, headers: Mapping[str, str], status: int = 200) -> None:
        """Sends the head of an answer that is no stream."""
        self.entry.status = status
        await self.exchange.send_head(status, headers)

    async def send(self, piece: Piece, data: bytes | None = None) -> None:
        """Sends an event, or these bytes in its place, as one chunk."""
        await self.exchange.send_chunk(piece.data if data is None else data)
        self.note(piece)

    def note(self, piece: Piece) -> None:
        """Counts an event as sent."""
        entry = self.entry
        entry.sent_events += 1
        entry.sent_text += piece.text
        entry.sent_usage = piece.usage or entry.sent_usage
        entry.is_terminal_sent |= piece.is_terminal

    async def finish(self) -> None:
        """Ends a stream in order."""
        await self.exchange.end_chunks()
        self.entry.is_complete = True

    async def send_body(
        self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Sends one body, JSON unless the headers say otherwise."""
        named = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        await self.send_head(named, status)
        self.entry.is_complete = True  # Said before anybody can have read the last byte.
        try:
            await self.exchange.send(body)
        except BaseException:
            self.entry.is_complete = False
            raise

    def encoded(self) -> bytes:
        """Returns the plain answer."""
        return json.dumps(self.body).encode()

    async def plain(self, headers: Mapping[str, str] | None = None, pause_seconds: float = 0.0) -> None:
        """Sends the plain answer whole."""
        if pause_seconds:
            await asyncio.sleep(pause_seconds)
        await self.send_body(self.encoded(), headers=headers)
        self.note_body()

    def note_body(self) -> None:
        """Counts the plain answer as sent."""
        self.entry.sent_text = "".join(piece.text for piece in self.pieces)
        self.entry.sent_usage = self.body.get("usage")
        self.entry.is_terminal_sent = True

    async def answer(self, headers: Mapping[str, str] | None = None, pause_seconds: float = 0.0) -> None:
        """Answers as asked, without a fault."""
        if not self.entry.is_streaming:
            await self.plain(headers, pause_seconds)
            return
        await self.begin(headers)
        for piece in self.pieces:
            await self.send(piece)
            if pause_seconds:
                await asyncio.sleep(pause_seconds)
        await self.finish()

    async def part(self, words: int) -> None:
        """Sends the stream up to so many words, or the first half of a plain answer."""
        if self.entry.is_streaming:
            await self.begin()
            for piece in self.until(words):
                await self.send(piece)
            return
        body = self.encoded()
        await self.send_head({"content-type": "application/json", "content-length": str(len(body))})
        await self.exchange.send(body[: len(body) // 2])

    def until(self, words: int) -> list[Piece]:
        """Returns the events before the word of this number, counted from 0; at most up to the last word."""
        ends = [number for number, piece in enumerate(self.pieces) if piece.text]
        if words >= len(ends):
            return self.pieces[: ends[-1] + 1] if ends else self.pieces
        return self.pieces[: ends[words]]

    async def fall_silent(self) -> None:
        """Sends nothing more, until the peer leaves."""
        await self.exchange.until_gone(SILENT_SECONDS)

    def close(self) -> None:
        """Closes the connection, in order or not."""
        self.exchange.close()

    def reset(self) -> None:
        """Breaks the connection."""
        self.exchange.reset()


def dialect_of(path: str) -> str | None:
    """Returns the dialect of a path, None if it is none of them."""
    bare = path.partition("?")[0]
    return next((dialect for end, dialect in PATHS.items() if bare.endswith(end)), None)


def now() -> float:
    """Returns the monotonic time."""
    return time.monotonic()
