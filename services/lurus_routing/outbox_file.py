"""The file of an outbox: its schema, its lock, and what dead workers left in it."""

import fcntl
import logging
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
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


def adopt_orphans(own_path: Path, worker_id: str) -> int:
    """Takes over the rows of workers that are gone, each file by exactly one adopter; returns how many.

    What such a worker was still doing becomes an estimated final event. What it had sent stays beside
    us for an audit. Waits for nobody; it may run beside the worker's own writes.
    """
    adopted = 0
    for path in sorted(own_path.parent.glob("outbox-*.db")):
        if path == own_path:
            continue
        try:
            held = lock(path)
        except OutboxLocked:
            continue
        with held:
            try:
                adopted += _adopt(own_path, path, worker_id)
            except sqlite3.Error as error:
                log.critical("%s cannot be adopted and waits for a person: %s", path.name, error)
    return adopted


def _adopt(own_path: Path, path: Path, worker_id: str) -> int:
    if not path.exists():
        return 0  # another one was quicker
    with closing(_open(path)) as orphan:
        rows = orphan.execute("SELECT * FROM usage WHERE state < 2").fetchall()
        if rows:
            finals = [_final(row, worker_id) for row in rows]
            with closing(_open(own_path)) as database:
                _write_all(database, "INSERT OR IGNORE INTO usage VALUES (?, ?, ?, ?, ?)", finals)
            orphan.execute("DELETE FROM usage WHERE state < 2")
        has_sent = count(orphan, SENT) > 0
    if has_sent:
        path.rename(path.with_name(f"sent-{path.stem.removeprefix('outbox-')}-{time.time_ns()}.db"))
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    log.info("adopted %d events of %s", len(rows), path.name)
    return len(rows)


def _final(row: tuple[str, int, str, bytes, int], worker_id: str) -> tuple[str, int, str, bytes, int]:
    request_id, state, subject, payload, change_time = row
    if state == INTENT:
        return request_id, FINAL, subject, _estimated(payload, worker_id), change_time
    return row


def forget_sent_files(directory: Path, before: float) -> None:
    """Deletes what adopted workers had sent, if that was before a moment in Unix seconds."""
    for path in directory.glob("sent-*.db"):
        if path.stat().st_mtime < before:
            path.unlink(missing_ok=True)


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
