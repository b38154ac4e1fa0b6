"""Numbered SQL files, applied once and in order, under a lock.

A service keeps its tables in a PostgreSQL schema of its own. Two starters wait
for each other; a schema newer than the code refuses to start.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import asyncpg

# For one file, and for the wait until another starter is done; a pool's own limits are shorter.
MIGRATION_SECONDS = 60

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql\Z")


class SchemaTooNew(Exception):
    """The database was migrated by a newer release than this one."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its number, its name and its SQL."""

    version: int
    name: str
    sql: str


def read_migrations(directory: Path) -> list[Migration]:
    """Returns the files of a directory in order.

    Raises:
        ValueError: if the numbers do not run 1, 2, 3, …
    """
    found = [
        Migration(int(match[1]), path.name, path.read_text(encoding="utf-8"))
        for path in sorted(directory.iterdir())
        if (match := _NAME.match(path.name))
    ]
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"the numbers in {directory.name} must run from 0001 without a gap")
    return found


def require_known(applied: int, known: int, schema: str) -> None:
    """Raises SchemaTooNew if the database is ahead of the code."""
    if applied > known:
        raise SchemaTooNew(
            f"the schema {schema} is at version {applied}, this release knows {known}: "
            "start the newer release, or restore a backup made by this one"
        )


async def migrate(pool: asyncpg.Pool, schema: str, directory: Path) -> int:
    """Brings a schema up to date and returns its version.

    Raises:
        SchemaTooNew: if the database is ahead of the code.
    """
    migrations = read_migrations(directory)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(
            f"SET LOCAL statement_timeout TO '{MIGRATION_SECONDS}s'; "
            f"SET LOCAL lock_timeout TO '{MIGRATION_SECONDS}s'"
        )
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtext($1))",
            f"lurus-migrate-{schema}",
            timeout=MIGRATION_SECONDS,
        )
        await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
        await connection.execute(
            f'CREATE TABLE IF NOT EXISTS "{schema}".schema_version '
            "(version int PRIMARY KEY, name text NOT NULL, apply_time timestamptz NOT NULL DEFAULT now())"
        )
        query = f'SELECT coalesce(max(version), 0) FROM "{schema}".schema_version'  # noqa: S608  # our own constant
        applied = int(await connection.fetchval(query))
        require_known(applied, len(migrations), schema)
        await connection.execute(f'SET LOCAL search_path TO "{schema}"')
        for migration in migrations[applied:]:
            await connection.execute(migration.sql, timeout=MIGRATION_SECONDS)
            await connection.execute(
                "INSERT INTO schema_version (version, name) VALUES ($1, $2)",
                migration.version,
                migration.name,
            )
    return len(migrations)
