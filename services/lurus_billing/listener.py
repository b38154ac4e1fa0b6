"""Hears PostgreSQL's notifications, on one connection for as long as the process runs."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

import asyncpg

from lurus_common import postgres
from lurus_common.errors import LurusError

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
RETRY_SECONDS = 0.5

# Called with what a notification says; with None if some may have been missed.
Heard = Callable[[str | None], None]


class Listener:
    """Tells of notifications by channel.

    Args:
        pool: one of its connections listens.
        heard: by channel. What is heard is a hint to look: there may be one too many or too few.
    """

    def __init__(self, pool: asyncpg.Pool, heard: Mapping[str, Heard]) -> None:
        self._pool = pool
        self._heard = heard

    async def run(self) -> None:
        """Listens until cancelled; a connection that fails is replaced."""
        while True:
            try:
                await self._listen()
            except LurusError as error:
                log.warning("changes are polled: %s", error.message)
            await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self) -> None:
        async with postgres.connection(self._pool, seconds=None) as connection, AsyncExitStack() as stack:
            for channel, heard in self._heard.items():
                await stack.enter_async_context(postgres.listening(connection, channel, _pass_on(heard)))
            for heard in self._heard.values():
                heard(None)
            while True:
                await asyncio.sleep(POLL_SECONDS)
                await connection.execute("SELECT 1")


def _pass_on(heard: Heard) -> Callable[..., None]:
    """Returns what the driver calls: connection, process, channel, payload."""

    def pass_on(_connection: object, _process: int, _channel: str, payload: str) -> None:
        heard(payload)

    return pass_on
