"""Quotas as days and months go by in the account's own time zone, in a real PostgreSQL."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from tests.billing.bank import HOUR, LEASE, ask, rich

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing import budget_store
from lurus_billing.account_store import AccountStore
from lurus_billing.budget_store import BudgetStore, read_budget
from lurus_billing.store import LedgerStore
from lurus_common.ids import new_id
from lurus_common.postgres import Connection

pytestmark = pytest.mark.anyio
Make = Callable[..., UsageEvent]
STEP = timedelta(minutes=20)


async def account_in(accounts: AccountStore, zone: str) -> str:
    return (await accounts.create(pb.Account(account_id=new_id("acct"), time_zone=zone))).account_id


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2024-03-31", 23),
        ("Europe/Berlin", "2024-10-27", 25),
        ("Africa/Cairo", "2024-04-26", 23),  # its clocks jump at midnight: the day begins at 01:00
        ("Australia/Lord_Howe", "2024-04-07", 24.5),
        ("Asia/Kathmandu", "2024-02-29", 24),
        ("America/St_Johns", "2023-12-31", 24),
        ("", "2024-01-31", 24),
    ],
)
async def test_use_counts_for_its_own_day_and_month_as_they_go_by(
    pool: asyncpg.Pool,
    accounts: AccountStore,
    ledger_store: LedgerStore,
    make_event: Make,
    zone: str,
    day: str,
    hours: float,
) -> None:
    """An event every 20 minutes from the day before to the day after, and a look after each."""
    name, clock = await account_in(accounts, zone), ZoneInfo(zone or "UTC")
    noon = datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=clock)
    booked: list[datetime] = []
    lengths: set[timedelta] = set()
    moment = noon.astimezone(UTC) - timedelta(hours=30)
    while moment < noon.astimezone(UTC) + timedelta(hours=30):
        await ledger_store.settle([make_event(name, 1, event_time=moment)])
        booked.append(moment)
        async with pool.acquire() as connection:
            budget = await read_budget(connection, name, moment)
        local = [one.astimezone(clock) for one in booked]
        now = local[-1]
        daily, monthly, total = budget.funds.caps
        assert daily.used_nano_usd == sum(one.date() == now.date() for one in local), now
        assert monthly.used_nano_usd == sum((one.year, one.month) == (now.year, now.month) for one in local)
        assert total.used_nano_usd == len(booked)
        assert budget.periods.day_start <= moment < budget.periods.day_end
        if now.date().isoformat() == day:
            lengths.add(budget.periods.day_end - budget.periods.day_start)
        moment += STEP
    assert lengths == {timedelta(hours=hours)}


async def test_a_cap_that_is_used_up_is_lent_again_when_its_period_begins_anew(
    pool: asyncpg.Pool,
    accounts: AccountStore,
    ledger_store: LedgerStore,
    make_event: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock of the database is set, minute by minute, around a midnight that ends a month."""
    budgets = BudgetStore(pool, LEASE, HOUR)
    name = await account_in(accounts, "America/New_York")
    await rich(ledger_store, name, 10_000)
    await budgets.set_quota(name, pb.Quota(daily_limit_nano_usd=100, monthly_limit_nano_usd=150))
    locked = budget_store.lock_account

    async def lend_at(text: str) -> tuple[int, str, str]:
        async def lock_account(connection: Connection, account_id: str) -> datetime:
            await locked(connection, account_id)
            return datetime.fromisoformat(text)

        monkeypatch.setattr(budget_store, "lock_account", lock_account)
        answer = await budgets.lend(ask(name))
        reset = answer.reset_time.ToJsonString() if answer.HasField("reset_time") else ""
        if answer.lease_id:  # spent at once, and returned
            moment = datetime.fromisoformat(text)
            event = make_event(name, answer.amount_nano_usd, event_time=moment, lease_id=answer.lease_id)
            await ledger_store.settle([event])
        return answer.amount_nano_usd, answer.refusal_reason, reset

    # New York leaves summer time on 2024-11-03, and October ends at 04:00 UTC.
    assert await lend_at("2024-10-30T20:00:00+00:00") == (100, "", "")
    assert await lend_at("2024-10-31T03:59:59+00:00") == (0, "QUOTA_EXCEEDED", "2024-10-31T04:00:00Z")
    assert await lend_at("2024-10-31T04:00:00+00:00") == (50, "", "")
    assert await lend_at("2024-11-01T03:59:59+00:00") == (0, "QUOTA_EXCEEDED", "2024-11-01T04:00:00Z")
    assert await lend_at("2024-11-01T04:00:00+00:00") == (100, "", "")
    # A day of 25 hours, in a month that is used up before.
    assert await lend_at("2024-11-03T12:00:00+00:00") == (50, "", "")
    assert await lend_at("2024-11-04T05:00:00+00:00") == (0, "QUOTA_EXCEEDED", "2024-12-01T05:00:00Z")
    await budgets.set_quota(name, pb.Quota(daily_limit_nano_usd=50))
    assert await lend_at("2024-11-04T04:59:59+00:00") == (0, "QUOTA_EXCEEDED", "2024-11-04T05:00:00Z")
    assert await lend_at("2024-11-04T05:00:00+00:00") == (50, "", "")
    assert (await budgets.quota(name)).total_used_nano_usd == 350


@pytest.mark.row("F35")
async def test_use_from_the_future_counts_now_by_the_clock_of_the_database(
    pool: asyncpg.Pool, accounts: AccountStore, ledger_store: LedgerStore, make_event: Make
) -> None:
    """A worker whose clock is off by a day cannot move its use out of today's cap."""
    budgets = BudgetStore(pool, LEASE, HOUR)
    name = await account_in(accounts, "UTC")
    later = datetime.now(UTC) + timedelta(days=1)
    await ledger_store.settle([make_event(name, 7, event_time=later)])
    assert (await budgets.quota(name)).daily_used_nano_usd == 7
    async with pool.acquire() as connection:
        tomorrow = await read_budget(connection, name, later + timedelta(hours=1))
    assert tomorrow.funds.caps[0].used_nano_usd == 0  # not once more when that day comes


async def test_another_time_zone_counts_the_same_use_by_its_own_days(
    pool: asyncpg.Pool, accounts: AccountStore, ledger_store: LedgerStore, make_event: Make
) -> None:
    name = await account_in(accounts, "Pacific/Kiritimati")  # UTC+14
    for hour in range(24):
        moment = datetime(2024, 6, 10, hour, 30, tzinfo=UTC)
        await ledger_store.settle([make_event(name, 1, event_time=moment)])
    used = {}
    for zone in ("Pacific/Kiritimati", "UTC", "Pacific/Pago_Pago"):
        await accounts.update(pb.Account(account_id=name, time_zone=zone), ["time_zone"])
        async with pool.acquire() as connection:
            budget = await read_budget(connection, name, datetime(2024, 6, 10, 23, 45, tzinfo=UTC))
        used[zone] = budget.funds.caps[0].used_nano_usd
    assert used == {"Pacific/Kiritimati": 14, "UTC": 24, "Pacific/Pago_Pago": 13}
