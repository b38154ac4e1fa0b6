"""The tables in ClickHouse: numbered SQL files, as for PostgreSQL, but without its locks and transactions.

Every statement may run twice and in two processes at the same time (`IF NOT
EXISTS`, `IF EXISTS`); a file that was applied in part is applied again.
"""

import re
from pathlib import Path

from clickhouse_connect.driver.asyncclient import AsyncClient

from lurus_common.migrations import read_migrations, require_known

MIGRATIONS = Path(__file__).parent / "migrations"
_COMMENT_LINE = re.compile(r"^\s*--.*$", re.MULTILINE)
_VERSIONS = (
    "CREATE TABLE IF NOT EXISTS schema_version "
    "(version UInt32, name String, apply_time DateTime('UTC') DEFAULT now()) "
    "ENGINE = ReplacingMergeTree ORDER BY version"
)


def statements_of(sql: str) -> list[str]:
    """Returns the statements of a file: they end with a semicolon at the end of a line."""
    parts = re.split(r";\s*$", _COMMENT_LINE.sub("", sql), flags=re.MULTILINE)
    return [part.strip() for part in parts if part.strip()]


async def migrate(client: AsyncClient, database: str, directory: Path = MIGRATIONS) -> int:
    """Brings the client's database up to date and returns its version.

    Raises:
        SchemaTooNew: if the database is ahead of the code.
    """
    migrations = read_migrations(directory)
    await client.command(_VERSIONS)
    applied = int((await client.query("SELECT max(version) FROM schema_version")).result_rows[0][0])
    require_known(applied, len(migrations), database)
    for migration in migrations[applied:]:
        for statement in statements_of(migration.sql):
            await client.command(statement)
        await client.insert(
            "schema_version",
            [[migration.version, migration.name]],
            column_names=["version", "name"],
            column_type_names=["UInt32", "String"],
        )
    return len(migrations)
