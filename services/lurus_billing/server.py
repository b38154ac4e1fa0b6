"""Builds and serves the billing service."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import asyncpg

from lurus.billing.v1.billing_pb2 import DESCRIPTOR
from lurus.billing.v1.billing_pb2_grpc import add_BillingServiceServicer_to_server
from lurus.log.v1.log_pb2_grpc import LogServiceStub
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus.routing.v1.routing_pb2_grpc import RoutingServiceStub
from lurus_billing import budget_watch, dead_letters, key_store
from lurus_billing.account_store import AccountStore
from lurus_billing.books import Books
from lurus_billing.budget_store import BudgetStore
from lurus_billing.budget_watch import BudgetWatch
from lurus_billing.consumer import UsageBus
from lurus_billing.dead_letters import DeadLetterStore
from lurus_billing.key_store import KeyStore
from lurus_billing.key_watch import KeyWatch
from lurus_billing.lago import LagoClient, LagoExport
from lurus_billing.listener import Listener
from lurus_billing.price_lookup import PriceLookup
from lurus_billing.receipt_store import ReceiptStore
from lurus_billing.reconciler import Reconciler
from lurus_billing.repricing_store import RepricingStore
from lurus_billing.reservation_store import ReservationStore
from lurus_billing.servicer import BillingServicer
from lurus_billing.store import LedgerStore
from lurus_billing.sweeper import sweep_for_ever
from lurus_common import postgres
from lurus_common.consumer import ParkedEvent
from lurus_common.migrations import migrate
from lurus_common.rpc import open_channel
from lurus_common.serving import beside, grpc_service
from lurus_common.settings import Settings
from lurus_common.status import Status, keep_asking

log = logging.getLogger(__name__)

SCHEMA = "billing"
SERVICE = DESCRIPTOR.services_by_name["BillingService"].full_name
MIGRATIONS = Path(__file__).parent / "migrations"
# A batch of events at hand is given this long to be committed.
FINISH_SECONDS = 10.0


@asynccontextmanager
async def billing_server(settings: Settings) -> AsyncIterator[int]:
    """Serves BillingService and consumes usage; yields the gRPC port.

    Waits for PostgreSQL at start, not for the bus: keys are served without it.
    It stops in order: streams end, gRPC drains, the batch at hand is
    committed and acknowledged, connections close.

    Raises:
        SettingsError: if one of the settings that it needs is missing.
        StoreUnreachable: if PostgreSQL does not answer for a minute.
    """
    settings.require("database_url", "nats_url", "admin_token", "key_pepper")
    async with (
        _database(settings) as pool,
        open_channel(settings.provider_address, settings.admin_token) as provider_channel,
        open_channel(settings.log_address, settings.admin_token) as log_channel,
        open_channel(settings.routing_address, settings.admin_token) as routing_channel,
        aiohttp.ClientSession() as session,
    ):
        keys, ledger_store = KeyStore(pool), LedgerStore(pool)
        budgets = BudgetStore(pool, settings.lease_nano_usd, settings.lease_seconds)
        key_watch, budget_watcher = KeyWatch(keys), BudgetWatch(budgets)
        usage = UsageBus(settings.nats_url, ledger_store, settings.ack_wait_seconds)
        reservations, letters = ReservationStore(pool), DeadLetterStore(pool)
        lago = _lago(settings, session)
        books = Books(pool, LogServiceStub(log_channel), RoutingServiceStub(routing_channel))
        reconciler = Reconciler(books, usage)
        status = Status("billing")
        postgresql = status.add("postgresql")
        status.add("nats", usage.describe)
        listener = Listener(
            pool, {key_store.CHANNEL: key_watch.heard, budget_watch.CHANNEL: budget_watcher.heard}
        )
        servicer = BillingServicer(
            accounts=AccountStore(pool),
            keys=keys,
            ledger_store=ledger_store,
            budgets=budgets,
            reservations=reservations,
            receipts=ReceiptStore(pool),
            repricings=RepricingStore(pool),
            prices=PriceLookup(ProviderServiceStub(provider_channel)),
            letters=letters,
            key_watch=key_watch,
            budget_watch=budget_watcher,
            usage=usage,
            reconciler=reconciler,
            pepper=settings.key_pepper,
            lago=lago,
        )
        async with (
            _consuming(usage),
            _exporting(settings, pool, lago, status),
            beside(listener.run(), "changes"),
            beside(keep_asking(postgresql, lambda: pool.fetchval("SELECT 1")), "status"),
            beside(sweep_for_ever(reservations, letters), "sweeper"),
            beside(reconciler.watch(), "reconciliation"),
            grpc_service(
                settings,
                settings.billing_port,
                [SERVICE],
                lambda server: add_BillingServiceServicer_to_server(servicer, server),
                usage.problems,
                status=status,
            ) as port,
        ):
            with contextlib.closing(key_watch), contextlib.closing(budget_watcher):
                yield port


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[asyncpg.Pool]:
    pool = await postgres.open_pool(
        settings.database_url, schema=SCHEMA, max_size=postgres.MAX_CONNECTIONS + 1
    )
    try:
        await migrate(pool, SCHEMA, MIGRATIONS)
        yield pool
    finally:
        await postgres.close_pool(pool)


def _lago(settings: Settings, session: aiohttp.ClientSession) -> LagoClient | None:
    """Returns a client of Lago, None if none is set."""
    if not settings.lago_url:
        return None
    settings.require("lago_api_key")
    return LagoClient(session, settings.lago_url, settings.lago_api_key, settings.lago_metric_code)


@asynccontextmanager
async def _exporting(
    settings: Settings, pool: asyncpg.Pool, lago: LagoClient | None, status: Status
) -> AsyncIterator[None]:
    """Tells Lago of all usage, if there is one."""
    if lago is None:
        yield
        return

    async def park(parked: ParkedEvent) -> None:
        await dead_letters.park_export(pool, parked)

    export = LagoExport(settings.nats_url, lago, park, settings.ack_wait_seconds)
    status.add("lago", export.describe)
    async with _consuming(export):
        yield


@asynccontextmanager
async def _consuming(usage: UsageBus | LagoExport) -> AsyncIterator[None]:
    async with beside(usage.run(), "usage consumer") as task:
        try:
            yield
        finally:
            if usage.stop():
                await asyncio.wait([task], timeout=FINISH_SECONDS)
