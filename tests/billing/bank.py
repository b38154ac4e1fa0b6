"""Real stores, as state machines call them: without an event loop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import asyncpg

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing.account_store import AccountStore
from lurus_billing.budget_store import BudgetStore
from lurus_billing.reservation_store import ReservationStore
from lurus_billing.store import LedgerStore
from lurus_common.ids import new_id

Result = TypeVar("Result")
LEASE = 300
HOUR = 3600


async def rich(ledger_store: LedgerStore, account_id: str, amount: int) -> None:
    """Tops an account up."""
    await ledger_store.move(
        pb.CreateTransactionRequest(
            transaction_id=new_id("tx"),
            account_id=account_id,
            kind=pb.TRANSACTION_KIND_TOP_UP,
            amount_nano_usd=amount,
        )
    )


def ask(account_id: str, amount: int = LEASE, previous: str = "", spent: int = 0) -> pb.LeaseQuotaRequest:
    """What a worker asks for."""
    return pb.LeaseQuotaRequest(
        account_id=account_id,
        worker_id="worker-0",
        amount_nano_usd=amount,
        previous_lease_id=previous,
        previous_spent_nano_usd=spent,
    )


class Bank:
    """The stores on a pool and a loop of their own."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pool: asyncpg.Pool, make_event: Callable[..., UsageEvent]
    ) -> None:
        self.run_until = loop.run_until_complete
        self.pool = pool
        self.ledger = LedgerStore(pool)
        self.budgets = BudgetStore(pool, LEASE, HOUR)
        self.accounts = AccountStore(pool)
        self.reservations = ReservationStore(pool)
        self.make_event = make_event

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.run_until(work)
