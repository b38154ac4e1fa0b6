"""Budgets as streams over real gRPC: whole at once, then at every change, whoever makes it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import grpc.aio
import pytest
from tests.billing.bank import rich
from tests.billing.calls import new_account, refused, until

from lurus.billing.v1 import billing_pb2 as pb
from lurus.billing.v1.billing_pb2_grpc import BillingServiceStub
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing import budget_watch
from lurus_billing.account_store import AccountStore
from lurus_billing.budget_store import BudgetStore
from lurus_billing.budget_watch import BudgetWatch
from lurus_billing.reservation_store import ReservationStore
from lurus_billing.server import billing_server
from lurus_billing.store import LedgerStore
from lurus_common.ids import new_id
from lurus_common.rpc import error_of, open_channel
from lurus_common.settings import Settings

pytestmark = pytest.mark.anyio
Make = Callable[..., UsageEvent]


class _Screen:
    """What a watcher has seen."""

    def __init__(self, stub: Any, account_id: str) -> None:
        self.seen: list[pb.WatchBudgetResponse] = []
        self.end: grpc.aio.AioRpcError | None = None
        self._call = stub.WatchBudget(pb.WatchBudgetRequest(account_id=account_id))
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for response in self._call:
                self.seen.append(response)
        except grpc.aio.AioRpcError as error:
            self.end = error

    def last(self) -> tuple[int, int, int, int]:
        balance = self.seen[-1].balance
        return (
            balance.balance_nano_usd,
            balance.leased_nano_usd,
            balance.reserved_nano_usd,
            balance.available_nano_usd,
        )

    async def shows(self, *numbers: int, seconds: float = 20.0) -> None:
        """Waits until it shows balance, leased, reserved, available."""

        async def check() -> bool:
            return bool(self.seen) and self.last() == numbers

        await until(check, seconds)

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.wait([self._task])


@asynccontextmanager
async def watching(stub: Any, account_id: str) -> AsyncIterator[_Screen]:
    screen = _Screen(stub, account_id)
    try:
        yield screen
    finally:
        await screen.close()


@pytest.fixture
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen in time was pushed."""
    monkeypatch.setattr(budget_watch, "POLL_SECONDS", 60.0)


@pytest.mark.usefixtures("never_polls")
class TestPush:
    async def test_every_way_to_change_a_budget_is_pushed(
        self, stub: Any, pool: asyncpg.Pool, ledger_store: LedgerStore, make_event: Make
    ) -> None:
        name = await new_account(stub)
        async with watching(stub, name) as screen:
            await screen.shows(0, 0, 0, 0)
            assert screen.seen[0].quota.account_id == name
            await rich(ledger_store, name, 1000)
            await screen.shows(1000, 0, 0, 1000)
            lease = await stub.LeaseQuota(
                pb.LeaseQuotaRequest(account_id=name, worker_id="w", amount_nano_usd=200)
            )
            await screen.shows(1000, 200, 0, 800)
            await ledger_store.settle([make_event(name, 50, lease_id=lease.lease_id)])
            await screen.shows(950, 150, 0, 800)
            returned = pb.LeaseQuotaRequest(
                account_id=name,
                worker_id="w",
                previous_lease_id=lease.lease_id,
                previous_spent_nano_usd=50,
            )
            await stub.LeaseQuota(returned)
            await screen.shows(950, 0, 0, 950)
            first = pb.CreateReservationRequest(
                reservation_id=new_id("rsv"), account_id=name, amount_nano_usd=300
            )
            await stub.CreateReservation(first)
            await screen.shows(950, 0, 300, 650)
            settle = pb.SettleReservationRequest(reservation_id=first.reservation_id, amount_nano_usd=100)
            await stub.SettleReservation(settle)
            await screen.shows(850, 0, 0, 850)
            second = pb.CreateReservationRequest(
                reservation_id=new_id("rsv"), account_id=name, amount_nano_usd=5
            )
            await stub.CreateReservation(second)
            await screen.shows(850, 0, 5, 845)
            await stub.ReleaseReservation(pb.ReleaseReservationRequest(reservation_id=second.reservation_id))
            await screen.shows(850, 0, 0, 850)
            quota = pb.Quota(total_limit_nano_usd=350)
            await stub.UpdateQuota(pb.UpdateQuotaRequest(account_id=name, quota=quota))
            await screen.shows(850, 0, 0, 200)
            assert screen.seen[-1].quota.total_left_nano_usd == 200
            await stub.UpdateQuota(pb.UpdateQuotaRequest(account_id=name, quota=pb.Quota()))
            account = pb.Account(account_id=name, credit_limit_nano_usd=7)
            await stub.UpdateAccount(pb.UpdateAccountRequest(account=account))
            await screen.shows(850, 0, 0, 857)
            third = pb.CreateReservationRequest(
                reservation_id=new_id("rsv"), account_id=name, amount_nano_usd=1
            )
            third.lifetime_duration.FromMilliseconds(2000)
            await stub.CreateReservation(third)
            await screen.shows(850, 0, 1, 856)
            await asyncio.sleep(2.1)
            await ReservationStore(pool).expire()
            await screen.shows(850, 0, 0, 857)

    async def test_it_is_told_at_once_and_only_when_something_changed(
        self, stub: Any, pool: asyncpg.Pool, ledger_store: LedgerStore
    ) -> None:
        name, other = await new_account(stub), await new_account(stub)
        async with watching(stub, name) as screen, watching(stub, other) as bystander:
            await screen.shows(0, 0, 0, 0)
            await bystander.shows(0, 0, 0, 0)
            await asyncio.sleep(0.2)  # past the pause after the first
            start = time.monotonic()
            await rich(ledger_store, name, 5)
            await screen.shows(5, 0, 0, 5)
            seconds = time.monotonic() - start
            for _ in range(5):  # says so, and changes nothing
                await pool.execute("SELECT pg_notify($1, $2)", budget_watch.CHANNEL, other)
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)
            assert (len(screen.seen), len(bystander.seen)) == (2, 1)
        print(f"\nshown {seconds * 1000:.0f} ms after the call that changed it began")

    async def test_a_storm_of_changes_is_told_in_few_words_and_to_the_end(
        self, stub: Any, ledger_store: LedgerStore, make_event: Make
    ) -> None:
        name = await new_account(stub)
        async with watching(stub, name) as screen:
            await screen.shows(0, 0, 0, 0)
            start = time.monotonic()
            for _ in range(100):
                await ledger_store.settle([make_event(name, 1)])
            await screen.shows(-100, 0, 0, 0)
            assert len(screen.seen) <= 3 + (time.monotonic() - start) / budget_watch.PAUSE_SECONDS

    async def test_it_goes_on_after_its_listener_was_cut(
        self, stub: Any, pool: asyncpg.Pool, ledger_store: LedgerStore
    ) -> None:
        name = await new_account(stub)
        async with watching(stub, name) as screen:
            await screen.shows(0, 0, 0, 0)
            await pool.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE query LIKE 'LISTEN%' OR query = 'SELECT 1'"
            )
            await rich(ledger_store, name, 5)
            await screen.shows(5, 0, 0, 5, seconds=10.0)


class TestWatch:
    async def test_what_only_time_changes_is_polled(self, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(budget_watch, "POLL_SECONDS", 0.2)
        name = await new_account(stub, credit_limit_nano_usd=10)
        async with watching(stub, name) as screen:
            request = pb.CreateReservationRequest(
                reservation_id=new_id("rsv"), account_id=name, amount_nano_usd=4
            )
            request.lifetime_duration.FromMilliseconds(700)
            await stub.CreateReservation(request)
            await screen.shows(0, 0, 4, 6)
            await screen.shows(0, 0, 0, 10)

    async def test_an_unknown_account_is_not_found(self, stub: Any) -> None:
        call = stub.WatchBudget(pb.WatchBudgetRequest(account_id="acct_nobody"))
        assert (await refused(anext(aiter(call)))).reason == "NOT_FOUND"

    async def test_the_server_stops_at_once_with_a_watcher(
        self, settings: Settings, pool: asyncpg.Pool
    ) -> None:
        async with AsyncExitStack() as stack:
            async with billing_server(settings) as port:
                address = f"127.0.0.1:{port}"
                channel = await stack.enter_async_context(open_channel(address, settings.admin_token))
                stub = BillingServiceStub(channel)
                screen = _Screen(stub, await new_account(stub))
                await screen.shows(0, 0, 0, 0)
                start = time.monotonic()
            assert time.monotonic() - start < 15

            async def ended() -> bool:
                return screen.end is not None

            await until(ended, 2.0)
            assert screen.end is not None
            assert error_of(screen.end).reason == "OVERLOADED"
            await screen.close()

    async def test_watchers_that_leave_leave_nothing(self, pool: asyncpg.Pool, account_id: str) -> None:
        watch = BudgetWatch(BudgetStore(pool, 1, 1))
        streams = [watch.responses(account_id) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        assert [len(events) for events in watch._watchers.values()] == [3]
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]  # a generator
        assert not watch._watchers

    async def test_a_change_makes_the_watchers_of_its_account_look_and_nobody_else(
        self, pool: asyncpg.Pool, accounts: AccountStore
    ) -> None:
        names = [(await accounts.create(pb.Account(account_id=new_id("acct")))).account_id for _ in range(3)]
        looks: list[str] = []

        class Counting(BudgetStore):
            async def both(self, account_id: str) -> pb.WatchBudgetResponse:
                looks.append(account_id)
                return await super().both(account_id)

        watch = BudgetWatch(Counting(pool, 1, 1))
        streams = [watch.responses(name) for name in names]
        for stream in streams:
            await anext(stream)
        waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await asyncio.sleep(2 * budget_watch.PAUSE_SECONDS)
        looks.clear()
        watch.heard(names[0])
        await asyncio.sleep(0.1)
        assert looks == names[:1]
        watch.heard(None)  # some may have been missed
        await asyncio.sleep(0.1)
        assert sorted(looks[1:]) == sorted(names)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
