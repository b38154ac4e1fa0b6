"""Usage events on local disk until the bus has them.

One SQLite file per worker, locked. An `intent` row is durable before a provider
is called, the `final` row before the last bytes of the answer are released.
Intents that a dead worker left become estimated finals. One thread writes; all
that is asked for at the same moment shares one transaction.
"""

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge

from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common.bus import subject_of
from lurus_common.errors import AccountingUnavailable
from lurus_routing import outbox_file
from lurus_routing.leases import KeptLease, KeptLeases
from lurus_routing.outbox_file import FINAL, OutboxLocked
from lurus_routing.outbox_group import Entry, Operation, Outcome, Put, Row, commit

log = logging.getLogger(__name__)

GROUP_OPERATIONS = 256
KEEP_SENT_SECONDS = 7 * 86_400
STOP_SECONDS = 5.0
LOCK_WAIT_SECONDS = 5.0
LOCK_POLL_SECONDS = 0.05
RETRY_SECONDS = 0.5
# How often a worker looks for events of another one that has ended.
ADOPT_SECONDS = 5.0
# In so many looks in a row nobody must hold a file before it is another's: a worker that is started again,
# after the longest back-off of a supervisor too, finds its lease, and so serves without billing. Nobody
# takes one as it starts: all workers of a machine may be starting, in any order.
PATIENCE_LOOKS = 5
MAX_FINALS_WAITING = 10_000
MAX_READY_ROWS = 2_048
WARN_RATIO = 0.8
OLD_SECONDS = 30.0

UNSENT = Gauge("lurus_outbox_unsent_events", "Final usage events that the bus does not have yet.")
LIVE = Gauge("lurus_outbox_intents", "Requests whose provider was called and whose end is not known yet.")
FILL = Gauge(
    "lurus_outbox_fill_ratio", "Unsent events by those that there is room for; at 1 requests are refused."
)
OLDEST = Gauge("lurus_outbox_oldest_seconds", "For how long the event that is sent next has waited.")
WAITING = Gauge("lurus_outbox_waiting_events", "Final usage events that are not on disk yet.")
RECOVERED = Counter("lurus_outbox_recovered_events", "Intents of a dead worker that became estimated events.")
WRITE_FAILURES = Counter("lurus_outbox_write_failures", "Transactions of the outbox that failed.")

_CHECKPOINT = "UPDATE usage SET payload = ?, change_time = unixepoch() WHERE request_id = ? AND state = 0"
_MARK_SENT = "UPDATE usage SET state = 2, change_time = unixepoch() WHERE state = 1 AND request_id IN ({})"
_UNSENT = "SELECT request_id, subject, payload FROM usage WHERE state = 1 ORDER BY request_id LIMIT ?"
_UNSENT_AFTER = (
    "SELECT request_id, subject, payload FROM usage WHERE state = 1 AND request_id > ? "
    "ORDER BY request_id LIMIT ?"
)
_PUT_LEASE = "INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?)"
_DROP_LEASE = "DELETE FROM lease WHERE account_id = ?"
# Of the event that is sent next, when it became final: later than its id for a long stream.
_OLDEST = "SELECT change_time FROM usage WHERE state = 1 ORDER BY request_id LIMIT 1"
_FORGET = "DELETE FROM usage WHERE state = 2 AND change_time < ?"


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
        self._operations: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._unsent_count = self._waiting_count = self._intent_count = 0
        self._broken = ""
        self._is_closed = False
        self._oldest_seconds = 0.0
        self._warned = ""
        # What was lent to this worker before it started.
        self.kept_leases = KeptLeases({})
        # What waits for the bus, unless there is more of it on disk.
        self._ready: deque[Row] = deque()
        self._reads_disk = True
        self.has_news = asyncio.Event()

    async def __aenter__(self) -> "Outbox":
        self._loop = asyncio.get_running_loop()
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = await self._take_lock()
        self._database = outbox_file.open_or_replace(self._path)
        recovered = outbox_file.recover(self._database, self._worker_id)
        RECOVERED.inc(recovered)
        self.kept_leases = outbox_file.kept_leases(self._database)
        self._unsent_count = outbox_file.count(self._database, FINAL)
        self._reads_disk = self._unsent_count > 0
        self._show()
        if self._unsent_count:
            log.info("the outbox holds %d events, %d of them recovered", self._unsent_count, recovered)
            self.has_news.set()
        self._thread = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        while self._waiting_count and time.monotonic() < deadline:  # noqa: ASYNC110  # once, at the end
            await asyncio.sleep(LOCK_POLL_SECONDS)
        self._is_closed = True
        if self._waiting_count:
            log.critical(
                "%d final events could not be written; their last checkpoints count", self._waiting_count
            )
        self._operations.put(None)
        await asyncio.to_thread(self._thread.join)
        self._database.close()
        self._lock.close()

    def _show(self) -> None:
        """Lets gauges be read from here when somebody asks: to set them costs each request more."""
        UNSENT.set_function(lambda: self._unsent_count)
        WAITING.set_function(lambda: self._waiting_count)
        LIVE.set_function(lambda: self._intent_count)
        FILL.set_function(lambda: self.fill_ratio)

    @property
    def problem(self) -> str:
        """Why nothing can be written now, or an empty string."""
        return self._broken

    @property
    def unsent_count(self) -> int:
        """Final events that the bus does not have yet."""
        return self._unsent_count

    @property
    def live_count(self) -> int:
        """Requests of this worker whose provider was called and whose end is not known yet."""
        return self._intent_count

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another event."""
        return self._unsent_count >= self._max_rows or self._waiting_count >= MAX_FINALS_WAITING

    @property
    def fill_ratio(self) -> float:
        """Unsent events by those that there is room for."""
        return self._unsent_count / self._max_rows

    @property
    def oldest_seconds(self) -> float:
        """For how long the event that is sent next has waited, as of the last look."""
        return self._oldest_seconds

    @property
    def warning(self) -> str:
        """What somebody should look at before it becomes a problem; empty if nothing."""
        if self.is_full:
            return "it is full: requests are refused"
        if self.fill_ratio >= WARN_RATIO:
            return f"it is {self.fill_ratio:.0%} full; at 100% requests are refused"
        if self._oldest_seconds > OLD_SECONDS:
            return f"an event has waited for {self._oldest_seconds:.0f} s"
        return ""

    async def look(self) -> None:
        """Brings its age and its warnings up to date; to be called about once a second."""
        found = None
        if self._unsent_count:
            with suppress(sqlite3.Error):
                found = await self._ask(lambda database: database.execute(_OLDEST).fetchone())
        self._oldest_seconds = max(0.0, time.time() - found[0]) if found else 0.0
        OLDEST.set(self._oldest_seconds)
        self._warn_once()

    def _warn_once(self) -> None:
        """Logs each kind of warning when it begins."""
        kind = "full" if self.fill_ratio >= WARN_RATIO else "old" if self.warning else ""
        if kind and kind != self._warned:
            log.warning("the outbox: %s", self.warning)
        self._warned = kind

    def keep_lease(self, lease: KeptLease) -> None:
        """Keeps the lease of an account, soon; nobody waits for it."""
        row = (
            lease.account_id,
            lease.lease_id,
            lease.granted_nano_usd,
            lease.ask_time_ns,
            lease.expire_time_ns,
        )
        self._operations.put((lambda database: database.execute(_PUT_LEASE, row), _ignore))

    def forget_lease(self, account_id: str) -> None:
        """Forgets the lease of an account, soon; nobody waits for it."""
        self._operations.put((lambda database: database.execute(_DROP_LEASE, (account_id,)), _ignore))

    async def intend(self, event: UsageEvent) -> None:
        """Makes an intent durable, before a provider is called.

        Raises:
            AccountingUnavailable: if it cannot be written or the outbox is full:
                what cannot be accounted for must not be served.
        """
        if self.is_full:
            raise AccountingUnavailable("the outbox is full", retry_after_seconds=5)
        try:
            await self._ask(Put(_row(event), is_final=False))
        except sqlite3.Error as error:
            raise AccountingUnavailable("the outbox cannot be written", retry_after_seconds=5) from error
        self._intent_count += 1

    def finish(self, event: UsageEvent) -> "asyncio.Future[None]":
        """Replaces an intent by the final event; the future ends when that is durable.

        Need not be awaited, and who stops awaiting it changes nothing: a write
        that fails is tried again until it succeeds, so a settled request is
        never lost to a full disk.
        """
        self._intent_count -= 1
        return self.record(event)

    def record(self, event: UsageEvent) -> "asyncio.Future[None]":
        """The same for a request that had no intent: it was refused before any provider was called."""
        self._waiting_count += 1
        future: asyncio.Future[None] = self._loop.create_future()
        self._put_final(_row(event), future)
        return future

    def _put_final(self, row: Row, future: "asyncio.Future[None]") -> None:
        def notify(_: Any, error: Exception | None) -> None:
            if error is not None:
                self._loop.call_later(RETRY_SECONDS, self._put_final, row, future)
                return
            self._waiting_count -= 1
            self._unsent_count += 1
            self._make_ready(row)
            self.has_news.set()
            _resolve(future, None, None)

        if not self._is_closed:
            self._operations.put((Put(row, is_final=True), notify))

    def _make_ready(self, row: Row) -> None:
        if self._reads_disk:
            return
        self._ready.append(row)
        if len(self._ready) > MAX_READY_ROWS:
            self._ready.clear()
            self._reads_disk = True

    def checkpoint(self, rows: Sequence[tuple[bytes, str]]) -> "asyncio.Future[Any]":
        """Brings intents up to date: (event so far, request id) each, in one transaction."""
        return self._ask(lambda database: database.executemany(_CHECKPOINT, rows))

    async def unsent(self, limit: int) -> list[Row]:
        """Returns the oldest final events that are not sent: (request id, subject, event)."""
        if not self._reads_disk:
            return list(islice(self._ready, limit))
        future: asyncio.Future[list[Row]] = self._loop.create_future()

        def notify(rows: list[Row], error: Exception | None) -> None:
            # Told in the order of the commits: what is not among these rows is told of later.
            if error is None and len(rows) < limit:
                self._ready, self._reads_disk = deque(rows), False
            _resolve(future, rows, error)

        self._operations.put((lambda database: database.execute(_UNSENT, (limit,)).fetchall(), notify))
        return await future

    async def unsent_after(self, request_id: str, limit: int) -> list[Row]:
        """The same from the disk, of requests with a later id: for who reads on before the first are sent."""
        rows: list[Row] = await self._ask(
            lambda database: database.execute(_UNSENT_AFTER, (request_id, limit)).fetchall()
        )
        return rows

    async def mark_sent(self, request_ids: Sequence[str]) -> None:
        """Records that the bus has these events, a few hundred. They stay a while, for an audit."""
        sql = _MARK_SENT.format(", ".join("?" * len(request_ids)))
        marked = await self._ask(lambda database: database.execute(sql, tuple(request_ids)).rowcount)
        self._unsent_count -= marked
        sent = set(request_ids)
        self._ready = deque(row for row in self._ready if row[0] not in sent)

    async def take_leases(self, worker_id: str) -> KeptLeases:
        """Takes over the leases of a worker whose place this one takes; that one may still run."""
        path = self._directory / f"outbox-{worker_id}.db"
        return await asyncio.to_thread(outbox_file.take_leases, self._path, path)

    async def look_after_orphans(self, take_leases: Callable[[KeptLeases], None]) -> None:
        """Takes over what workers leave that end while this one runs, until cancelled."""
        looks: dict[Path, int] = {}
        while True:
            await asyncio.sleep(ADOPT_SECONDS)
            try:
                alone = await asyncio.to_thread(outbox_file.orphans, self._path)
                looks = {path: looks.get(path, 0) + 1 for path in alone}
                left = [path for path, count in looks.items() if count >= PATIENCE_LOOKS]
                adopted = await asyncio.to_thread(
                    outbox_file.adopt_orphans, self._path, self._worker_id, left
                )
            except OSError as error:
                log.warning("the outboxes of other workers cannot be looked at: %s", error)
                continue
            if adopted.event_count:
                self._unsent_count += adopted.event_count
                self._ready.clear()
                self._reads_disk = True
                self.has_news.set()
            take_leases(adopted.leases)

    async def forget_old(self) -> None:
        """Deletes events that were sent long ago."""
        before = int(time.time()) - KEEP_SENT_SECONDS
        await asyncio.to_thread(outbox_file.forget_sent_files, self._directory, before)
        await self._ask(lambda database: database.execute(_FORGET, (before,)))

    def _ask(self, operation: Put | Operation) -> "asyncio.Future[Any]":
        """Has the thread do something; the future gives what it returned.

        Raises:
            sqlite3.Error: as the operation or its commit did.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self._operations.put((operation, partial(_resolve, future)))
        return future

    def _write(self) -> None:
        """The writing thread: takes what has gathered, commits once, tells everybody."""
        while (entry := self._operations.get()) is not None:
            group = [entry]
            is_last = False
            while len(group) < GROUP_OPERATIONS and not self._operations.empty() and not is_last:
                entry = self._operations.get()
                if entry is None:
                    is_last = True
                else:
                    group.append(entry)
            outcomes = self._commit(group)
            self._loop.call_soon_threadsafe(_tell, outcomes)
            if is_last:
                return

    def _commit(self, group: Sequence[Entry]) -> list[Outcome]:
        """Does all in one transaction; one bad operation does not fail its neighbours."""
        try:
            outcomes = commit(self._database, group)
        except Exception as error:  # the thread must live on, whatever an operation does
            WRITE_FAILURES.inc()
            self._roll_back()
            if len(group) > 1:
                return [outcome for entry in group for outcome in self._commit([entry])]
            if not self._broken:
                log.error("the outbox cannot be written; requests are refused, final events wait: %s", error)
            self._broken = f"the outbox cannot be written: {error}"
            return [(group[0][1], None, error)]
        self._broken = ""
        return outcomes

    def _roll_back(self) -> None:
        try:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
        except sqlite3.Error as error:
            log.error("the outbox cannot roll back: %s", error)

    async def _take_lock(self) -> Any:
        """Another worker holds it for a moment while it looks for orphans."""
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while True:
            try:
                return outbox_file.lock(self._path)
            except OutboxLocked:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(LOCK_POLL_SECONDS)


def _row(event: UsageEvent) -> Row:
    return event.request_id, subject_of(event), event.SerializeToString()


def _resolve(future: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if future.done():
        return  # who asked has left
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _ignore(_: Any, error: Exception | None) -> None:
    if error is not None:
        log.warning("a lease is not kept for the next start: %s", error)


def _tell(outcomes: Sequence[Outcome]) -> None:
    for notify, result, error in outcomes:
        notify(result, error)
