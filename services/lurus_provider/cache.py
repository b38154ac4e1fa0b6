"""The whole set in Redis, which may vanish at any time or hold anything: a miss, never an error.

What is kept is signed, so that garbage and another installation's set read
as nothing. It holds no secret, not even sealed.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from prometheus_client import Counter
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from lurus.provider.v1.provider_pb2 import WatchProvidersResponse

log = logging.getLogger(__name__)

# Longer than any answer takes on a healthy machine, shorter than anybody notices.
TIMEOUT_SECONDS = 0.25
# After a failure Redis is left alone for this long.
SKIP_SECONDS = 5.0
# How old a set may be if PostgreSQL is away.
KEEP_SECONDS = 60
MAX_SET_BYTES = 8 * 1024 * 1024
MAX_CONNECTIONS = 4
CLOSE_SECONDS = 1.0
_SIGNATURE_BYTES = hashlib.sha256().digest_size

FAILURES = Counter("lurus_provider_cache_failures", "Calls that Redis did not answer, or with garbage.")

# Stores a set unless a newer one is there. Redis 6.2 is enough.
_PUT = """
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then redis.call('DEL', KEYS[1]) end
local kept = tonumber(redis.call('HGET', KEYS[1], 'revision') or '')
if kept and kept > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'revision', ARGV[1], 'set', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

Result = TypeVar("Result")


class SetCache:
    """Keeps the newest set of one installation.

    Args:
        redis: a client with short timeouts, see `open_cache`.
        key: 32 bytes, from the settings.
        installation_id: of the database whose set it is.
    """

    def __init__(self, redis: Redis, key: bytes, installation_id: str) -> None:
        self._redis = redis
        self._key = hmac.digest(key, f"provider set of {installation_id}".encode(), hashlib.sha256)
        self._name = f"lurus:provider:set:{installation_id}"
        self._skip_until = float("-inf")

    async def ping(self) -> None:
        """Returns if Redis answers; raises whatever the client does if not."""
        await self._redis.ping()

    async def get(self) -> WatchProvidersResponse | None:
        """Returns the set, or None if there is none to trust."""
        kept = await self._try(lambda: self._redis.hget(self._name, "set"))
        if kept is None:
            return None
        found = self._read(kept)
        if found is None:
            FAILURES.inc()
            log.warning("Redis holds a set that is not ours")
        return found

    async def put(self, message: WatchProvidersResponse) -> None:
        """Keeps a set unless a newer one is kept already."""
        content = message.SerializeToString()
        if len(content) > MAX_SET_BYTES:
            return
        kept = self._sign(content) + content
        lifetime = str(KEEP_SECONDS * 1000)
        await self._try(lambda: self._redis.eval(_PUT, 1, self._name, str(message.revision), kept, lifetime))

    def _read(self, kept: object) -> WatchProvidersResponse | None:
        if not isinstance(kept, bytes):
            return None
        signature, content = kept[:_SIGNATURE_BYTES], kept[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._sign(content)):
            return None
        try:
            return WatchProvidersResponse.FromString(content)
        except DecodeError:
            return None

    def _sign(self, content: bytes) -> bytes:
        return hmac.digest(self._key, content, hashlib.sha256)

    async def _try(self, call: Callable[[], Any]) -> Any:
        if time.monotonic() < self._skip_until:
            return None
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await call()
        except Exception as error:
            # Whatever it is: a peer that is not Redis makes the client fail in any way.
            self._skip_until = time.monotonic() + SKIP_SECONDS
            FAILURES.inc()
            log.warning("Redis is left alone for %.0f s: %s", SKIP_SECONDS, type(error).__name__)
            return None


@asynccontextmanager
async def open_cache(url: str, key: bytes, installation_id: str) -> AsyncIterator[SetCache]:
    """Gives a cache; nothing is connected before it is used."""
    pool = BlockingConnectionPool.from_url(
        url,
        timeout=TIMEOUT_SECONDS,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        max_connections=MAX_CONNECTIONS,
    )
    redis = Redis.from_pool(pool)
    try:
        yield SetCache(redis, key, installation_id)
    finally:
        await _close(redis.aclose)


async def _close(close: Callable[[], Awaitable[None]]) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await close()
    except Exception as error:
        log.warning("closing Redis: %s", type(error).__name__)
