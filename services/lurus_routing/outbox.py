"""Usage events on local disk until the bus has them.

One SQLite file per worker, locked. An `intent` row is durable before a provider
is called, the `final` row before the last bytes of the answer are released.
Intents that a dead worker left become estimated finals. One thread writes; all
that is asked for at the same moment shares one transaction.
"""

import asyncio
import fcntl
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

from prometheus_client import Counter, Gauge

from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common.errors import AccountingUnavailable

log = logging.getLogger(__name__)

GROUP_OPERATIONS = 256
KEEP_SENT_SECONDS = 7 * 86_400
BUSY_SECONDS = 5.0
RETRY_SECONDS = 0.5
MAX_FINALS_WAITING = 10_000
INTENT, FINAL, SENT = 0, 1, 2

UNSENT = Gauge("lurus_outbox_unsent_events", "Final usage events that the bus does not have yet.")
LIVE = Gauge("lurus_outbox_intents", "Requests whose provider was called and whose end is not known yet.")
RECOVERED = Counter("lurus_outbox_recovered_events", "Intents of a dead worker that became estimated events.")
WRITE_FAILURES = Counter("lurus_outbox_write_failures", "Transactions of the outbox that failed.")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    request_id TEXT PRIMARY KEY,
    state INTEGER NOT NULL,
    payload BLOB NOT NULL,
    change_time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS usage_by_state ON usage (state, request_id);
"""
_PUT_INTENT = "INSERT INTO usage VALUES (?, 0, ?, unixepoch())"
_PUT_FINAL = (
    "INSERT INTO usage VALUES (?, 1, ?, unixepoch()) ON CONFLICT (request_id) "
    "DO UPDATE SET state = 1, payload = excluded.payload, change_time = excluded.change_time WHERE state = 0"
)
_CHECKPOINT = "UPDATE usage SET payload = ?, change_time = unixepoch() WHERE request_id = ? AND state = 0"
_DROP_INTENT = "DELETE FROM usage WHERE request_id = ? AND state = 0"
_MARK_SENT = "UPDATE usage SET state = 2, change_time = unixepoch() WHERE request_id = ? AND state = 1"
_UNSENT = "SELECT request_id, payload FROM usage WHERE state = 1 ORDER BY request_id LIMIT ?"

Operation = Callable[[sqlite3.Connection], Any]


class OutboxLocked(Exception):
    """Another worker uses this file."""


class Outbox:
    """The outbox of one worker.

    Args:
        directory: on a disk that survives the process.
        worker_id: names the file; the same worker finds its rows again.
        max_rows: above so many unsent events new requests are refused.
    """

    def __init__(self, directory: Path, worker_id: str, max_rows: int) -> None:
        self._directory = directory
        self._path = directory / f"outbox-{worker_id}.db"
        self._worker_id = worker_id
        self._max_rows = max_rows
        self._operations: queue.SimpleQueue[tuple[Operation, Future[Any]] | None] = queue.SimpleQueue()
        self._unsent_count = 0
        self._waiting_finals = 0
        self._broken = ""
        self._finishing: set[asyncio.Future[None]] = set()
        self.has_news = asyncio.Event()

    async def __aenter__(self) -> "Outbox":
        self._loop = asyncio.get_running_loop()
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _lock(self._path)
        self._database = _open(self._path)
        self._adopt_orphans()
        recovered = _recover(self._database, self._worker_id)
        RECOVERED.inc(recovered)
        self._unsent_count = _count(self._database, FINAL)
        UNSENT.set(self._unsent_count)
        if self._unsent_count:
            log.info("the outbox holds %d events, %d of them recovered", self._unsent_count, recovered)
            self.has_news.set()
        self._thread = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.wait(self._finishing, timeout=BUSY_SECONDS) if self._finishing else None
        self._operations.put(None)
        await asyncio.to_thread(self._thread.join)
        self._database.close()
        self._lock.close()

    @property
    def problem(self) -> str:
        """Why nothing can be written now, or an empty string."""
        return self._broken

    @property
    def unsent_count(self) -> int:
        """Final events that the bus does not have yet."""
        return self._unsent_count

    async def intend(self, event: UsageEvent) -> None:
        """Makes an intent durable, before a provider is called.

        Raises:
            AccountingUnavailable: if it cannot be written or the outbox is full:
                what cannot be accounted for must not be served.
        """
        if self._unsent_count >= self._max_rows or self._waiting_finals >= MAX_FINALS_WAITING:
            raise AccountingUnavailable("the outbox is full", retry_after_seconds=5)
        row = (event.request_id, event.SerializeToString())
        try:
            await self._submit(lambda database: database.execute(_PUT_INTENT, row))
        except sqlite3.Error as error:
            log.error("the outbox cannot be written: %s", error)
            raise AccountingUnavailable("the outbox cannot be written", retry_after_seconds=5) from error
        LIVE.inc()

    def finish(self, event: UsageEvent) -> "asyncio.Future[None]":
        """Replaces an intent by the final event; the future ends when that is durable.

        Need not be awaited: a write that fails is tried again until it succeeds,
        so a settled request is never lost to a full disk.
        """
        LIVE.dec()
        return self.record(event)

    def record(self, event: UsageEvent) -> "asyncio.Future[None]":
        """The same for a request that had no intent: it was refused before any provider was called."""
        self._waiting_finals += 1
        task = asyncio.ensure_future(self._finish(event.request_id, event.SerializeToString()))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        return task

    async def _finish(self, request_id: str, payload: bytes) -> None:
        while True:
            try:
                await self._submit(lambda database: database.execute(_PUT_FINAL, (request_id, payload)))
                break
            except sqlite3.Error as error:
                log.error("a final event waits for the disk: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
        self._waiting_finals -= 1
        self._unsent_count += 1
        UNSENT.set(self._unsent_count)
        self.has_news.set()

    def drop(self, request_id: str) -> None:
        """Forgets an intent whose request never reached a provider."""
        LIVE.dec()
        self._submit(lambda database: database.execute(_DROP_INTENT, (request_id,)))

    def checkpoint(self, rows: Sequence[tuple[bytes, str]]) -> "asyncio.Future[Any]":
        """Brings intents up to date: (event so far, request id) each, in one transaction."""
        return self._submit(lambda database: database.executemany(_CHECKPOINT, rows))

    async def unsent(self, limit: int) -> list[tuple[str, bytes]]:
        """Returns the oldest final events that are not sent: (request id, event)."""
        rows = await self._submit(lambda database: database.execute(_UNSENT, (limit,)).fetchall())
        return list(rows)

    async def mark_sent(self, request_ids: Sequence[str]) -> None:
        """Records that the bus has these events. They stay a while, for an audit."""
        rows = [(request_id,) for request_id in request_ids]
        await self._submit(lambda database: database.executemany(_MARK_SENT, rows))
        self._unsent_count -= len(request_ids)
        UNSENT.set(self._unsent_count)

    async def forget_old(self) -> None:
        """Deletes events that were sent long ago."""
        before = int(time.time()) - KEEP_SENT_SECONDS
        sql = "DELETE FROM usage WHERE state = 2 AND change_time < ?"
        await self._submit(lambda database: database.execute(sql, (before,)))

    def _submit(self, operation: Operation) -> "asyncio.Future[Any]":
        future: Future[Any] = Future()
        self._operations.put((operation, future))
        return asyncio.wrap_future(future, loop=self._loop)

    def _write(self) -> None:
        """The writing thread: takes what has gathered, commits once, tells everybody."""
        while (first := self._operations.get()) is not None:
            group = [first]
            stop = False
            while len(group) < GROUP_OPERATIONS and not self._operations.empty():
                entry = self._operations.get()
                if entry is None:
                    stop = True
                    break
                group.append(entry)
            self._commit(group)
            if stop:
                return

    def _commit(self, group: Sequence[tuple[Operation, Future[Any]]]) -> None:
        live = [(operation, future) for operation, future in group if future.set_running_or_notify_cancel()]
        try:
            self._database.execute("BEGIN IMMEDIATE")
            results = [operation(self._database) for operation, _ in live]
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            WRITE_FAILURES.inc()
            self._broken = f"the outbox cannot be written: {error}"
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            if len(live) > 1:
                for entry in live:
                    self._commit_alone(*entry)
                return
            for _, future in live:
                future.set_exception(error)
            return
        self._broken = ""
        for (_, future), result in zip(live, results, strict=True):
            future.set_result(result)

    def _commit_alone(self, operation: Operation, future: Future[Any]) -> None:
        """One bad operation must not fail its neighbours: after a failed group each runs by itself."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            result = operation(self._database)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            future.set_exception(error)
            return
        future.set_result(result)

    def _adopt_orphans(self) -> None:
        """Takes over the rows of workers that are gone, each file by exactly one adopter."""
        for path in sorted(self._directory.glob("outbox-*.db")):
            if path == self._path:
                continue
            try:
                lock = _lock(path)
            except OutboxLocked:
                continue
            with lock:
                _adopt(self._database, path)


def _lock(path: Path) -> IO[bytes]:
    lock = path.with_suffix(".lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise OutboxLocked(f"{path.name} is used by another worker: give each its own worker id") from None
    return lock


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.executescript(_SCHEMA)
    return database


def _adopt(database: sqlite3.Connection, path: Path) -> None:
    orphan = _open(path)
    rows = orphan.execute("SELECT * FROM usage WHERE state < 2").fetchall()
    orphan.close()
    database.execute("BEGIN IMMEDIATE")
    database.executemany("INSERT OR IGNORE INTO usage VALUES (?, ?, ?, ?)", rows)
    database.execute("COMMIT")
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    log.warning("adopted %d events of %s", len(rows), path.name)


def _recover(database: sqlite3.Connection, worker_id: str) -> int:
    """Turns the intents of a dead incarnation into estimated final events; returns how many."""
    rows = database.execute("SELECT request_id, payload FROM usage WHERE state = 0").fetchall()
    finals = [(_estimated(payload, worker_id), request_id) for request_id, payload in rows]
    database.execute("BEGIN IMMEDIATE")
    database.executemany("UPDATE usage SET state = 1, payload = ? WHERE request_id = ?", finals)
    database.execute("COMMIT")
    return len(finals)


def _estimated(payload: bytes, worker_id: str) -> bytes:
    event = UsageEvent.FromString(payload)
    event.terminal = usage_pb2.TERMINAL_WORKER_LOST
    event.token_source = usage_pb2.TOKEN_SOURCE_ESTIMATED
    event.error_reason = "INTERNAL"
    event.worker_id = worker_id
    return event.SerializeToString()


def _count(database: sqlite3.Connection, state: int) -> int:
    return int(database.execute("SELECT count(*) FROM usage WHERE state = ?", (state,)).fetchone()[0])
