"""The file of an outbox: its schema, its lock, and what dead workers left in it."""

import fcntl
import logging
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from google.protobuf.message import DecodeError

from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent

log = logging.getLogger(__name__)

BUSY_SECONDS = 5.0
INTENT, FINAL, SENT = 0, 1, 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    request_id TEXT PRIMARY KEY,
    state INTEGER NOT NULL,
    subject TEXT NOT NULL,
    payload BLOB NOT NULL,
    change_time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS usage_by_state ON usage (state, request_id);
"""


class OutboxLocked(Exception):
    """Another worker uses this file."""


def lock(path: Path) -> IO[bytes]:
    """Returns the lock on a file, held until it is closed.

    Raises:
        OutboxLocked: somebody else holds it.
    """
    held = path.with_suffix(".lock").open("ab")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise OutboxLocked(f"{path.name} is used by another worker: give each its own worker id") from None
    return held


def open_or_replace(path: Path) -> sqlite3.Connection:
    """Opens a file; one that is no database any more is set aside for a person, and a new one begun."""
    try:
        return _open(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # the disk, not the file
        aside = path.with_name(f"{path.name}.broken-{time.time_ns()}")
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        log.critical("the outbox is damaged (%s): its events must be repaired by hand in %s", error, aside)
        return _open(path)


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.executescript(_SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database


def adopt_orphans(database: sqlite3.Connection, own_path: Path) -> None:
    """Takes over the rows of workers that are gone, each file by exactly one adopter."""
    for path in sorted(own_path.parent.glob("outbox-*.db")):
        if path == own_path:
            continue
        try:
            held = lock(path)
        except OutboxLocked:
            continue
        with held:
            try:
                _adopt(database, path)
            except sqlite3.Error as error:
                log.critical("%s cannot be adopted and waits for a person: %s", path.name, error)


def _adopt(database: sqlite3.Connection, path: Path) -> None:
    orphan = _open(path)
    try:
        rows = orphan.execute("SELECT * FROM usage WHERE state < 2").fetchall()
    finally:
        orphan.close()
    _write_all(database, "INSERT OR IGNORE INTO usage VALUES (?, ?, ?, ?, ?)", rows)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    log.warning("adopted %d events of %s", len(rows), path.name)


def recover(database: sqlite3.Connection, worker_id: str) -> int:
    """Turns the intents of a dead incarnation into estimated final events; returns how many."""
    rows = database.execute("SELECT request_id, payload FROM usage WHERE state = 0").fetchall()
    finals = [(_estimated(payload, worker_id), request_id) for request_id, payload in rows]
    _write_all(database, "UPDATE usage SET state = 1, payload = ? WHERE request_id = ?", finals)
    return len(finals)


def _write_all(database: sqlite3.Connection, sql: str, rows: Sequence[Sequence[object]]) -> None:
    """Does all in one transaction, or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        database.executemany(sql, rows)
        database.execute("COMMIT")
    except sqlite3.Error:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _estimated(payload: bytes, worker_id: str) -> bytes:
    try:
        event = UsageEvent.FromString(payload)
    except DecodeError:
        return payload  # the consumers park it for a person
    event.terminal = usage_pb2.TERMINAL_WORKER_LOST
    if event.HasField("tokens"):
        event.token_source = usage_pb2.TOKEN_SOURCE_ESTIMATED
    event.error_reason = "INTERNAL"
    event.worker_id = worker_id
    return event.SerializeToString()


def count(database: sqlite3.Connection, state: int) -> int:
    """Returns how many rows are in a state."""
    return int(database.execute("SELECT count(*) FROM usage WHERE state = ?", (state,)).fetchone()[0])
