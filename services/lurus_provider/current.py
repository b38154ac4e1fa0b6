"""The current set: from memory, else from Redis, else from PostgreSQL."""

import asyncio
import time

from prometheus_client import Counter

from lurus_common.errors import DependencyUnavailable
from lurus_provider.cache import SetCache
from lurus_provider.collection import ProviderSet
from lurus_provider.credentials import without_secrets
from lurus_provider.feed import KnownRevision
from lurus_provider.store import ProviderStore

READS = Counter(
    "lurus_provider_set_reads", "Reads of the set of providers, by where it came from.", ["source"]
)


class CurrentSet:
    """What reads are answered from; never older than what this process has heard of.

    While PostgreSQL is away the set comes from Redis for as long as it is kept
    there, then reads fail.

    Args:
        store: PostgreSQL.
        cache: Redis, if there is one.
        known: says whether the set in memory is the last one.
    """

    def __init__(self, store: ProviderStore, cache: SetCache | None, known: KnownRevision) -> None:
        self._store = store
        self._cache = cache
        self._known = known
        self._kept: ProviderSet | None = None
        self._lock = asyncio.Lock()
        self._failure: DependencyUnavailable | None = None
        self._failure_time = 0.0
        self._memory = READS.labels("memory")
        self._redis = READS.labels("redis")
        self._database = READS.labels("database")

    async def get(self) -> ProviderSet:
        """Returns the set.

        Raises:
            DependencyUnavailable: PostgreSQL is away and Redis has none.
        """
        kept = self._from_memory()
        if kept is not None:
            return kept
        started = time.monotonic()
        async with self._lock:
            if self._failure and self._failure_time > started:
                # Somebody asked while we waited for our turn; asking again would only add the waits.
                raise self._failure
            kept = self._from_memory() or await self._from_redis() or await self._from_database()
            self._kept = kept
        return kept

    def _from_memory(self) -> ProviderSet | None:
        if self._kept is None or not self._known.is_certain or self._kept.revision != self._known.value:
            return None
        self._memory.inc()
        return self._kept

    async def _from_redis(self) -> ProviderSet | None:
        message = await self._cache.get() if self._cache else None
        if message is None or message.revision < self._known.value:
            return None
        self._known.note(message.revision)
        self._redis.inc()
        return ProviderSet(message)

    async def _from_database(self) -> ProviderSet:
        try:
            message = await self._store.changes(None)
        except DependencyUnavailable as error:
            self._failure, self._failure_time = error, time.monotonic()
            raise
        shown = [without_secrets(provider) for provider in message.providers]
        del message.providers[:]
        message.providers.extend(shown)
        self._known.note(message.revision)
        if self._cache:
            await self._cache.put(message)
        self._database.inc()
        return ProviderSet(message)
