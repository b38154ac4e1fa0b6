"""Clients that leave."""

import asyncio
from types import TracebackType

from lurus_edge.connection import Connection


class ClientGone(Exception):
    """The client left; nobody is there to be answered."""


class Departure:
    """Ends an `async with` block, where it waits, when its client leaves.

    Cancelling the waiting task is what ends a call on either kind of channel:
    a handler in process runs in that very task.

    Raises:
        ClientGone: at the end of the block, if it was ended.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> "Departure":
        await self._timeout.__aenter__()
        self._connection.on_lost = self.end
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.forget()
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise ClientGone from None

    def end(self) -> None:
        """Ends the block, unless it is over or has been told to end already."""
        if self._connection.on_lost is not None:
            self._connection.on_lost = None
            self._timeout.reschedule(0)

    def forget(self) -> None:
        """Lets the block go on to its end whoever leaves."""
        self._connection.on_lost = None
