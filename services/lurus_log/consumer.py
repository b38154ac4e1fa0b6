"""The service's side of the bus: stores usage, and feeds the live tail."""

import asyncio

from nats.aio.client import Client

from lurus_common import bus
from lurus_common.consumer import UsageConsumer
from lurus_common.status import Dependency
from lurus_log.rows import EventUnfit
from lurus_log.store import LogStore
from lurus_log.watch import UsageTail

DURABLE = "log"
# An insert costs the same for one row as for hundreds, and leaves a part to merge.
BATCH_EVENTS = 500
LINGER_SECONDS = 0.3


class LogConsumer:
    """Connects when the bus is there, at start or later, and stores what comes.

    Args:
        url: of the bus.
        store: keeps the events.
        tail: shows them to watchers.
        ack_wait_seconds: after so long the bus delivers again what is not acknowledged.
    """

    def __init__(
        self, url: str, store: LogStore, tail: UsageTail, ack_wait_seconds: float = bus.ACK_WAIT_SECONDS
    ) -> None:
        self._url = url
        self._ack_wait_seconds = ack_wait_seconds
        self._store = store
        self._tail = tail
        self._consumer: UsageConsumer | None = None
        self._client: Client | None = None

    def describe(self, row: Dependency) -> None:
        """Brings up to date whether the bus answers, and how far the request log is behind it."""
        bus.describe(row, self._client)
        if self._consumer is not None:
            self._consumer.describe(row)

    @property
    def problem(self) -> str:
        """What an operator has to mend on the bus; empty if nothing."""
        return self._consumer.problem if self._consumer else ""

    async def run(self) -> None:
        """Consumes until `stop`; the batch at hand is stored and acknowledged first."""
        client = self._client = await bus.connect(self._url, DURABLE)
        try:
            jetstream = client.jetstream()
            self._consumer = UsageConsumer(
                jetstream,
                DURABLE,
                self._store.insert,
                self._store.park,
                (EventUnfit,),
                batch_events=BATCH_EVENTS,
                linger_seconds=LINGER_SECONDS,
                ack_wait_seconds=self._ack_wait_seconds,
            )
            async with asyncio.TaskGroup() as group:
                following = group.create_task(self._tail.run(jetstream))
                await self._consumer.run()
                following.cancel()
        finally:
            await client.close()

    def stop(self) -> bool:
        """Lets `run` return; False if it is still looking for the bus and has to be cancelled."""
        if self._consumer is None:
            return False
        self._consumer.stop()
        return True
