"""Knows the revision of the last change, whichever process made it, and streams the changes.

PostgreSQL tells of a commit by NOTIFY; a slow poll makes up for a lost
connection. What a stream sends comes from the tables, in the order of
revisions, so a wake-up too many or too few loses nothing. While PostgreSQL is
away streams stay open and are silent.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import asyncpg
from prometheus_client import Gauge

from lurus.provider.v1.provider_pb2 import WatchProvidersResponse
from lurus_common import postgres
from lurus_common.errors import DependencyUnavailable, Overloaded
from lurus_provider.store import CHANNEL, ProviderStore

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
# Without a word of PostgreSQL for so long, what is known may be old.
TRUST_SECONDS = 3 * POLL_SECONDS
RETRY_SECONDS = 0.5
MAX_WATCHERS = 200
# A stream that has nothing to tell says so this often, while PostgreSQL answers.
HEARTBEAT_SECONDS = 10.0

REVISION = Gauge(
    "lurus_provider_revision", "Revision of the last known change of providers, models or prices."
)
WATCHERS = Gauge("lurus_provider_watchers", "Open streams of WatchProviders.")


class KnownRevision:
    """The last revision that this process has heard of."""

    def __init__(self) -> None:
        self.value = -1
        self._confirm_time = float("-inf")
        self._changed = asyncio.Event()
        self._is_closed = False

    def note(self, revision: int) -> None:
        """Takes notice of a commit."""
        if revision > self.value:
            self._set(revision)

    def confirm(self, revision: int, before: int) -> None:
        """Takes the database's word, asked when `before` was known; a restored backup goes back."""
        self._confirm_time = time.monotonic()
        if revision > self.value or (revision < self.value and before == self.value):
            self._set(revision)

    def doubt(self) -> None:
        """Notes that PostgreSQL is away."""
        self._confirm_time = float("-inf")

    @property
    def is_certain(self) -> bool:
        """Whether a commit of another process would be known by now, give or take a moment."""
        return time.monotonic() - self._confirm_time < TRUST_SECONDS

    def has_ended(self) -> bool:
        """Whether all waits have ended for good."""
        return self._is_closed

    async def wait_for_other_than(self, seen: int, seconds: float) -> bool:
        """Returns True once the revision is not `seen`, False after so long; at once if closed."""
        try:
            async with asyncio.timeout(seconds):
                while self.value == seen and not self._is_closed:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Ends all waits."""
        self._is_closed = True
        self._changed.set()

    def _set(self, revision: int) -> None:
        self.value = revision
        REVISION.set(revision)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Feed:
    """Keeps a `KnownRevision` current and streams changes.

    Args:
        pool: one of its connections listens, for as long as the process runs.
        store: where the changes come from.
        known: shared with the store, which notes its own commits.
    """

    def __init__(self, pool: asyncpg.Pool, store: ProviderStore, known: KnownRevision) -> None:
        self._pool = pool
        self._store = store
        self._known = known
        self._heard = asyncio.Event()
        self._watcher_count = 0

    async def run(self) -> None:
        """Listens until cancelled; a connection that fails is replaced."""
        while True:
            try:
                await self._listen()
            except DependencyUnavailable as error:
                log.warning("changes of providers are not seen: %s", error.message)
            except Exception:
                log.exception("changes of providers are not seen")
            self._known.doubt()
            await asyncio.sleep(RETRY_SECONDS)

    async def responses(self) -> AsyncIterator[WatchProvidersResponse]:
        """Yields the whole set, then changes as they come, until the service stops.

        Raises:
            Overloaded: there are too many streams.
            DependencyUnavailable: PostgreSQL is away at the start.
        """
        if self._watcher_count >= MAX_WATCHERS:
            raise Overloaded("too many streams of WatchProviders", maximum=MAX_WATCHERS)
        with self._counted():
            message = await self._store.changes(None)
            self._known.note(message.revision)
            yield message
            seen = message.revision
            while not self._known.has_ended():
                if not await self._known.wait_for_other_than(seen, HEARTBEAT_SECONDS):
                    if self._known.is_certain:
                        yield WatchProvidersResponse(revision=seen)
                    continue
                if self._known.has_ended():
                    return
                try:
                    message = await self._store.changes(seen)
                except DependencyUnavailable:
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                self._known.note(message.revision)
                if message.revision != seen:
                    yield message
                    seen = message.revision

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._watcher_count += 1
        WATCHERS.set(self._watcher_count)
        try:
            yield
        finally:
            self._watcher_count -= 1
            WATCHERS.set(self._watcher_count)

    async def _listen(self) -> None:
        async with postgres.connection(self._pool, seconds=None) as connection, self._listening(connection):
            while True:
                self._heard.clear()
                before = self._known.value
                self._known.confirm(await self._store.revision(), before)
                await self._wait()
                await connection.execute("SELECT 1")

    @asynccontextmanager
    async def _listening(self, connection: postgres.Connection) -> AsyncIterator[None]:
        def heard(*_: object) -> None:
            self._heard.set()

        connection.add_termination_listener(heard)
        try:
            async with postgres.listening(connection, CHANNEL, heard):
                yield
        finally:
            with suppress(asyncpg.InterfaceError):
                connection.remove_termination_listener(heard)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._heard.wait()
        except TimeoutError:
            pass
