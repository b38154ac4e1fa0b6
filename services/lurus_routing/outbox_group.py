"""What is written to an outbox at the same moment: one transaction, and mostly one statement."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

# Puts intents and finals alike: one statement for all is a transaction by itself. With a BEGIN and a COMMIT
# around it the thread would give up the interpreter, and wait for it again, twice more.
# A second intent of a request has no payload to put, and so is refused.
_PUT = (
    "INSERT INTO usage VALUES {} ON CONFLICT (request_id) DO UPDATE SET state = 1, "
    "payload = CASE excluded.state WHEN 1 THEN excluded.payload END, change_time = excluded.change_time "
    "WHERE state = 0 OR excluded.state = 0"
)
_PUT_VALUES = "(?, ?, ?, ?, unixepoch())"
_STATEMENT_ROWS = 64

Row: TypeAlias = tuple[str, str, bytes]
Operation: TypeAlias = Callable[[sqlite3.Connection], Any]
# Told on the event loop what an operation returned, or why it failed.
Notify: TypeAlias = Callable[[Any, Exception | None], None]


@dataclass(frozen=True, slots=True)
class Put:
    """A row to be put: the commonest operation, of which many share a statement."""

    row: Row
    is_final: bool


Entry: TypeAlias = tuple[Put | Operation, Notify]
Outcome: TypeAlias = tuple[Notify, Any, Exception | None]


def commit(database: sqlite3.Connection, group: Sequence[Entry]) -> list[Outcome]:
    """Does all in one transaction; returns the outcomes in the order of the effects.

    Raises:
        Exception: whatever an operation raised, or sqlite3.Error; the transaction may still be open.
    """
    if len(group) <= _STATEMENT_ROWS and all(isinstance(operation, Put) for operation, _ in group):
        return _execute(database, group)
    database.execute("BEGIN IMMEDIATE")
    outcomes = _execute(database, group)
    database.execute("COMMIT")
    return outcomes


def _execute(database: sqlite3.Connection, group: Sequence[Entry]) -> list[Outcome]:
    """Puts intents, then finals, then does the rest; returns the outcomes in the order of the effects."""
    others: list[tuple[Operation, Notify]] = []
    puts: tuple[list[Put], list[Put]] = ([], [])
    notifies: tuple[list[Notify], list[Notify]] = ([], [])
    for operation, notify in group:
        if isinstance(operation, Put):
            puts[operation.is_final].append(operation)
            notifies[operation.is_final].append(notify)
        else:
            others.append((operation, notify))
    _put_all(database, [*puts[False], *puts[True]])
    outcomes: list[Outcome] = [(notify, None, None) for notify in (*notifies[False], *notifies[True])]
    return outcomes + [(notify, operation(database), None) for operation, notify in others]


def _put_all(database: sqlite3.Connection, puts: Sequence[Put]) -> None:
    for begin in range(0, len(puts), _STATEMENT_ROWS):
        part = puts[begin : begin + _STATEMENT_ROWS]
        fields: list[object] = []
        for put in part:
            request_id, subject, payload = put.row
            fields += (request_id, int(put.is_final), subject, payload)
        database.execute(_put_statement(len(part)), fields)


@cache
def _put_statement(row_count: int) -> str:
    return _PUT.format(", ".join([_PUT_VALUES] * row_count))
