"""What was booked for a request, with the event that it was booked for."""

from dataclasses import dataclass

import asyncpg

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing.booking import transaction_of
from lurus_common.errors import NotFound
from lurus_common.postgres import transaction

MAX_CORRECTIONS = 100

_FIND = "SELECT * FROM billing.transfer WHERE transaction_id = $1 AND kind = $2"
_CORRECTIONS = """
SELECT * FROM billing.transfer WHERE corrects_transaction_id = $1
ORDER BY create_time, transaction_id LIMIT $2
"""


@dataclass(frozen=True, slots=True)
class Booked:
    """One request in the ledger. `event` is None if it was booked without one."""

    transaction: pb.Transaction
    event: UsageEvent | None
    corrections: list[pb.Transaction]


class ReceiptStore:
    """Requests in the ledger."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def find(self, request_id: str) -> Booked:
        """Returns what was booked for a request, or for a reservation.

        Raises:
            NotFound: if nothing was.
        """
        async with transaction(self._pool, read_only=True) as connection:
            row = await connection.fetchrow(_FIND, request_id, pb.TRANSACTION_KIND_USAGE)
            if row is None:
                raise NotFound("nothing is booked for this request", resource="receipt", id=request_id)
            payload = await connection.fetchval(
                "SELECT payload FROM billing.usage_event WHERE request_id = $1", request_id
            )
            corrections = await connection.fetch(_CORRECTIONS, request_id, MAX_CORRECTIONS)
        event = None if payload is None else UsageEvent.FromString(payload)
        return Booked(transaction_of(row), event, [transaction_of(one) for one in corrections])
