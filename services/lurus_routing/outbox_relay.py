"""Carries the outbox to the bus, and survives its absence.

An event is marked as sent only after the bus has acknowledged it, and is published again until it has. A
backlog is carried by several batches at a time, so that reading, publishing and marking overlap. Nobody
notices while no request is served; as soon as one is, batches are small and half of the time is for others.
"""

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from nats.js.errors import NoStreamResponseError
from prometheus_client import Counter, Gauge

from lurus_common import bus
from lurus_routing.outbox import Outbox
from lurus_routing.outbox_group import Row

log = logging.getLogger(__name__)

# What passes: a bus or a disk that is away, and a stream that an operator must repair.
_AWAY = (NatsError, OSError, TimeoutError, sqlite3.Error, bus.StreamMismatch)

BATCH_EVENTS = 256
BACKLOG_EVENTS = 4 * BATCH_EVENTS
# Of a backlog, so many batches are published and not yet marked.
FLYING_BATCHES = 4
# The same beside requests that are served: what is done at once is done within about a millisecond.
SHY_EVENTS = 32
SHY_BATCHES = 2
# So long after a request was seen others are expected: short calls are rarely there at the moment of a look.
SHY_SECONDS = 2.0
# For how long others have the loop before the next of these batches, by how long it has worked for the last.
SHY_REST = 1.0
MAX_REST_SECONDS = 0.25
FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 5.0
# Lets events gather, so that a busy worker does not publish and mark them one by one.
LINGER_SECONDS = 0.1
CLEAN_SECONDS = 3600.0
FLUSH_POLL_SECONDS = 0.02
HANDSHAKE_SECONDS = 0.3

PUBLISHED = Counter("lurus_published_events", "Usage events that the bus has confirmed.")
FAILED = Counter("lurus_publish_failures", "Batches of usage events that the bus did not confirm whole.")
OLDEST = Gauge("lurus_outbox_blocked_seconds", "For how long the bus has taken nothing; 0 if all is well.")


class OutboxRelay:
    """One task: publishes what the outbox has, in order, with the acks gathered."""

    def __init__(self, outbox: Outbox, nats_url: str, worker_id: str) -> None:
        self._outbox = outbox
        self._url = nats_url
        self._worker_id = worker_id
        self._blocked_since: float | None = None
        self._is_urgent = asyncio.Event()
        self._client: Client | None = None
        self._shy_until = 0.0

    @property
    def problem(self) -> str:
        """Why events wait, or an empty string."""
        if self._blocked_since is None:
            return ""
        return f"the bus has taken nothing for {time.monotonic() - self._blocked_since:.0f} s"

    @property
    def is_connected(self) -> bool:
        """Whether the bus answers, as far as anybody can tell without asking it."""
        return self._client is not None and self._client.is_connected

    async def run(self) -> None:
        """Publishes until cancelled."""
        async with AsyncExitStack() as stack:
            client = self._client = await self._connect(stack)
            with suppress(*_AWAY):  # the first event will tell
                await bus.ensure_stream(client.jetstream())
            wait_seconds = FIRST_RETRY_SECONDS
            cleaned = time.monotonic()
            while True:
                await self._outbox.has_news.wait()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_SECONDS):
                        await self._is_urgent.wait()
                self._outbox.has_news.clear()
                try:
                    await self._drain(client)
                    wait_seconds = FIRST_RETRY_SECONDS
                    if time.monotonic() - cleaned > CLEAN_SECONDS:
                        cleaned = time.monotonic()
                        await self._outbox.forget_old()
                except _AWAY as error:
                    self._note_failure(error)
                    self._outbox.has_news.set()
                    await asyncio.sleep(wait_seconds)
                    wait_seconds = min(wait_seconds * 2, MAX_RETRY_SECONDS)

    async def flush(self, seconds: float) -> None:
        """Waits until everything is sent, at most so long; from now on nothing lingers."""
        self._is_urgent.set()
        deadline = time.monotonic() + seconds
        while self._outbox.unsent_count and time.monotonic() < deadline:  # noqa: ASYNC110  # once, at the end
            await asyncio.sleep(FLUSH_POLL_SECONDS)

    async def _connect(self, stack: AsyncExitStack) -> Client:
        while True:
            connecting = asyncio.create_task(bus.connect(self._url, self._worker_id))
            try:
                client = await asyncio.shield(connecting)
                stack.push_async_callback(client.close)
                return client
            except (NatsError, OSError, TimeoutError) as error:
                self._note_failure(error)
                await asyncio.sleep(MAX_RETRY_SECONDS / 5)
            except asyncio.CancelledError:
                await _give_up(connecting)
                raise

    async def _drain(self, client: Client) -> None:
        """Publishes all there is."""
        while True:
            if self._outbox.unsent_count > BACKLOG_EVENTS or self._blocked_since is not None:
                await self._catch_up(client)
            rows = await self._outbox.unsent(BATCH_EVENTS)
            if not rows:
                return
            if failure := await self._publish(client, rows):
                raise failure

    async def _catch_up(self, client: Client) -> None:
        """Goes once through all that is not sent, some batches at a time.

        Raises:
            Exception: the first event that was not stored, after all others were tried; or at once why
                nothing of a batch was.
        """
        flying: deque[asyncio.Task[BaseException | None]] = deque()
        failure, last_id = None, ""
        try:
            while rows := await self._outbox.unsent_after(
                last_id, SHY_EVENTS if self._is_shy() else BATCH_EVENTS
            ):
                used, last_id = time.thread_time(), rows[-1][0]
                flying.append(asyncio.create_task(self._publish(client, rows)))
                while len(flying) >= (SHY_BATCHES if self._is_shy() else FLYING_BATCHES):
                    failure = await flying.popleft() or failure
                await self._rest(used)
            while flying:
                failure = await flying.popleft() or failure
        except asyncio.CancelledError:
            for task in flying:
                task.cancel()
            raise
        finally:
            await asyncio.gather(*flying, return_exceptions=True)
        if failure is not None:
            raise failure

    def _is_shy(self) -> bool:
        """Whether requests are served or were a moment ago, and this worker does not stop."""
        now = time.monotonic()
        if self._outbox.live_count:
            self._shy_until = now + SHY_SECONDS
        return now < self._shy_until and not self._is_urgent.is_set()

    async def _rest(self, used: float) -> None:
        """Leaves the loop to requests, if there are any, for as long as it has worked since a moment."""
        if self._is_shy():
            await asyncio.sleep(min((time.thread_time() - used) * SHY_REST, MAX_REST_SECONDS))

    async def _publish(self, client: Client, rows: Sequence[Row]) -> BaseException | None:
        """Publishes events and marks those that the bus has; returns why some of them were not stored.

        Raises:
            Exception: why none was stored, if that is no fault of the events.
        """
        jetstream = client.jetstream()
        acks = await asyncio.gather(
            *(bus.publish(jetstream, request_id, subject, event) for request_id, subject, event in rows),
            return_exceptions=True,
        )
        stored = [row[0] for row, ack in zip(rows, acks, strict=True) if not isinstance(ack, BaseException)]
        if stored:
            await self._outbox.mark_sent(stored)
            PUBLISHED.inc(len(stored))
        # The client cancels what it waits for when it reconnects; that is no end of this task.
        failures = [
            NatsError("the connection was lost") if isinstance(ack, asyncio.CancelledError) else ack
            for ack in acks
            if isinstance(ack, BaseException)
        ]
        if any(isinstance(failure, NoStreamResponseError) for failure in failures):
            # A bus that came back empty: the next attempt finds a stream.
            await bus.ensure_stream(jetstream)
        if not stored and not all(isinstance(failure, MaxPayloadError) for failure in failures):
            raise failures[0]
        if not failures:
            self._note_success()
        return failures[0] if failures else None

    def _note_failure(self, error: BaseException) -> None:
        FAILED.inc()
        if self._blocked_since is None:
            self._blocked_since = time.monotonic()
            log.warning("usage events wait in the outbox: %s", error or type(error).__name__)
        OLDEST.set(time.monotonic() - self._blocked_since)

    def _note_success(self) -> None:
        if self._blocked_since is not None:
            log.info("usage events flow again")
        self._blocked_since = None
        OLDEST.set(0)


async def _give_up(connecting: "asyncio.Task[Client]") -> None:
    """Lets a handshake end before its connection is closed: cancelled amid it, the socket would stay open."""
    done, _ = await asyncio.wait([connecting], timeout=HANDSHAKE_SECONDS)
    if not done:
        connecting.cancel()
        await asyncio.wait([connecting])
    elif connecting.exception() is None:
        await connecting.result().close()
