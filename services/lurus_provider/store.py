"""Providers, models and prices in PostgreSQL. One method is one transaction.

Every writer locks the one revision row first and counts it up last, so that
revisions are committed in their order: who has seen one has seen all before it.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from lurus.provider.v1.provider_pb2 import (
    ImportPricesRequest,
    ImportPricesResponse,
    Model,
    Price,
    WatchProvidersResponse,
)
from lurus_common import postgres
from lurus_common.errors import AlreadyExists, FailedPrecondition, NotFound
from lurus_common.postgres import Connection, transaction
from lurus_provider.price_import import CATALOGUE_PREFIX, Importer
from lurus_provider.tables import MODELS, PRICES, PROVIDERS, Resource, Table

SCHEMA = "provider"
CHANNEL = "lurus_provider_revision"
# Who is further behind than this gets the whole set instead of the changes.
KEPT_REVISIONS = 10_000
# The whole set is one message to each watcher, so all of it has a limit.
MAX_PROVIDERS = 1_000
MAX_MODELS = 10_000
MAX_PRICES = 20_000
MAX_SET_BYTES = 32 * 1024 * 1024
_MAXIMA = {"provider": MAX_PROVIDERS, "model": MAX_MODELS, "price": MAX_PRICES, "byte": MAX_SET_BYTES}

_REVISION = "SELECT revision FROM provider.revision"
_DELETIONS = "SELECT kind, id FROM provider.deletion WHERE revision > $1 ORDER BY id"
_SIZES = """
SELECT (SELECT count(*) FROM provider.provider) AS provider,
    (SELECT count(*) FROM provider.model) AS model,
    (SELECT count(*) FROM provider.price) AS price,
    (SELECT coalesce(sum(octet_length(content)), 0) FROM provider.provider) AS byte
"""
_DELETE = {
    "provider": "DELETE FROM provider.provider WHERE provider_id = $1",
    "model": "DELETE FROM provider.model WHERE model_id = $1",
    "price": "DELETE FROM provider.price WHERE price_id = $1",
}
_BURY = """
INSERT INTO provider.deletion (kind, id, revision) VALUES ($1, $2, $3)
ON CONFLICT (kind, id) DO UPDATE SET revision = excluded.revision
"""
# By kind and id: `model:gpt-5`; catalogue items are named the same way.
_UNBURY = "DELETE FROM provider.deletion WHERE kind || ':' || id = ANY($1::text[])"
_NEW_ITEMS = """
INSERT INTO provider.catalogue_item (item_id) SELECT unnest($1::text[])
ON CONFLICT DO NOTHING RETURNING item_id
"""
_MODEL_IDS = "SELECT model_id FROM provider.model"
_OWN_PRICES = "SELECT model FROM provider.price WHERE provider_id = '' AND NOT starts_with(price_id, $1)"


@dataclass(slots=True)
class _Write:
    """A write transaction: its connection, and the revision that it makes if anything changes."""

    connection: Connection
    revision: int
    has_changed: bool = False


class ProviderStore:
    """The durable state of the provider service.

    Inside, a `Provider` carries its secrets sealed; see `credentials`.

    Args:
        pool: of `postgres.open_pool`, migrated.
        on_commit: called with each revision that this process has committed.
    """

    def __init__(self, pool: asyncpg.Pool, on_commit: Callable[[int], None]) -> None:
        self._pool = pool
        self._on_commit = on_commit

    async def revision(self) -> int:
        """Returns the revision of the last change."""
        async with postgres.connection(self._pool) as connection:
            return int(await connection.fetchval(_REVISION))

    async def installation_id(self) -> str:
        """Returns what tells this database from others."""
        async with postgres.connection(self._pool) as connection:
            return str(await connection.fetchval("SELECT installation_id FROM provider.revision"))

    async def changes(self, since: int | None) -> WatchProvidersResponse:
        """Returns what changed after a revision, or the whole set if that is None, too old or unheard of.

        It is one moment of the database. Without a change it is empty, with the same revision.
        """
        async with transaction(self._pool, read_only=True) as connection:
            revision = int(await connection.fetchval(_REVISION))
            if since == revision:
                return WatchProvidersResponse(revision=revision)
            if since is None or not revision - KEPT_REVISIONS <= since < revision:
                return await _changes(connection, revision, None)
            return await _changes(connection, revision, since)

    async def get(self, table: Table[Resource], key: str) -> Resource:
        """Returns one resource.

        Raises:
            NotFound: there is none.
        """
        async with transaction(self._pool, read_only=True) as connection:
            return await _existing(connection, table, key)

    async def create(
        self, table: Table[Resource], resource: Resource, is_same: Callable[[Resource], bool]
    ) -> Resource:
        """Stores a new resource, or returns the one with its id if `is_same` says it is the same.

        Raises:
            AlreadyExists: there is another one with this id.
            FailedPrecondition: there are too many.
        """
        key = table.id_of(resource)
        async with self._writing() as write:
            stored = await table.read(write.connection, key)
            if stored is None:
                return await self._put(write, table, resource)
        if is_same(stored):
            return stored
        raise AlreadyExists("this id exists with another content", resource=table.kind, id=key)

    async def update(
        self, table: Table[Resource], key: str, merge: Callable[[Resource], Resource]
    ) -> Resource:
        """Replaces a resource by what `merge` makes of it. What stays the same is no change.

        Raises:
            NotFound: there is none.
            FailedPrecondition: it may no longer change.
        """
        async with self._writing() as write:
            stored = await _existing(write.connection, table, key)
            await table.require_changeable(write.connection, key)
            merged = merge(stored)
            return stored if merged == stored else await self._put(write, table, merged)

    async def delete(self, table: Table[Resource], key: str) -> None:
        """Deletes a resource; a provider's prices are history and stay.

        Raises:
            NotFound: there is none.
            FailedPrecondition: it may no longer go.
        """
        async with self._writing() as write:
            await _existing(write.connection, table, key)
            await table.require_changeable(write.connection, key)
            await write.connection.execute(_DELETE[table.kind], key)
            await write.connection.execute(_BURY, table.kind, key, write.revision)
            write.has_changed = True

    async def import_prices(self, request: ImportPricesRequest) -> ImportPricesResponse:
        """Stores many prices or, if there is anything wrong with one of them, none; says what changes.

        Raises:
            FailedPrecondition: there would be too many.
        """
        async with self._writing() as write:
            existing = await PRICES.after(write.connection, -1)
            providers = await write.connection.fetch("SELECT provider_id FROM provider.provider")
            now = await write.connection.fetchval("SELECT now()")
            importer = Importer(existing, (row["provider_id"] for row in providers), now)
            found = importer.compare(request.prices)
            if found.changes and not found.problems and not request.is_dry_run:
                prices = [change.price for change in found.changes]
                await PRICES.put_all(write.connection, prices, write.revision)
                await write.connection.execute(_UNBURY, [f"price:{price.price_id}" for price in prices])
                write.has_changed = True
        return found.response(is_dry_run=request.is_dry_run)

    async def load_catalogue(self, models: Iterable[Model], prices: Iterable[Price]) -> int:
        """Stores what of a shipped catalogue was never loaded before, and returns how much that was.

        An item that an operator deleted stays deleted, a model that exists
        stays as it is, and a model whose price an operator has set gets none.
        """
        items = {f"model:{model.model_id}": model for model in models}
        dated = {f"price:{price.price_id}": price for price in prices}
        async with self._writing() as write:
            rows = await write.connection.fetch(_NEW_ITEMS, [*items, *dated])
            new = {row["item_id"] for row in rows}
            if new:
                there = {row["model_id"] for row in await write.connection.fetch(_MODEL_IDS)}
                own = {row["model"] for row in await write.connection.fetch(_OWN_PRICES, CATALOGUE_PREFIX)}
                models = [items[name] for name in items if name in new and items[name].model_id not in there]
                prices = [dated[name] for name in dated if name in new and dated[name].model not in own]
                await MODELS.put_all(write.connection, models, write.revision)
                await PRICES.put_all(write.connection, prices, write.revision)
                await write.connection.execute(_UNBURY, list(new))
                write.has_changed = True
        return len(new)

    async def _put(self, write: _Write, table: Table[Resource], resource: Resource) -> Resource:
        key = table.id_of(resource)
        await table.put(write.connection, resource, write.revision)
        await write.connection.execute(_UNBURY, [f"{table.kind}:{key}"])
        write.has_changed = True
        return await _existing(write.connection, table, key)

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[_Write]:
        async with transaction(self._pool) as connection:
            write = _Write(connection, 1 + await connection.fetchval(f"{_REVISION} FOR UPDATE"))
            yield write
            if write.has_changed:
                await _count_up(write)
        if write.has_changed:
            self._on_commit(write.revision)


async def _changes(connection: Connection, revision: int, since: int | None) -> WatchProvidersResponse:
    after = -1 if since is None else since
    deleted: dict[str, list[str]] = {"provider": [], "model": [], "price": []}
    for row in [] if since is None else await connection.fetch(_DELETIONS, since):
        deleted[row["kind"]].append(row["id"])
    return WatchProvidersResponse(
        revision=revision,
        is_snapshot=since is None,
        providers=await PROVIDERS.after(connection, after),
        models=await MODELS.after(connection, after),
        prices=await PRICES.after(connection, after),
        deleted_provider_ids=deleted["provider"],
        deleted_model_ids=deleted["model"],
        deleted_price_ids=deleted["price"],
    )


async def _existing(connection: Connection, table: Table[Resource], key: str) -> Resource:
    # PostgreSQL has no NUL in texts, and would call the query malformed.
    found = None if "\x00" in key else await table.read(connection, key)
    if found is None:
        raise NotFound(f"no such {table.kind}", resource=table.kind, id=key)
    return found


async def _count_up(write: _Write) -> None:
    """Makes the write's revision the last one, tells everybody, and checks that the set is not too large."""
    sizes = await write.connection.fetchrow(_SIZES)
    for kind, maximum in _MAXIMA.items():
        if sizes[kind] > maximum:
            raise FailedPrecondition(f"more than {maximum} {kind}s", resource=kind, maximum=maximum)
    await write.connection.execute(
        "DELETE FROM provider.deletion WHERE revision <= $1", write.revision - KEPT_REVISIONS
    )
    await write.connection.execute("UPDATE provider.revision SET revision = $1", write.revision)
    await write.connection.execute("SELECT pg_notify($1, $2)", CHANNEL, str(write.revision))
