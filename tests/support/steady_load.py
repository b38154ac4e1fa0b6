"""Callers of all dialects who never stop while something is done to the gateway, and what they saw."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.conformance import streams
from tests.conformance.rig import PATHS, Gateway, Provider, post_bytes
from tests.support.raw_client import RawAnswer, RawClient
from tests.support.scripted_upstream import Exchange, Script

PARTS = tuple(f"word {number} " for number in range(8))
ENDS = {"A": b"message_stop", "C": b"[DONE]", "R": b"response.completed"}
ANSWER_SECONDS = 60.0
# Between two calls of one caller: new connections come all the time, and leave some of the machine to others.
PAUSE_SECONDS = 0.05


def paced(dialect: str, pause_seconds: float) -> Script:
    """Answers with a whole stream, one event after each pause."""
    events = [*streams.begin(dialect), *streams.deltas(dialect, *PARTS), *streams.end(dialect, *PARTS)]

    async def script(exchange: Exchange) -> None:
        await exchange.send_stream_head()
        for event in events:
            await exchange.send_chunk(event)
            await asyncio.sleep(pause_seconds)
        await exchange.end_chunks()

    return script


@dataclass
class Seen:
    """What callers saw."""

    # Ids of requests whose answer came whole, with the terminal event of its dialect.
    whole: list[str] = field(default_factory=list)
    # Everything else, in words.
    failures: Counter[str] = field(default_factory=Counter)


class SteadyLoad:
    """Streams in all dialects, each on a connection of its own, and plain calls on kept ones."""

    def __init__(self, gateway: Gateway, providers: dict[str, Provider]) -> None:
        self.seen = Seen()
        self._gateway = gateway
        self._providers = providers
        self._is_over = False

    @classmethod
    @asynccontextmanager
    async def running(
        cls, gateway: Gateway, callers: int, pause_seconds: float
    ) -> AsyncIterator["SteadyLoad"]:
        """Calls until the block is left, and lets the last calls end.

        Args:
            gateway: under load.
            callers: so many of each kind.
            pause_seconds: between the events of a stream.
        """
        providers = {name: await gateway.add(name, script=paced(name, pause_seconds)) for name in PATHS}
        load = cls(gateway, providers)
        tasks = [asyncio.create_task(load._stream("ACR"[number % 3])) for number in range(callers)]
        tasks += [asyncio.create_task(load._keep_calling()) for _ in range(callers)]
        try:
            yield load
            load._is_over = True
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _stream(self, dialect: str) -> None:
        while not self._is_over:
            provider = self._providers[dialect]
            body = self._gateway.body(dialect, provider.model, None, is_streaming=True)
            request = post_bytes(PATHS[dialect], body, self._gateway.lines(()))
            answer: RawAnswer | None = None
            try:
                async with RawClient.connected(self._gateway.port) as client:
                    await client.send(request)
                    await client.read_head(ANSWER_SECONDS)
                    answer = await client.read_all(ANSWER_SECONDS)
            except (OSError, EOFError) as error:
                self.seen.failures[f"{dialect} {type(error).__name__}"] += 1
            else:
                self._note(dialect, answer)
            await asyncio.sleep(PAUSE_SECONDS)

    def _note(self, dialect: str, answer: RawAnswer) -> None:
        if answer.status != 200:
            self.seen.failures[f"{dialect} {answer.status}"] += 1
        elif not answer.is_complete or ENDS[dialect] not in answer.body:
            self.seen.failures[f"{dialect} cut"] += 1
        else:
            self.seen.whole.append(answer.header("x-request-id"))

    async def _keep_calling(self) -> None:
        """Asks for something small, again and again, on a connection that is kept for as long as it lives."""
        async with httpx.AsyncClient(base_url=self._gateway.mesh.base_url, timeout=ANSWER_SECONDS) as client:
            while not self._is_over:
                try:
                    status = (
                        await client.get("/v1/models", headers=self._gateway.mesh.headers())
                    ).status_code
                    if status != 200:
                        self.seen.failures[f"models {status}"] += 1
                except httpx.TransportError as error:
                    self.seen.failures[f"kept {type(error).__name__}"] += 1
                await asyncio.sleep(PAUSE_SECONDS)


async def booked(gateway: Gateway, account_id: str = "acct_default") -> dict[str, int]:
    """All usage of an account in the ledger: request id to nano-USD. Fails on a double entry."""
    found: dict[str, int] = {}
    token = ""
    while True:
        query = f"account_id={account_id}&page_size=1000&kind=TRANSACTION_KIND_USAGE&page_token={token}"
        page: Any = await gateway.rest("GET", f"transactions?{query}")
        for entry in page.get("transactions", []):
            assert entry["transaction_id"] not in found, "booked twice"
            found[entry["transaction_id"]] = -int(entry["amount_nano_usd"])
        token = page.get("next_page_token", "")
        if not token:
            return found


async def until_booked(gateway: Gateway, count: int, seconds: float) -> dict[str, int]:
    """Waits for so many rows of usage, looks once more for any that follow, and returns them."""
    with suppress(AssertionError):
        await gateway.eventually(lambda: _has(gateway, count), seconds)
    return await booked(gateway)


async def _has(gateway: Gateway, count: int) -> bool:
    return len(await booked(gateway)) >= count
