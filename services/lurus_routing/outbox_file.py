"""The file of an outbox: its schema, its lock, what dead workers left in it, and the leases it pays from."""

import fcntl
import logging
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from google.protobuf.message import DecodeError
from ulid import ULID

from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_routing.leases import KeptLease, KeptLeases

log = logging.getLogger(__name__)

BUSY_SECONDS = 5.0
# A start does not read more of them to learn what was spent of a lease: some seconds' worth.
MAX_SCANNED_ROWS = 500_000
# Events of a worker that is gone that are in memory at once while they are taken over.
ADOPT_PAGE_ROWS = 1_000
_ADOPT_LEASE = "INSERT OR IGNORE INTO lease VALUES (?, ?, ?, ?, ?)"
_TAKE_LEASE = "INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?)"
_ADOPT_EVENT = "INSERT OR IGNORE INTO usage VALUES (?, ?, ?, ?, ?)"
_ORPHAN_PAGE = "SELECT * FROM usage WHERE state < 2 AND request_id > ? ORDER BY request_id LIMIT ?"
_INTENT_PAGE = (
    "SELECT request_id, payload FROM usage WHERE state = 0 AND request_id > ? ORDER BY request_id LIMIT ?"
)
_MAKE_FINAL = "UPDATE usage SET state = 1, payload = ? WHERE request_id = ?"
_FORGET_PAGE = "DELETE FROM usage WHERE state < 2 AND request_id BETWEEN ? AND ?"
# A request gets its id some time before it is admitted, at most.
_ADMISSION_NS = 60 * 1_000_000_000
_ULID_TIME_CHARACTERS = 10
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
CREATE TABLE IF NOT EXISTS lease (
    account_id TEXT PRIMARY KEY,
    lease_id TEXT NOT NULL,
    granted_nano_usd INTEGER NOT NULL,
    ask_time_ns INTEGER NOT NULL,
    expire_time_ns INTEGER NOT NULL
) WITHOUT ROWID;
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


@dataclass(slots=True)
class Adopted:
    """What was taken over of workers that are gone."""

    event_count: int = 0
    leases: KeptLeases = field(default_factory=lambda: KeptLeases({}))


def orphans(own_path: Path) -> list[Path]:
    """Returns the files of other workers that nobody holds now."""
    found = []
    for path in sorted(own_path.parent.glob("outbox-*.db")):
        if path == own_path:
            continue
        try:
            lock(path).close()
        except OutboxLocked:
            continue
        found.append(path)
    return found


def adopt_orphans(own_path: Path, worker_id: str, paths: Sequence[Path]) -> Adopted:
    """Takes over the rows of workers that are gone, each file by exactly one adopter.

    What such a worker was still doing becomes an estimated final event. What it had sent stays beside
    us for an audit. Waits for nobody; it may run beside the worker's own writes.

    Args:
        paths: the files in question.
    """
    adopted = Adopted()
    for path in paths:
        try:
            held = lock(path)
        except OutboxLocked:
            continue
        with held:
            try:
                _adopt(own_path, path, worker_id, adopted)
            except sqlite3.Error as error:
                log.critical("%s cannot be adopted and waits for a person: %s", path.name, error)
    return adopted


def _adopt(own_path: Path, path: Path, worker_id: str, adopted: Adopted) -> None:
    if not path.exists():
        return  # another one was quicker
    with closing(_open(path)) as orphan:
        with closing(_open(own_path)) as database:
            lent = _move_leases(database, orphan, _ADOPT_LEASE)
            adopted.leases.leases.update(lent.leases)
            adopted.leases.costs.update(lent.costs)
            event_count = _adopt_events(database, orphan, worker_id, adopted)
        has_sent = count(orphan, SENT) > 0
    if has_sent:
        path.rename(path.with_name(f"sent-{path.stem.removeprefix('outbox-')}-{time.time_ns()}.db"))
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    log.info("adopted %d events of %s", event_count, path.name)


def take_leases(own_path: Path, path: Path) -> KeptLeases:
    """Takes over the leases of a worker that may still run and go on with those in its memory.

    Its events stay its own. From now on the leases are on disk with us: whoever takes our place finds them.
    """
    if not path.exists():
        return KeptLeases({})
    try:
        with closing(_open(path)) as other, closing(_open(own_path)) as database:
            return _move_leases(database, other, _TAKE_LEASE)
    except sqlite3.Error as error:
        log.warning("the leases of %s cannot be taken over: %s", path.name, error)
        return KeptLeases({})


def _move_leases(database: sqlite3.Connection, other: sqlite3.Connection, put: str) -> KeptLeases:
    lent = kept_leases(other)
    if lent.leases:
        # First: whoever dies in between has lost a lease, not lent it twice.
        other.execute("DELETE FROM lease")
        _write_all(database, put, [_lease_row(lease) for lease in lent.leases.values()])
    return lent


def _adopt_events(
    database: sqlite3.Connection, orphan: sqlite3.Connection, worker_id: str, adopted: Adopted
) -> int:
    """Moves what an orphan has not sent, a page after the other; returns how many events were new here.

    A page is durable with the adopter before the orphan forgets it: whoever dies in between leaves it in
    both files, where it is one event still. Between two pages the adopter's own requests are written.
    """
    event_count, last_id = 0, ""
    while rows := orphan.execute(_ORPHAN_PAGE, (last_id, ADOPT_PAGE_ROWS)).fetchall():
        first_id, last_id = rows[0][0], rows[-1][0]
        inserted = _write_all(database, _ADOPT_EVENT, [_final(row, worker_id) for row in rows])
        event_count += inserted
        adopted.event_count += inserted
        orphan.execute(_FORGET_PAGE, (first_id, last_id))
    return event_count


def _lease_row(lease: KeptLease) -> tuple[str, str, int, int, int]:
    """Returns what is left of another worker's lease, as a lease that was asked for now."""
    left = max(0, lease.granted_nano_usd - lease.spent_nano_usd)
    return lease.account_id, lease.lease_id, left, time.time_ns(), lease.expire_time_ns


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
    """Turns the intents of a dead incarnation into estimated final events; returns how many.

    A page after the other, each durable before the next one: who dies in between goes on at the next start.
    """
    recovered, last_id = 0, ""
    while rows := database.execute(_INTENT_PAGE, (last_id, ADOPT_PAGE_ROWS)).fetchall():
        last_id = rows[-1][0]
        finals = [(_estimated(payload, worker_id), request_id) for request_id, payload in rows]
        recovered += _write_all(database, _MAKE_FINAL, finals)
    return recovered


def _write_all(database: sqlite3.Connection, sql: str, rows: Sequence[Sequence[object]]) -> int:
    """Does all in one transaction, or nothing; returns how many rows that changed."""
    database.execute("BEGIN IMMEDIATE")
    try:
        changed = database.executemany(sql, rows).rowcount
        database.execute("COMMIT")
    except sqlite3.Error:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
    return max(0, changed)


def _estimated(payload: bytes, worker_id: str) -> bytes:
    try:
        event = UsageEvent.FromString(payload)
    except DecodeError:
        return payload  # the consumers park it for a person
    event.terminal = usage_pb2.TERMINAL_WORKER_LOST
    if event.HasField("tokens"):
        event.token_source = usage_pb2.TOKEN_SOURCE_ESTIMATED
    event.error_reason = "INTERNAL"
    if event.charge_reason == usage_pb2.CHARGE_REASON_WAIVED_BY_POLICY:
        # The checkpoint took the client for gone; that is not what happened.
        event.charge_reason = usage_pb2.CHARGE_REASON_BILLED_BY_POLICY
        event.cost_nano_usd, event.waived_nano_usd = event.waived_nano_usd, 0
    event.worker_id = worker_id
    return event.SerializeToString()


def kept_leases(database: sqlite3.Connection) -> KeptLeases:
    """Returns the leases of this worker, each with what its requests have cost since it was asked for.

    Requests of the same moment that another lease pays count too: rather too much
    is taken for spent. None are returned if there are too many requests to look at.
    What is left of them goes to whoever adopts the file.
    """
    rows = database.execute("SELECT * FROM lease").fetchall()
    found = KeptLeases({row[0]: KeptLease(*row) for row in rows})
    if not rows:
        return found
    oldest = min(lease.ask_time_ns for lease in found.leases.values())
    events = database.execute(
        "SELECT payload FROM usage WHERE request_id >= ? ORDER BY request_id LIMIT ?",
        (id_at(oldest - _ADMISSION_NS), MAX_SCANNED_ROWS + 1),
    )
    for number, (payload,) in enumerate(events):
        if number == MAX_SCANNED_ROWS:
            log.warning("too many requests to tell what is left of %d leases: they are dropped", len(rows))
            return KeptLeases({})
        _count_spent(found, payload)
    return found


def _count_spent(found: KeptLeases, payload: bytes) -> None:
    try:
        event = UsageEvent.FromString(payload)
    except DecodeError:
        return
    lease = found.leases.get(event.account_id)
    if lease is None or not event.cost_nano_usd:
        return
    found.costs[event.key_id, event.model] = event.cost_nano_usd
    if event.lease_id == lease.lease_id or event.request_id >= id_at(lease.ask_time_ns):
        spent = lease.spent_nano_usd + event.cost_nano_usd
        found.leases[event.account_id] = replace(lease, spent_nano_usd=spent)


def id_at(time_ns: int) -> str:
    """Returns what sorts before every request id made from that moment on, in Unix nanoseconds."""
    return f"req_{str(ULID.from_timestamp(max(0, time_ns) // 1_000_000))[:_ULID_TIME_CHARACTERS]}"


def count(database: sqlite3.Connection, state: int) -> int:
    """Returns how many rows are in a state."""
    return int(database.execute("SELECT count(*) FROM usage WHERE state = ?", (state,)).fetchone()[0])
