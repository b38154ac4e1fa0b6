"""Reads the books: U of the provider, O of the outboxes, P of PostgreSQL, H of ClickHouse, L of Lago.

The sixth, K, is what the callers of `load.py` note.
"""

import json
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import clickhouse_connect
import nats
from nats.js.api import ConsumerInfo

from lurus.usage.v1.usage_pb2 import TERMINAL_REFUSED, UsageEvent
from lurus_common import bus
from tests.chaos.load import Seen
from tests.faults.calls import ServedCall
from tests.support.fake_lago import FakeLago

FINAL = 1
CONNECT_SECONDS = 5.0
MARK = re.compile(r"[a-z]+/\d{6}")
# The consumers that keep books.
DURABLES = ("billing", "log", "lago")
TOKENS = (
    "input",
    "cache_read",
    "cache_write_5m",
    "cache_write_30m",
    "cache_write_1h",
    "cache_write_12h",
    "output",
)

_COLUMNS = ", ".join(f"{name}_tokens" for name in TOKENS)
_USAGE = f"""
SELECT transaction_id, account_id, debit_account_id, amount_nano_usd, token_source, {_COLUMNS}
FROM billing.transfer WHERE kind = 1
"""
_BOOKED = """
SELECT id, sum(change)::bigint AS change FROM (
    SELECT credit_account_id AS id, amount_nano_usd AS change FROM billing.transfer
    UNION ALL SELECT debit_account_id, -amount_nano_usd FROM billing.transfer
) AS moves GROUP BY id
"""
_USED = (
    "SELECT account_id, sum(amount_nano_usd)::bigint AS used FROM billing.usage_bucket GROUP BY account_id"
)
# A reservation ends with its time, swept or not: the sweeper comes every 30 s.
_OLD_HOLDS = """
SELECT reservation_id AS id FROM billing.reservation
WHERE state = 1 AND expire_time < now() - interval '2 minutes'
UNION ALL SELECT lease_id FROM billing.lease WHERE expire_time > now() + make_interval(secs => $1)
"""
_HOLDS = "SELECT (SELECT count(*) FROM billing.reservation) + (SELECT count(*) FROM billing.lease)"
_LETTERS = "SELECT cause, request_id FROM billing.dead_letter"
_LOGGED = f"SELECT request_id, account_id, terminal, cost_nano_usd, {_COLUMNS} FROM usage_events FINAL"


@dataclass(frozen=True, slots=True)
class Served:
    """A call that reached the provider: what left it."""

    mark: str
    answer_id: str
    is_streaming: bool
    pause_ms: int
    # Words that have left, or what was stated of them, whichever is more; the final count, if it was sent.
    output: int
    usage: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Booked:
    """A row of the ledger."""

    request_id: str
    account_id: str
    cost_nano_usd: int
    token_source: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Logged:
    """A row of the request log."""

    request_id: str
    account_id: str
    terminal: str
    cost_nano_usd: int
    tokens: tuple[int, ...]


@dataclass(slots=True)
class Bank:
    """The rest of PostgreSQL: by ledger account what it holds, and what the transfers say that it should."""

    balances: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    bucketed: dict[str, int] = field(default_factory=dict)
    hold_count: int = 0
    old_holds: list[str] = field(default_factory=list)
    letters: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Books:
    """All ledgers at one moment."""

    served: list[Served]
    seen: Sequence[Seen]
    # Final events by request id, the latest copy; what is not sent; how many files hold each.
    events: dict[str, UsageEvent] = field(default_factory=dict)
    unsent: list[str] = field(default_factory=list)
    booked: list[Booked] = field(default_factory=list)
    logged: list[Logged] = field(default_factory=list)
    # What Lago would bill: account and nano-USD of each event of a request.
    exported: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    bank: Bank = field(default_factory=Bank)
    # Events that a consumer has not acknowledged.
    pending: int = 0


def exported_of(lago: FakeLago) -> dict[str, list[tuple[str, int]]]:
    """Returns what Lago would bill."""
    return {
        request_id: [
            (event["external_subscription_id"], int(event["properties"]["cost_nano_usd"])) for event in events
        ]
        for request_id, events in lago.billed().items()
    }


def served_of(calls: Sequence[ServedCall]) -> list[Served]:
    """Returns the provider's ledger."""
    found = []
    for call in calls:
        mark = MARK.search(json.dumps(call.asked))
        told = _usage(call.sent_usage) if call.sent_usage else None
        is_final = call.is_terminal_sent or call.is_complete
        found.append(
            Served(
                mark=mark[0] if mark else f"unmarked {call.number}",
                answer_id=call.answer_id,
                is_streaming=call.is_streaming,
                pause_ms=int(call.model.rpartition("-")[2]),
                # Some dialects begin with a count of 1, before any word.
                output=max(call.sent_text.count(" "), told[2] if told else 0),
                usage=told if is_final else None,
            )
        )
    return found


def _usage(usage: dict[str, Any]) -> tuple[int, int, int]:
    """Returns fresh input, cache reads and output, from any dialect's words."""
    if "cache_read_input_tokens" in usage:
        return usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]
    side, other = ("prompt", "completion") if "prompt_tokens" in usage else ("input", "output")
    cached = usage[f"{side}_tokens_details"]["cached_tokens"]
    return usage[f"{side}_tokens"] - cached, cached, usage[f"{other}_tokens"]


def read_outboxes(directory: Path, books: Books) -> None:
    """Reads all outboxes, also those whose worker is gone."""
    for path in sorted([*directory.glob("outbox-*.db"), *directory.glob("sent-*.db")]):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            for request_id, state, payload in database.execute(
                "SELECT request_id, state, payload FROM usage"
            ):
                if state <= FINAL:
                    books.unsent.append(request_id)
                books.events[request_id] = UsageEvent.FromString(payload)


async def read_ledger(url: str, lease_seconds: float, books: Books) -> None:
    """Reads PostgreSQL."""
    connection = await asyncpg.connect(url, timeout=CONNECT_SECONDS)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            for row in await connection.fetch(_USAGE):
                sign = 1 if row["debit_account_id"] == row["account_id"] else -1
                tokens = tuple(row[f"{name}_tokens"] or 0 for name in TOKENS)
                cost = sign * row["amount_nano_usd"]
                books.booked.append(
                    Booked(row["transaction_id"], row["account_id"], cost, row["token_source"], tokens)
                )
            bank = books.bank
            for row in await connection.fetch("SELECT * FROM billing.ledger_account"):
                bank.balances[row["ledger_account_id"]] = row["balance_nano_usd"]
                bank.used[row["ledger_account_id"]] = row["used_nano_usd"]
            bank.moved = {row["id"]: row["change"] for row in await connection.fetch(_BOOKED)}
            bank.bucketed = {row["account_id"]: row["used"] for row in await connection.fetch(_USED)}
            bank.hold_count = await connection.fetchval(_HOLDS)
            bank.old_holds = [row["id"] for row in await connection.fetch(_OLD_HOLDS, lease_seconds)]
            bank.letters = [f"{row['cause']} {row['request_id']}" for row in await connection.fetch(_LETTERS)]
    finally:
        await connection.close()


def read_log(url: str, books: Books) -> None:
    """Reads ClickHouse."""
    parts = urlsplit(url)
    client = clickhouse_connect.get_client(
        host=parts.hostname or "",
        port=parts.port or 0,
        username=parts.username or "",
        password=parts.password or "",
        database=parts.path.strip("/"),
        connect_timeout=int(CONNECT_SECONDS),
    )
    try:
        for request_id, account_id, terminal, cost, *tokens in client.query(_LOGGED).result_rows:
            books.logged.append(Logged(request_id, account_id, terminal, cost, tuple(tokens)))
    finally:
        client.close()


async def pending_events(url: str) -> int:
    """Returns how many events a consumer has not acknowledged."""
    client = await nats.connect(url, connect_timeout=int(CONNECT_SECONDS), max_reconnect_attempts=1)
    try:
        found: list[ConsumerInfo] = await client.jetstream().consumers_info(bus.STREAM_NAME)
        return sum(
            (info.num_pending or 0) + (info.num_ack_pending or 0) for info in found if info.name in DURABLES
        )
    finally:
        await client.close()


def is_refused(event: UsageEvent) -> bool:
    """Whether an event is of a request that was refused: it has a row in the log and none in the ledger."""
    return event.terminal == TERMINAL_REFUSED and not event.cost_nano_usd and not event.HasField("tokens")
