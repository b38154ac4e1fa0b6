"""A consumer that dies by kill -9 after its first commit, before the ack. Run by test_consumer.py."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing.consumer import UsageBus
from lurus_billing.store import LedgerStore, Settled
from lurus_common import postgres


class DyingStore(LedgerStore):
    async def settle(self, events: Sequence[UsageEvent]) -> Settled:
        await super().settle(events)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


async def main(database_url: str, nats_url: str) -> None:
    pool = await postgres.open_pool(database_url, schema="billing")
    await UsageBus(nats_url, DyingStore(pool)).run()


asyncio.run(main(*sys.argv[1:]))
