"""Events for a person, in PostgreSQL: those that cannot be read or booked, those that repeat an id
with another content, and those that Lago refuses.

A parked event can be replayed, once what was wrong is mended, and so can one for Lago. A conflict cannot:
its request is charged, and a difference is corrected by another transfer.
"""

import hashlib
from collections.abc import Mapping

import asyncpg
from google.protobuf.message import DecodeError

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing.key_store import fitting
from lurus_billing.ledger import Entry
from lurus_common import postgres
from lurus_common.consumer import UNREADABLE, ParkedEvent
from lurus_common.errors import FailedPrecondition, NotFound
from lurus_common.paging import decode_token, encode_token, page_limit
from lurus_common.postgres import Connection, transaction

REPLAYED = "replayed: booked"

EXPORTED = "replayed: Lago has it"

_PARKED, _CONFLICT, _EXPORT = "parked", "conflict", "export"
_CAUSES: Mapping[str, pb.DeadLetterCause.ValueType] = {
    _PARKED: pb.DEAD_LETTER_CAUSE_PARKED,
    _CONFLICT: pb.DEAD_LETTER_CAUSE_CONFLICT,
    _EXPORT: pb.DEAD_LETTER_CAUSE_EXPORT,
}
_WORDS = {number: word for word, number in _CAUSES.items()}
_LAST_NUMBER = 2**63 - 1

_SET_ASIDE = """
INSERT INTO billing.dead_letter (cause, stream_sequence, subject, request_id, payload, payload_sha, reason)
VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING dead_letter_id
"""
_LIST = """
SELECT * FROM billing.dead_letter
WHERE dead_letter_id < $1 AND ($2 = '' OR cause = $2) AND ($3 OR resolve_time IS NULL)
ORDER BY dead_letter_id DESC LIMIT $4
"""
_RESOLVE = """
UPDATE billing.dead_letter SET resolve_time = now(), resolution = $2
WHERE dead_letter_id = $1 AND resolve_time IS NULL
"""
_COUNT = "SELECT cause, count(*) FROM billing.dead_letter WHERE resolve_time IS NULL GROUP BY cause"


async def park(pool: asyncpg.Pool, parked: ParkedEvent) -> None:
    """Keeps an event that cannot be processed; the same one again changes nothing."""
    await _set_aside(pool, parked, _PARKED)


async def park_export(pool: asyncpg.Pool, parked: ParkedEvent) -> None:
    """The same for one that Lago refuses. One that cannot be read is parked as such already."""
    if not parked.reason.startswith(UNREADABLE):
        await _set_aside(pool, parked, _EXPORT)


async def _set_aside(pool: asyncpg.Pool, parked: ParkedEvent, cause: str) -> None:
    async with postgres.connection(pool) as connection:
        await connection.fetchval(
            _SET_ASIDE,
            cause,
            parked.stream_sequence,
            _storable(parked.subject),
            "",
            parked.payload,
            hashlib.sha256(parked.payload).digest(),
            _storable(parked.reason),
        )


async def keep_conflict(connection: Connection, entry: Entry) -> bool:
    """Keeps an event that repeats an id with another content; returns whether it is new."""
    payload = entry.event.SerializeToString() if entry.event else b""
    reason = "the request id is booked with another content"
    found = await connection.fetchval(
        _SET_ASIDE, _CONFLICT, 0, "", entry.transaction_id, payload, entry.body_sha, reason
    )
    return found is not None


class DeadLetterStore:
    """Dead letters."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def page(self, request: pb.ListDeadLettersRequest) -> pb.ListDeadLettersResponse:
        """Returns a page of letters, newest first; as many as fit one message."""
        limit = page_limit(request.page_size)
        position = decode_token(request.page_token, int) or [_LAST_NUMBER]
        cause = _WORDS.get(request.cause, "")
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(_LIST, position[0], cause, request.includes_resolved, limit + 1)
        letters = fitting([_letter(row) for row in rows[:limit]])
        token = encode_token(rows[len(letters) - 1]["dead_letter_id"]) if len(letters) < len(rows) else ""
        return pb.ListDeadLettersResponse(dead_letters=letters, next_page_token=token)

    async def find(self, dead_letter_id: str) -> pb.DeadLetter:
        """Returns a letter.

        Raises:
            NotFound: if there is none.
        """
        async with postgres.connection(self._pool) as connection:
            return _letter(await _row(connection, dead_letter_id))

    async def resolve(self, dead_letter_id: str, resolution: str) -> pb.DeadLetter:
        """Marks a letter as dealt with; one that is already changes nothing.

        Raises:
            NotFound: if there is none.
        """
        async with transaction(self._pool) as connection:
            await connection.execute(_RESOLVE, _number(dead_letter_id), resolution)
            return _letter(await _row(connection, dead_letter_id))

    async def open_counts(self) -> dict[str, int]:
        """How many letters wait for a person, by cause."""
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(_COUNT)
        return {**dict.fromkeys(_CAUSES, 0), **{row["cause"]: row["count"] for row in rows}}


def replayable(letter: pb.DeadLetter) -> UsageEvent:
    """Returns the event of an open letter that may be booked.

    Raises:
        FailedPrecondition: if it may not, or cannot be read.
    """
    if letter.cause == pb.DEAD_LETTER_CAUSE_CONFLICT:
        raise FailedPrecondition(
            "a conflict is not replayed: its request is charged; correct it with CreateTransaction",
            resource="dead_letter",
            id=letter.dead_letter_id,
        )
    try:
        return UsageEvent.FromString(letter.payload)
    except DecodeError as error:
        raise unbookable(letter, "it cannot be read") from error


def unbookable(letter: pb.DeadLetter, reason: str) -> FailedPrecondition:
    """What is told of a letter that still cannot be booked."""
    return FailedPrecondition(
        f"the event still cannot be booked: {reason}", resource="dead_letter", id=letter.dead_letter_id
    )


async def _row(connection: Connection, dead_letter_id: str) -> asyncpg.Record:
    query = "SELECT * FROM billing.dead_letter WHERE dead_letter_id = $1"
    row = await connection.fetchrow(query, _number(dead_letter_id))
    if row is None:
        raise NotFound("no such dead letter", resource="dead_letter", id=dead_letter_id)
    return row


def _number(dead_letter_id: str) -> int:
    return int(dead_letter_id.removeprefix("dl_"))


def _letter(row: asyncpg.Record) -> pb.DeadLetter:
    return pb.DeadLetter(
        dead_letter_id=f"dl_{row['dead_letter_id']}",
        cause=_CAUSES[row["cause"]],
        request_id=row["request_id"],
        reason=row["reason"],
        payload=row["payload"],
        subject=row["subject"],
        stream_sequence=row["stream_sequence"],
        create_time=row["create_time"],
        resolve_time=row["resolve_time"],
        resolution=row["resolution"],
    )


def _storable(text: str) -> str:
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
