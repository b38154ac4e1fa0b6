"""What "PostgreSQL is away" looks like, and what is somebody's mistake."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from lurus_common import postgres
from lurus_common.errors import DependencyUnavailable
from lurus_common.migrations import SchemaTooNew, migrate
from lurus_switch.embedded import EmbeddedBackends

pytestmark = pytest.mark.anyio


@pytest.fixture
async def pool(backends: EmbeddedBackends) -> AsyncIterator[asyncpg.Pool]:
    """Two connections, which look into a schema of their own."""
    opened = await postgres.open_pool(
        backends.urls.database_url, schema=f"s_{uuid.uuid4().hex[:8]}", max_size=2
    )
    yield opened
    await postgres.close_pool(opened)


async def test_a_slow_statement_ends_and_the_pool_goes_on(pool: asyncpg.Pool) -> None:
    for seconds in (4, 30):  # the server gives up, and would the client
        with pytest.raises(DependencyUnavailable) as caught:
            async with postgres.connection(pool) as connection:
                if seconds == 30:
                    await connection.execute("SET statement_timeout TO 0")
                    await connection.execute(f"SELECT pg_sleep({seconds})", timeout=0.2)
                await connection.execute(f"SELECT pg_sleep({seconds})")
        assert caught.value.metadata == {"dependency": "postgresql"}
        async with postgres.connection(pool) as connection:
            assert await connection.fetchval("SHOW statement_timeout") == "3s"


async def test_a_connection_that_is_cut_is_replaced(pool: asyncpg.Pool) -> None:
    with pytest.raises(DependencyUnavailable):
        async with postgres.transaction(pool) as connection:
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(DependencyUnavailable):
        async with postgres.connection(pool) as connection:
            connection.terminate()
            await connection.fetchval("SELECT 1")
    assert await postgres.problem(pool) == ""


async def test_a_pool_that_is_empty_is_no_place_to_wait_for_ever(
    pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "ACQUIRE_SECONDS", 0.1)
    async with postgres.connection(pool), postgres.connection(pool):
        assert await postgres.problem(pool) != ""
    assert await postgres.problem(pool) == ""


async def test_a_mistake_stays_a_mistake(pool: asyncpg.Pool) -> None:
    with pytest.raises(asyncpg.UndefinedTableError):
        async with postgres.connection(pool) as connection:
            await connection.fetch("SELECT * FROM nothing")
    with pytest.raises(asyncpg.DataError):
        async with postgres.connection(pool) as connection:
            await connection.fetchval("SELECT $1::int", "text")
    with pytest.raises(KeyError):
        async with postgres.transaction(pool):
            raise KeyError


async def test_a_block_that_raises_is_rolled_back(pool: asyncpg.Pool, tmp_path: Path) -> None:
    schema = await _migrated(pool, tmp_path)
    with pytest.raises(KeyError):
        async with postgres.transaction(pool) as connection:
            await connection.execute(f"INSERT INTO {schema}.t VALUES (1)")
            raise KeyError
    async with postgres.transaction(pool, read_only=True) as connection:
        assert await connection.fetchval(f"SELECT count(*) FROM {schema}.t") == 0


async def test_two_that_migrate_at_once_do_it_once(pool: asyncpg.Pool, tmp_path: Path) -> None:
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE t (x int); SELECT pg_sleep(0.2);")
    (tmp_path / "0002_second.sql").write_text("ALTER TABLE t ADD y int;")
    schema = f"m_{uuid.uuid4().hex[:8]}"
    assert await asyncio.gather(*(migrate(pool, schema, tmp_path) for _ in range(2))) == [2, 2]
    (tmp_path / "0002_second.sql").unlink()
    with pytest.raises(SchemaTooNew):
        await migrate(pool, schema, tmp_path)


async def _migrated(pool: asyncpg.Pool, directory: Path) -> str:
    (directory / "0001_first.sql").write_text("CREATE TABLE t (x int);")
    schema = f"m_{uuid.uuid4().hex[:8]}"
    await migrate(pool, schema, directory)
    return schema
