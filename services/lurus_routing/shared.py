"""What the workers of one installation share through Redis, which may vanish at any time.

A read waits a moment at most, and not at all for a while after one that failed.
Writes are queued and sent by a task of their own, many at a time; while Redis
is away the newest wait for it. Names are digests: what is shared tells a reader
of Redis neither accounts nor sessions, and two installations in one Redis do
not meet.
"""

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import Counter
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

log = logging.getLogger(__name__)

READ_SECONDS = 0.2
WRITE_SECONDS = 1.0
# After a failure Redis is left alone for this long.
SKIP_SECONDS = 5.0
CLOSE_SECONDS = 1.0
MAX_CONNECTIONS = 4
MAX_WAITING_WRITES = 10_000
WRITES_AT_ONCE = 256
# Entries of the stream that workers follow; the oldest are forgotten.
MAX_NEWS = 50_000
NEWS_AT_ONCE = 1_000
NEWS_WAIT_SECONDS = 5.0
# No entry is of interest for longer; the stream vanishes so long after its last one.
NEWS_SECONDS = 3_600

FAILURES = Counter("lurus_shared_failures", "Calls that the shared Redis did not answer, or refused.")
LOST = Counter("lurus_shared_lost_writes", "Writes to the shared Redis that were dropped.")

# Fields of an entry.
News = dict[bytes, bytes]


class Shared:
    """Reads and writes of one worker.

    Args:
        redis: with short timeouts, for reads and writes.
        follower: with a longer one, for news.
        pepper: of the installation.
    """

    def __init__(self, redis: Redis, follower: Redis, pepper: str) -> None:
        self._redis = redis
        self._follower = follower
        self._key = hashlib.blake2b(f"shared by routing: {pepper}".encode(), digest_size=32).digest()
        self._stream = f"lurus:routing:{self.digest('news').hex()}:news"
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._has_writes = asyncio.Event()
        self._skip_until = float("-inf")

    def digest(self, *parts: str) -> bytes:
        """Returns what stands for these words in Redis."""
        text = "\0".join(parts).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=16, key=self._key).digest()

    def name(self, kind: str, *parts: str) -> str:
        """Returns a name in Redis."""
        return f"lurus:routing:{kind}:{self.digest(kind, *parts).hex()}"

    async def ping(self) -> None:
        """Returns if Redis answers; raises whatever the client does if not."""
        await self._redis.ping()

    async def read(self, names: Sequence[str]) -> list[bytes | None] | None:
        """Returns the values of names; None if Redis does not answer in time."""
        if time.monotonic() < self._skip_until:
            return None
        try:
            async with asyncio.timeout(READ_SECONDS):
                found: Any = await self._redis.mget(names)
                return list(found)
        except Exception as error:
            self._note_failure(error)
            return None

    def write(self, name: str, value: bytes, seconds: int, *, is_first_only: bool = False) -> None:
        """Stores a value soon, for so long.

        Args:
            is_first_only: what is stored already stays.
        """
        self._queue("SET", name, value, "EX", seconds, *(["NX"] if is_first_only else []))

    def tell(self, news: News) -> None:
        """Tells all workers, this one included, in one order for all."""
        fields = [item for pair in news.items() for item in pair]
        self._queue("XADD", self._stream, "MAXLEN", "~", MAX_NEWS, "*", *fields)
        self._queue("EXPIRE", self._stream, NEWS_SECONDS)

    def _queue(self, *command: Any) -> None:
        self._waiting.append(command)
        self._has_writes.set()
        while len(self._waiting) > MAX_WAITING_WRITES:
            self._waiting.popleft()
            LOST.inc()

    async def send(self) -> None:
        """Sends what is queued, until cancelled."""
        while True:
            await self._has_writes.wait()
            if (seconds := self._skip_until - time.monotonic()) > 0:
                await asyncio.sleep(seconds)
            await self._send_some()

    async def flush(self) -> None:
        """Sends what is queued now, as far as Redis takes it within a moment."""
        until = time.monotonic() + CLOSE_SECONDS
        while self._waiting and until > time.monotonic() >= self._skip_until:
            await self._send_some()

    async def _send_some(self) -> None:
        self._has_writes.clear()
        commands = [self._waiting.popleft() for _ in range(min(len(self._waiting), WRITES_AT_ONCE))]
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                pipeline = self._redis.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                await pipeline.execute()
        except ResponseError as error:
            LOST.inc()
            log.warning("Redis refused what workers share: %s", type(error).__name__)
        except Exception as error:
            self._note_failure(error)
            # All of them are such that twice is as good as once.
            self._waiting.extendleft(reversed(commands))
        if self._waiting:
            self._has_writes.set()

    async def follow(self, take: Callable[[float, News], None]) -> None:
        """Gives `take` the age in seconds and the fields of each news, those of the last hour first."""
        last: bytes = b"0"
        while True:
            try:
                async with asyncio.timeout(NEWS_WAIT_SECONDS + WRITE_SECONDS):
                    found: Any = await self._follower.xread(
                        {self._stream: last}, count=NEWS_AT_ONCE, block=int(NEWS_WAIT_SECONDS * 1000)
                    )
            except Exception as error:
                FAILURES.inc()
                log.info("news of other workers are not to be had: %s", type(error).__name__)
                await asyncio.sleep(SKIP_SECONDS)
                continue
            now = time.time()
            for _, entries in found:
                for entry_id, fields in entries:
                    last = entry_id
                    take(max(0.0, now - int(entry_id.partition(b"-")[0]) / 1000), fields)

    def _note_failure(self, error: Exception) -> None:
        # Whatever it is: a peer that is not Redis makes the client fail in any way.
        self._skip_until = time.monotonic() + SKIP_SECONDS
        FAILURES.inc()
        log.warning("the shared Redis is left alone for %.0f s: %s", SKIP_SECONDS, type(error).__name__)


@asynccontextmanager
async def open_shared(url: str, pepper: str) -> AsyncIterator[Shared]:
    """Gives what a worker shares; nothing is connected before it is used."""
    redis = _client(url, READ_SECONDS + WRITE_SECONDS, MAX_CONNECTIONS)
    follower = _client(url, NEWS_WAIT_SECONDS + WRITE_SECONDS, 1)
    shared = Shared(redis, follower, pepper)
    try:
        yield shared
    finally:
        for end in (shared.flush(), redis.aclose(), follower.aclose()):
            await _end(end)


def _client(url: str, seconds: float, maximum: int) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        timeout=READ_SECONDS,
        socket_timeout=seconds,
        socket_connect_timeout=WRITE_SECONDS,
        retry=Retry(NoBackoff(), 0),
        max_connections=maximum,
        protocol=2,
    )
    return Redis.from_pool(pool)


async def _end(end: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await end
    except Exception as error:
        log.warning("leaving the shared Redis: %s", type(error).__name__)
