"""One routing worker: what it knows, what it owes, how it is."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import ClientSession

from lurus_common.settings import Settings
from lurus_common.status import Dependency, Status, keep_asking
from lurus_routing.follow import key_lookup, lease_request
from lurus_routing.keys import KeyTable
from lurus_routing.known import KnownKeys, KnownProviders
from lurus_routing.leases import Leases
from lurus_routing.outbox import Outbox
from lurus_routing.outbox_relay import OutboxRelay
from lurus_routing.rate_limiter import RateLimiter
from lurus_routing.relay import Relay
from lurus_routing.shared import Shared

if TYPE_CHECKING:  # the async stubs exist for the type checker only
    from lurus.billing.v1.billing_pb2_grpc import BillingServiceAsyncStub

FLUSH_SECONDS = 3.0
LOOK_SECONDS = 1.0


class Worker:
    """The parts of a worker, put together: `relay`, key `table`, `keys`, `providers`, `publisher`, `status`.

    Args:
        settings: of the process.
        session: for calls to providers.
        outbox: open.
        billing: who lends, and knows keys.
        limiter: keeps the rate limits.
        shared: what it tells the other workers; None if there are none to tell.
    """

    def __init__(
        self,
        settings: Settings,
        session: ClientSession,
        outbox: Outbox,
        billing: "BillingServiceAsyncStub",
        limiter: RateLimiter,
        shared: Shared | None,
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        self.status = Status(settings.worker_id)
        lookup = key_lookup(billing, self._billing_answered)
        self.table = KeyTable(settings.key_pepper, lookup, settings.offline_key_seconds, self._key_found)
        self._leases = Leases(
            lease_request(billing, self._billing_answered),
            settings.worker_id,
            settings.lease_nano_usd,
            settings.offline_lease_seconds,
            outbox,
        )
        self.relay = Relay(settings, session, self.table, self._leases, outbox, limiter, shared)
        self.publisher = OutboxRelay(outbox, settings.nats_url, settings.worker_id)
        data_dir, pepper = Path(settings.data_dir), settings.key_pepper.encode()
        sealing_key = settings.credential_key_bytes()
        self.providers = KnownProviders(self.relay, data_dir, sealing_key, self.status)
        self.keys = KnownKeys(self.table, data_dir, pepper, self.status)
        self.status.add("nats", self._look_at_bus)
        self.status.add("outbox", self._look_at_outbox)
        self._shared = shared
        self._redis = self.status.add("redis") if shared is not None else None

    async def restore(self) -> None:
        """Takes what is on disk, before anybody is asked."""
        self.providers.restore()
        self.keys.restore()
        if self._settings.predecessor_id:
            # First: it has spent since of what it may have had of this worker.
            taken = await self._outbox.take_leases(self._settings.predecessor_id)
            self._leases.restore(taken, are_anothers=True)
        self._leases.restore(self._outbox.kept_leases)

    async def ask_redis(self) -> None:
        """Notes whether Redis answers, if there is one, until cancelled."""
        if self._shared is not None and self._redis is not None:
            await keep_asking(self._redis, self._shared.ping)

    async def look_after_orphans(self) -> None:
        """Takes over what workers leave that end while this one runs, until cancelled."""
        await self._outbox.look_after_orphans(self._leases.restore)

    async def watch_itself(self) -> None:
        """Keeps ages and warnings up to date until cancelled."""
        while True:
            self.keys.note_silence()
            limit = self._settings.offline_snapshot_seconds
            self.relay.is_catalog_too_old = bool(limit) and self.providers.age_seconds() > limit
            await self._outbox.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def stop(self) -> None:
        """Writes, sends and hands back what can be, while the loops still run."""
        await self.relay.stop()
        await self._leases.hand_back()
        await self.publisher.flush(FLUSH_SECONDS)
        await asyncio.gather(self.keys.keeper.flush(), self.providers.keeper.flush())

    async def readiness(self) -> dict[str, str]:
        """What is missing to serve; a store that is away is not."""
        problems = {} if self.relay.catalog else {"providers": "not known yet"}
        return {**problems, **({"outbox": self._outbox.problem} if self._outbox.problem else {})}

    def _billing_answered(self) -> None:
        self.keys.answered()

    def _key_found(self) -> None:
        self.keys.found()

    def _look_at_bus(self, row: Dependency) -> None:
        row.backlog_count = self._outbox.unsent_count
        row.lag_seconds = self._outbox.oldest_seconds if row.backlog_count else None
        if self.publisher.problem:
            row.fail(self.publisher.problem)
        elif self.publisher.is_connected:
            row.succeed()
        else:
            row.fail("no connection")

    def _look_at_outbox(self, row: Dependency) -> None:
        row.backlog_count = self._outbox.unsent_count
        row.lag_seconds = self._outbox.oldest_seconds if row.backlog_count else None
        row.warning = self._outbox.warning
        if self._outbox.problem:
            row.fail(self._outbox.problem)
        else:
            row.succeed()
