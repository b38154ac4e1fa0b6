"""Streams of the key table: whole once, then every change.

PostgreSQL wakes the streams by NOTIFY; a slow poll makes up for a lost
connection. What they send comes from the table, in the order of revisions, so
a wake-up too many or too few loses nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator

from lurus.billing.v1 import billing_pb2 as pb
from lurus_billing.key_store import START, KeyStore
from lurus_common.errors import Overloaded

POLL_SECONDS = 2.0
HEARTBEAT_SECONDS = 10.0


class KeyWatch:
    """Wakes all streams of one process.

    Args:
        keys: where the changes come from.
    """

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self._changed = asyncio.Event()
        self._is_closing = False

    def heard(self, _: str | None) -> None:
        """Takes a notification that the table has changed, or may have."""
        self._wake()

    def close(self) -> None:
        """Ends all streams."""
        self._is_closing = True
        self._wake()

    async def responses(self) -> AsyncIterator[pb.WatchKeysResponse]:
        """Yields the key table in pages, the first of them as a snapshot, then changes as they come.

        What follows the last page, or nothing for a while, says that all has been told.

        Raises:
            Overloaded: when the service stops.
            DependencyUnavailable: if PostgreSQL is away.
        """
        position, is_snapshot, is_told, told = START, True, False, time.monotonic()
        while not self._is_closing:
            # Taken before the read, so that a change during it ends the wait.
            changed = self._changed
            grants, position = await self._keys.grants_after(position)
            is_due = not is_told or time.monotonic() - told > HEARTBEAT_SECONDS
            if grants or is_due:
                is_told, told = not grants, time.monotonic()
                yield pb.WatchKeysResponse(
                    revision=position[0], is_snapshot=is_snapshot, grants=grants, is_complete=is_told
                )
                is_snapshot = False
            if not grants:
                await _wait(changed)
        raise Overloaded("the service is stopping; watch another one")

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


async def _wait(changed: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(POLL_SECONDS):
            await changed.wait()
    except TimeoutError:
        pass
