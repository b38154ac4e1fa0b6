"""The three tables with what reads and writes them; `store` puts transactions around."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import asyncpg

from lurus.provider.v1.provider_pb2 import Model, Price, Provider
from lurus_common.errors import AlreadyExists, FailedPrecondition, NotFound
from lurus_common.postgres import Connection
from lurus_provider import rows
from lurus_provider.rows import PRICE_COLUMNS

Resource = TypeVar("Resource", Provider, Model, Price)


class Table(Protocol[Resource]):
    """What the store needs of a table."""

    kind: str

    def id_of(self, resource: Resource) -> str:
        """The primary key."""

    async def after(self, connection: Connection, revision: int) -> list[Resource]:
        """Returns what changed after a revision, by id."""

    async def read(self, connection: Connection, key: str) -> Resource | None:
        """Returns one resource, or None."""

    async def require_changeable(self, connection: Connection, key: str) -> None:
        """Raises FailedPrecondition if an existing resource may no longer change."""

    async def put(self, connection: Connection, resource: Resource, revision: int) -> None:
        """Inserts a resource, or replaces the one with its id."""


class ProviderTable:
    """Providers with their sealed credentials."""

    kind = "provider"

    _ROWS = "SELECT provider_id, content, create_time, update_time FROM provider.provider"
    _CREDENTIALS = """
        SELECT c.provider_id, credential_id, sealed_secret, last_four, is_disabled
        FROM provider.credential c JOIN provider.provider p USING (provider_id)
    """
    _PUT = """
        INSERT INTO provider.provider (provider_id, content, revision) VALUES ($1, $2, $3)
        ON CONFLICT (provider_id)
        DO UPDATE SET content = excluded.content, revision = excluded.revision, update_time = now()
    """
    _CLEAR_CREDENTIALS = "DELETE FROM provider.credential WHERE provider_id = $1"
    _PUT_CREDENTIAL = """
        INSERT INTO provider.credential
            (provider_id, credential_id, position, sealed_secret, last_four, is_disabled)
        VALUES ($1, $2, $3, $4, $5, $6)
    """

    def id_of(self, resource: Provider) -> str:
        return resource.provider_id

    async def after(self, connection: Connection, revision: int) -> list[Provider]:
        found = await connection.fetch(f"{self._ROWS} WHERE revision > $1 ORDER BY provider_id", revision)
        credentials = await connection.fetch(
            f"{self._CREDENTIALS} WHERE p.revision > $1 ORDER BY c.provider_id, position", revision
        )
        return rows.providers_of(found, credentials)

    async def read(self, connection: Connection, key: str) -> Provider | None:
        found = await connection.fetch(f"{self._ROWS} WHERE provider_id = $1", key)
        credentials = await connection.fetch(
            f"{self._CREDENTIALS} WHERE c.provider_id = $1 ORDER BY position", key
        )
        return next(iter(rows.providers_of(found, credentials)), None)

    async def require_changeable(self, connection: Connection, key: str) -> None:
        pass

    async def put(self, connection: Connection, resource: Provider, revision: int) -> None:
        await connection.execute(self._PUT, resource.provider_id, rows.content_of(resource), revision)
        await connection.execute(self._CLEAR_CREDENTIALS, resource.provider_id)
        await connection.executemany(self._PUT_CREDENTIAL, rows.credential_rows(resource))


class ModelTable:
    """Models of the catalogue."""

    kind = "model"

    _ROWS = "SELECT content, create_time, update_time FROM provider.model"
    _PUT = """
        INSERT INTO provider.model (model_id, content, revision) VALUES ($1, $2, $3)
        ON CONFLICT (model_id)
        DO UPDATE SET content = excluded.content, revision = excluded.revision, update_time = now()
    """

    def id_of(self, resource: Model) -> str:
        return resource.model_id

    async def after(self, connection: Connection, revision: int) -> list[Model]:
        found = await connection.fetch(f"{self._ROWS} WHERE revision > $1 ORDER BY model_id", revision)
        return [rows.model_of(row) for row in found]

    async def read(self, connection: Connection, key: str) -> Model | None:
        row = await connection.fetchrow(f"{self._ROWS} WHERE model_id = $1", key)
        return None if row is None else rows.model_of(row)

    async def require_changeable(self, connection: Connection, key: str) -> None:
        pass

    async def put(self, connection: Connection, resource: Model, revision: int) -> None:
        await self.put_all(connection, [resource], revision)

    async def put_all(self, connection: Connection, resources: Sequence[Model], revision: int) -> None:
        """Inserts models, or replaces those with their ids."""
        values = [(model.model_id, rows.content_of(model), revision) for model in resources]
        await connection.executemany(self._PUT, values)


def _placeholders(columns: Sequence[str]) -> str:
    """`$1, $2, …`; no effective time means now."""
    numbered = {name: f"${number}" for number, name in enumerate(columns, start=1)}
    numbered["effective_time"] = f"coalesce({numbered['effective_time']}::timestamptz, now())"
    return ", ".join(numbered.values())


class PriceTable:
    """Dated prices. One in effect is history: it never changes and never goes."""

    kind = "price"

    _WRITTEN = (*PRICE_COLUMNS, "revision")
    _ROWS = f"SELECT {', '.join(PRICE_COLUMNS)}, create_time FROM provider.price"  # noqa: S608  # our names
    _PUT = (
        f"INSERT INTO provider.price ({', '.join(_WRITTEN)}) VALUES ({_placeholders(_WRITTEN)}) "  # noqa: S608
        f"ON CONFLICT (price_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _WRITTEN)}"
    )

    def id_of(self, resource: Price) -> str:
        return resource.price_id

    async def after(self, connection: Connection, revision: int) -> list[Price]:
        found = await connection.fetch(f"{self._ROWS} WHERE revision > $1 ORDER BY price_id", revision)
        return [rows.price_of(row) for row in found]

    async def read(self, connection: Connection, key: str) -> Price | None:
        row = await connection.fetchrow(f"{self._ROWS} WHERE price_id = $1", key)
        return None if row is None else rows.price_of(row)

    async def require_changeable(self, connection: Connection, key: str) -> None:
        query = "SELECT 1 FROM provider.price WHERE price_id = $1 AND effective_time <= now()"
        if await connection.fetchval(query, key):
            raise FailedPrecondition("a price in effect is history; add one with a later time", id=key)

    async def put(self, connection: Connection, resource: Price, revision: int) -> None:
        owner = resource.provider_id
        query = "SELECT 1 FROM provider.provider WHERE provider_id = $1"
        if owner and not await connection.fetchval(query, owner):
            raise NotFound("no such provider", resource="provider", id=owner)
        try:
            await self.put_all(connection, [resource], revision)
        except asyncpg.UniqueViolationError as error:
            raise AlreadyExists(
                "another price of this model and provider counts from the same moment on",
                resource="price",
                id=resource.price_id,
            ) from error

    async def put_all(self, connection: Connection, resources: Sequence[Price], revision: int) -> None:
        """Inserts prices, or replaces those with their ids; does not ask for their providers."""
        values = [(*rows.price_values(price), revision) for price in resources]
        await connection.executemany(self._PUT, values)


PROVIDERS = ProviderTable()
MODELS = ModelTable()
PRICES = PriceTable()
