"""Reads what all outboxes beside ours have, for an audit. Nobody who writes them notices."""

import sqlite3
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from google.protobuf.message import DecodeError

from lurus.routing.v1.routing_pb2 import ListOutboxEventsResponse
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_routing.outbox_file import BUSY_SECONDS, FINAL, SENT, id_at

ROWS = 500
# A request has its id from when it began: one that is finished now may have begun so long ago. What took
# longer is not seen here, which says nothing of it: an outbox need not have anything.
LONGEST_REQUEST_NS = 3600 * 1_000_000_000
# A row changes last when it is made final or sent, which is never before the request was finished. Telling by
# that time leaves payloads of older requests unread. Seconds, so one less.
_ROWS = """
SELECT request_id, state, payload FROM usage
WHERE request_id > ? AND request_id < ? AND state IN (?, ?) AND change_time >= ? ORDER BY request_id LIMIT ?
"""


def read_outboxes(directory: Path, start_ns: int, end_ns: int) -> Generator[ListOutboxEventsResponse]:
    """Gives the final events of requests that were finished in a span of time, in Unix nanoseconds.

    Raises:
        sqlite3.Error, OSError: a file cannot be read.
    """
    for path in sorted([*directory.glob("outbox-*.db"), *directory.glob("sent-*.db")]):
        try:
            yield from _read(path, start_ns, end_ns)
        except sqlite3.OperationalError:
            # One that was adopted meanwhile is read under its new name, or with the rows of its adopter.
            if path.exists():
                raise


def _read(path: Path, start_ns: int, end_ns: int) -> Generator[ListOutboxEventsResponse]:
    after, before = id_at(start_ns - LONGEST_REQUEST_NS), id_at(end_ns + 1_000_000)
    changed = start_ns // 1_000_000_000 - 1
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, check_same_thread=False)) as database:
        while rows := database.execute(_ROWS, (after, before, FINAL, SENT, changed, ROWS)).fetchall():
            after = rows[-1][0]
            response = ListOutboxEventsResponse()
            for _, state, payload in rows:
                event = _event(payload)
                if event is not None and start_ns <= event.event_time.ToNanoseconds() < end_ns:
                    (response.sent_events if state == SENT else response.unsent_events).append(event)
            if response.sent_events or response.unsent_events:
                yield response


def _event(payload: bytes) -> UsageEvent | None:
    try:
        return UsageEvent.FromString(payload)
    except DecodeError:
        return None  # the consumers park it for a person
