"""A log service that is killed after its first insert, before the ack, with the usual settings."""

import asyncio
import os
import signal
from collections.abc import Sequence

from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common.settings import read_settings
from lurus_log.server import log_server
from lurus_log.store import LogStore

_insert = LogStore.insert


async def _insert_and_die(store: LogStore, events: Sequence[UsageEvent]) -> None:
    await _insert(store, events)
    os.kill(os.getpid(), signal.SIGKILL)


async def _serve() -> None:
    async with log_server(read_settings(os.environ)):
        await asyncio.Event().wait()


if __name__ == "__main__":
    LogStore.insert = _insert_and_die  # type: ignore[method-assign]
    asyncio.run(_serve())
