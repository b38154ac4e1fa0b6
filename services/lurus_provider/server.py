"""Builds and serves the provider service."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg

from lurus.provider.v1.provider_pb2 import DESCRIPTOR
from lurus.provider.v1.provider_pb2_grpc import add_ProviderServiceServicer_to_server
from lurus_common.migrations import migrate
from lurus_common.postgres import close_pool, open_pool
from lurus_common.serving import beside, grpc_service
from lurus_common.settings import Settings
from lurus_common.status import Status, keep_asking
from lurus_provider.cache import open_cache
from lurus_provider.catalogue import CATALOGUE, read_catalogue
from lurus_provider.current import CurrentSet
from lurus_provider.feed import Feed, KnownRevision
from lurus_provider.probe import open_session
from lurus_provider.servicer import ProviderServicer
from lurus_provider.store import SCHEMA, ProviderStore

SERVICE = DESCRIPTOR.services_by_name["ProviderService"].full_name
MIGRATIONS = Path(__file__).parent / "migrations"


@asynccontextmanager
async def provider_server(settings: Settings) -> AsyncIterator[int]:
    """Serves ProviderService; yields the gRPC port.

    Waits for PostgreSQL at start; Redis may be missing at any time. Streams
    end before the server stops, so that nobody waits for them.

    Raises:
        SettingsError: if one of the settings that it needs is missing.
        StoreUnreachable: if PostgreSQL does not answer for a minute.
        SchemaTooNew: if the database was migrated by a newer release.
    """
    settings.require("database_url", "admin_token", "credential_key")
    key, http_hosts = settings.credential_key_bytes(), settings.http_hosts()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(_database(settings.database_url))
        known = KnownRevision()
        store = ProviderStore(pool, known.note)
        await store.load_catalogue(*read_catalogue(CATALOGUE.read_bytes()))
        feed = Feed(pool, store, known)
        await stack.enter_async_context(beside(feed.run(), "feed"))
        cache = None
        if settings.redis_url:
            opened = open_cache(settings.redis_url, key, await store.installation_id())
            cache = await stack.enter_async_context(opened)
        session = await stack.enter_async_context(open_session(http_hosts))
        status = Status("provider")
        asking = keep_asking(status.add("postgresql"), lambda: pool.fetchval("SELECT 1"))
        await stack.enter_async_context(beside(asking, "postgresql"))
        if cache is not None:
            await stack.enter_async_context(beside(keep_asking(status.add("redis"), cache.ping), "redis"))
        current = CurrentSet(store, cache, known)
        servicer = ProviderServicer(store, current, feed, session, key, http_hosts)

        async def readiness() -> dict[str, str]:
            return {} if known.is_certain else {"postgresql": "does not answer"}

        port = await stack.enter_async_context(
            grpc_service(
                settings,
                settings.provider_port,
                [SERVICE],
                lambda server: add_ProviderServiceServicer_to_server(servicer, server),
                readiness,
                for_inference=True,  # the whole set is one message of a watch
                status=status,
            )
        )
        stack.callback(known.close)
        yield port


@asynccontextmanager
async def _database(url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_pool(url, schema=SCHEMA)
    try:
        await migrate(pool, SCHEMA, MIGRATIONS)
        yield pool
    finally:
        await close_pool(pool)
