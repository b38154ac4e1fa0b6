"""Callers of all three dialects, streamed and plain, of whom some hang up: ledger K, what clients saw."""

import asyncio
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

PATHS = {"A": "/v1/messages", "C": "/v1/chat/completions", "R": "/v1/responses"}
BEGINS = {"A": b"event: message_start", "C": b'"role": "assistant"', "R": b"event: response.created"}
TERMINALS = {"A": b"event: message_stop", "C": b"data: [DONE]", "R": b"event: response.completed"}
CONTENTS = {"A": b'"text_delta"', "C": b'"delta": {"content": "w', "R": b"event: response.output_text.delta"}
# Nobody waits longer for an answer; longer than any of them takes.
CALL_SECONDS = 40.0
# After a failure, so that a mesh that is away is not hammered.
PAUSE_SECONDS = 0.1
# Below 100 words the gateway's estimate, a quarter of the bytes, is never above their number.
WORDS = (1, 7, 30, 70, 99)
PAUSES_MS = (0, 20, 50)
MAX_LEAVE_SECONDS = 2.5
MAX_REASON = 60
# Headers that clients choose and repeat: none of them may ever become a key of the ledger.
SAME_REQUEST_ID = "the-same-for-all"
SESSIONS = ("agent-0", "agent-1", "agent-2")


@dataclass(slots=True)
class Seen:
    """One call as its client saw it. `mark` stands in the request, and so in the books of all others."""

    mark: str
    account_id: str
    dialect: str
    is_streaming: bool
    leaves: str = ""
    request_id: str = ""
    status: int = 0
    outcome: str = ""
    content_count: int = 0
    begin_count: int = 0
    is_whole: bool = False
    # Why it was refused, as its client was told.
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one call asks for. `leaves` is `content`, after the last word, or `instant`, or empty."""

    dialect: str
    is_streaming: bool
    words: int
    pause_ms: int
    leaves: str = ""
    leave_seconds: float = 0.0


@dataclass
class Callers:
    """Calls with a bounded number at once.

    Args:
        base_urls: of the gateway; calls take turns.
        keys: API keys by account.
        seed: of what is asked, and who leaves when.
    """

    base_urls: Sequence[str]
    keys: Mapping[str, str]
    seed: int
    prefix: str = "chaos"
    seen: list[Seen] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    async def run(self, callers: int, is_over: Callable[[], bool]) -> None:
        """Lets so many callers make one call after the other, until it is over."""

        async def call_on(session: aiohttp.ClientSession) -> None:
            while not is_over():
                seen = await self.call(session, self.choose())
                if seen.outcome in ("refused", "failed"):
                    await asyncio.sleep(PAUSE_SECONDS)

        async with new_session() as session:
            await asyncio.gather(*(call_on(session) for _ in range(callers)))

    async def burst(self, wanted: Sequence[Wanted], at_once: int) -> None:
        """Makes all these calls, so many at once."""
        limit = asyncio.Semaphore(at_once)

        async def one(session: aiohttp.ClientSession, asked: Wanted) -> None:
            async with limit:
                await self.call(session, asked)

        async with new_session() as session:
            await asyncio.gather(*(one(session, asked) for asked in wanted))

    def choose(self) -> Wanted:
        """Returns the next call: a third of the streams, and a sixth of the others, is left early."""
        is_streaming = self.random.random() < 0.7
        stays = ("",) * (4 if is_streaming else 5)
        leaves = self.random.choice((*stays, "instant", *(("content",) if is_streaming else ())))
        return Wanted(
            dialect=self.random.choice("ACR"),
            is_streaming=is_streaming,
            words=self.random.choice(WORDS),
            pause_ms=self.random.choice(PAUSES_MS),
            leaves=leaves,
            leave_seconds=self.random.random() * MAX_LEAVE_SECONDS,
        )

    async def call(self, session: aiohttp.ClientSession, wanted: Wanted) -> Seen:
        """Makes a call and notes what its client sees."""
        number = next(self._numbers)
        mark = f"{self.prefix}/{number:06}"
        account_id = sorted(self.keys)[number % len(self.keys)]
        seen = Seen(mark, account_id, wanted.dialect, wanted.is_streaming, wanted.leaves)
        self.seen.append(seen)
        is_timed = wanted.leaves == "instant"
        try:
            async with asyncio.timeout(wanted.leave_seconds if is_timed else CALL_SECONDS):
                await self._ask(session, seen, wanted, number)
        except TimeoutError:
            seen.outcome = "left" if is_timed else "silent"
        except (aiohttp.ClientError, OSError):
            seen.outcome = "cut" if seen.status else "failed"
        return seen

    async def _ask(self, session: aiohttp.ClientSession, seen: Seen, wanted: Wanted, number: int) -> None:
        url = self.base_urls[number % len(self.base_urls)] + PATHS[wanted.dialect]
        headers = {
            "authorization": f"Bearer {self.keys[seen.account_id]}",
            "user-agent": seen.mark,
            "x-request-id": SAME_REQUEST_ID,
            "session-id": SESSIONS[number % len(SESSIONS)],
        }
        model = model_name(wanted.words, wanted.pause_ms)
        async with session.post(url, json=_body(seen, model), headers=headers) as answer:
            seen.status = answer.status
            seen.request_id = answer.headers.get("x-request-id", "")
            if answer.status != 200:
                seen.outcome, seen.reason = "refused", _reason(await answer.read())
                return
            await self._read(answer, seen, wanted)

    async def _read(self, answer: aiohttp.ClientResponse, seen: Seen, wanted: Wanted) -> None:
        text = b""
        async for chunk in answer.content.iter_any():
            text += chunk
            seen.begin_count = text.count(BEGINS[seen.dialect]) if seen.is_streaming else 1
            seen.content_count = text.count(CONTENTS[seen.dialect])
            if wanted.leaves == "content" and seen.content_count >= wanted.words:
                answer.close()
                seen.outcome = "left"
                seen.is_whole = TERMINALS[seen.dialect] in text
                return
        seen.is_whole = TERMINALS[seen.dialect] in text if seen.is_streaming else True
        seen.outcome = "whole" if seen.is_whole else "broken off"


def model_name(words: int, pause_ms: int) -> str:
    """Returns the model that answers with so many words, at this pace."""
    return f"chaos-fault-ok-{words}-{pause_ms}"


def new_session() -> aiohttp.ClientSession:
    """Returns a client whose connections are not used again: who leaves closes a socket of its own."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))


def _body(seen: Seen, model: str) -> dict[str, Any]:
    turns: Any = seen.mark if seen.dialect == "R" else [{"role": "user", "content": seen.mark}]
    body = {
        "model": model,
        "stream": seen.is_streaming,
        "input" if seen.dialect == "R" else "messages": turns,
    }
    return {**body, **({"max_tokens": 200} if seen.dialect == "A" else {})}


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])[:MAX_REASON]
    except (ValueError, KeyError, TypeError):
        return "in no dialect's words"
