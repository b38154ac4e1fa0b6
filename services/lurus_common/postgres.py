"""The PostgreSQL pool of a service, and the one place that knows what "PostgreSQL is away" looks like."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeAlias

import asyncpg
from prometheus_client import Counter

from lurus_common.errors import DependencyUnavailable, InvalidRequest
from lurus_common.serving import patiently

log = logging.getLogger(__name__)

DEPENDENCY = "postgresql"
MAX_CONNECTIONS = 8
CONNECT_SECONDS = 2.0
ACQUIRE_SECONDS = 2.0
# The server gives up first, so that the connection stays usable.
STATEMENT_MILLISECONDS = 3_000
LOCK_MILLISECONDS = 2_000
IDLE_IN_TRANSACTION_MILLISECONDS = 10_000
COMMAND_SECONDS = 3.5
# Above what the limits before add up to: the net below them, for a driver that lost track.
BLOCK_SECONDS = 12.0
CLOSE_SECONDS = 3.0

FAILURES = Counter("lurus_postgres_failures", "Calls that PostgreSQL did not answer.", ["kind"])

Connection: TypeAlias = Any  # a pooled asyncpg connection; the library has no types

_CLOSED = re.compile("clos|released back")

# The server is not there, not ready, or has ended this connection.
_AWAY = (
    OSError,  # refused, reset, and every timeout
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InternalClientError,  # the driver lost track of a connection that was cut or timed out
)
# While a server is being set up, its database appears a moment after it answers.
_NOT_UP_YET = (*_AWAY, asyncpg.InvalidCatalogNameError)
# The server is there and cannot do this now; the same call may succeed later.
_UNABLE = (
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


async def open_pool(url: str, *, schema: str, max_size: int = MAX_CONNECTIONS) -> asyncpg.Pool:
    """Returns a pool whose connections look into `schema`, once PostgreSQL answers.

    A connection that the server ended is replaced at its next use, for ever.

    Args:
        url: `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.
        schema: the service's own schema, which need not exist yet.
        max_size: connections at most.

    Raises:
        StoreUnreachable: if it does not answer for a minute.
    """
    settings = {
        "application_name": f"lurus-{schema}",
        "search_path": schema,
        "statement_timeout": str(STATEMENT_MILLISECONDS),
        "lock_timeout": str(LOCK_MILLISECONDS),
        "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_MILLISECONDS),
        "timezone": "UTC",
    }

    # Without a floor: the pool would try to restore it with a traceback a second.
    pool = await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=max_size,
        timeout=CONNECT_SECONDS,
        command_timeout=COMMAND_SECONDS,
        server_settings=settings,
    )
    try:
        await patiently("PostgreSQL", lambda: pool.fetchval("SELECT 1"), _NOT_UP_YET)
    except BaseException:
        pool.terminate()
        raise
    return pool


async def close_pool(pool: asyncpg.Pool) -> None:
    """Closes a pool; connections that are still in use are cut after `CLOSE_SECONDS`."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await pool.close()
    except (TimeoutError, *_AWAY):
        pool.terminate()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turns what the driver raises when PostgreSQL is away, or too slow, into DependencyUnavailable.

    A text that PostgreSQL cannot hold is the caller's fault. Other errors in data or
    SQL pass as they are.
    """
    try:
        yield
    except asyncpg.CharacterNotInRepertoireError as error:
        raise InvalidRequest("a text contains a NUL character") from error
    except (*_AWAY, *_UNABLE) as error:
        raise _unavailable(error) from error
    except asyncpg.InterfaceError as error:
        # The driver's words for "closed under us"; its other uses are our mistakes.
        if isinstance(error, ValueError) or not _CLOSED.search(str(error)):
            raise
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> DependencyUnavailable:
    kind = "slow" if isinstance(error, (TimeoutError, *_UNABLE)) else "away"
    FAILURES.labels(kind).inc()
    log.warning("PostgreSQL is %s: %s: %s", kind, type(error).__name__, error)
    return DependencyUnavailable("PostgreSQL did not answer; try again", dependency=DEPENDENCY)


@asynccontextmanager
async def connection(
    pool: asyncpg.Pool, *, seconds: float | None = BLOCK_SECONDS
) -> AsyncIterator[Connection]:
    """Lends a connection without a transaction: each statement is one of its own.

    Args:
        pool: of `open_pool`.
        seconds: for the whole block, whatever the driver waits for; None for a listener.

    Raises:
        DependencyUnavailable: if PostgreSQL is away, or fails inside the block.
    """
    with translated_errors():
        async with asyncio.timeout(seconds), pool.acquire(timeout=ACQUIRE_SECONDS) as lent:
            try:
                yield lent
            except (TimeoutError, asyncio.CancelledError):
                # The answer may still come: nobody can use this connection again.
                lent.terminate()
                raise


@asynccontextmanager
async def transaction(pool: asyncpg.Pool, *, read_only: bool = False) -> AsyncIterator[Connection]:
    """Lends a connection in a transaction, which commits when the block ends and rolls back if it raises.

    A read-only one sees one moment of the database, however many statements it has.

    Raises:
        DependencyUnavailable: if PostgreSQL is away. If that was during the
            commit, it may have happened all the same: writes must be idempotent.
    """
    isolation = "repeatable_read" if read_only else "read_committed"
    async with connection(pool) as lent, lent.transaction(isolation=isolation, readonly=read_only):
        yield lent


@asynccontextmanager
async def listening(connection: Connection, channel: str, heard: Callable[..., None]) -> AsyncIterator[None]:
    """Calls `heard` for each notification on `channel`, as long as the block runs."""
    await connection.add_listener(channel, heard)
    try:
        yield
    finally:
        # A connection that is gone has no listener; its word for that must not take the
        # place of what ended the block, or a cancellation would be lost.
        with suppress(asyncpg.InterfaceError):
            await connection.remove_listener(channel, heard)


async def problem(pool: asyncpg.Pool) -> str:
    """What is wrong with PostgreSQL, for readiness; empty if it answers."""
    try:
        async with connection(pool) as lent:
            await lent.fetchval("SELECT 1")
    except DependencyUnavailable as error:
        return error.message
    return ""
