"""Usage from the bus into the ledger: real NATS, real PostgreSQL, real crashes."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from prometheus_client import REGISTRY
from tests.support.drained import is_drained

from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing.consumer import UsageBus
from lurus_billing.store import LedgerStore, Settled
from lurus_common import bus
from lurus_common.ids import new_id

pytestmark = pytest.mark.anyio
Make = Callable[..., UsageEvent]
CHILD = Path(__file__).with_name("killed_consumer.py")


@pytest.fixture
async def client(nats_url: str) -> AsyncIterator[Client]:
    client = await bus.connect(nats_url, "test")
    await bus.ensure_stream(client.jetstream())
    yield client
    await client.jetstream().delete_stream(bus.STREAM_NAME)
    await client.close()


@pytest.fixture
def jetstream(client: Client) -> JetStreamContext:
    return client.jetstream()


@asynccontextmanager
async def consuming(
    nats_url: str, store: LedgerStore, ack_wait_seconds: float = bus.ACK_WAIT_SECONDS
) -> AsyncIterator[UsageBus]:
    usage = UsageBus(nats_url, store, ack_wait_seconds)
    task = asyncio.create_task(usage.run())
    try:
        yield usage
    finally:
        assert usage.stop()
        await asyncio.wait_for(task, 15)


async def publish(jetstream: JetStreamContext, *events: UsageEvent) -> None:
    for event in events:
        await bus.publish(jetstream, event.request_id, bus.subject_of(event), event.SerializeToString())


async def eventually(check: Callable[[], Awaitable[object]], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not await check():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


async def balance(pool: asyncpg.Pool, account_id: str) -> int:
    query = "SELECT balance_nano_usd FROM billing.ledger_account WHERE ledger_account_id = $1"
    return int(await pool.fetchval(query, account_id) or 0)


async def all_acked(jetstream: JetStreamContext) -> bool:
    return await is_drained(jetstream, "billing")


class SlowStore(LedgerStore):
    """Commits at once and answers late, so that the bus delivers again meanwhile."""

    wait_seconds = 0.0
    is_redelivered = False

    async def settle(self, events: Sequence[UsageEvent]) -> Settled:
        settled = await super().settle(events)
        self.is_redelivered |= settled.repeat_count > 0
        await asyncio.sleep(self.wait_seconds)
        return settled


@pytest.mark.row("F36")
async def test_killed_between_commit_and_ack_it_debits_once(
    pool: asyncpg.Pool,
    jetstream: JetStreamContext,
    nats_url: str,
    database_url: str,
    account_id: str,
    make_event: Make,
) -> None:
    await publish(jetstream, *(make_event(account_id, 5) for _ in range(50)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), database_url, nats_url, env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    assert await asyncio.wait_for(child.wait(), 30) == -signal.SIGKILL
    committed = await pool.fetchval("SELECT count(*) FROM billing.transfer WHERE account_id = $1", account_id)
    assert committed > 0
    assert not await all_acked(jetstream)
    # The bus waits for the dead one's acks; not as long as it would in production.
    info = await jetstream.consumer_info(bus.STREAM_NAME, "billing")
    assert info.config.ack_wait == bus.ACK_WAIT_SECONDS
    store = SlowStore(pool)
    async with consuming(nats_url, store, 0.5):
        await eventually(lambda: all_acked(jetstream), 60)
    assert store.is_redelivered
    assert await balance(pool, account_id) == -250


@pytest.mark.row("F24")
async def test_poison_is_parked_and_neighbours_settle(
    pool: asyncpg.Pool,
    jetstream: JetStreamContext,
    nats_url: str,
    ledger_store: LedgerStore,
    account_id: str,
    make_event: Make,
) -> None:
    start = time.monotonic()
    negative = make_event(account_id, -1).SerializeToString()
    beyond = make_event(account_id).SerializeToString() + b"\x88\x01" + b"\x80" * 9 + b"\x01"  # 17: 2^63
    huge = make_event(account_id, 2**63 - 1).SerializeToString()
    texts = [make_event(account_id, 1, model="a\0b").SerializeToString()]
    house = [make_event("house:usage", 1).SerializeToString()]
    poison = [b"\xff garbage", b"", negative, beyond, huge, *texts, *house]
    for payload in poison:
        await publish(jetstream, make_event(account_id, 3))
        await jetstream.publish(f"lurus.v1.usage.{account_id}", payload)
    async with consuming(nats_url, ledger_store):
        await eventually(lambda: all_acked(jetstream))
    assert time.monotonic() - start < 60
    assert await balance(pool, account_id) == -3 * len(poison)
    query = "SELECT payload FROM billing.dead_letter WHERE subject = $1"
    kept = [row[0] for row in await pool.fetch(query, f"lurus.v1.usage.{account_id}")]
    assert sorted(kept) == sorted(poison)


@pytest.mark.row("F37")
async def test_two_consumers_slower_than_the_ack_wait_debit_once(
    pool: asyncpg.Pool,
    jetstream: JetStreamContext,
    nats_url: str,
    account_id: str,
    make_event: Make,
) -> None:
    await publish(jetstream, *(make_event(account_id, 2) for _ in range(200)))
    store = SlowStore(pool)
    store.wait_seconds = 0.4

    async def is_redelivered() -> bool:
        return store.is_redelivered

    async with consuming(nats_url, store, 0.3), consuming(nats_url, store, 0.3):
        await eventually(is_redelivered)
        store.wait_seconds = 0.0
        await eventually(lambda: all_acked(jetstream))
    assert await balance(pool, account_id) == -400


@pytest.mark.row("F38")
async def test_a_repeat_that_the_bus_does_not_know_any_more_debits_once(
    pool: asyncpg.Pool,
    jetstream: JetStreamContext,
    nats_url: str,
    ledger_store: LedgerStore,
    account_id: str,
    make_event: Make,
) -> None:
    event = make_event(account_id, 9)
    other = make_event(account_id, 1, request_id=event.request_id)
    before = REGISTRY.get_sample_value("lurus_settlement_conflicts_total") or 0
    for number, one in enumerate((event, event, other)):  # as after the window: each is stored
        await bus.publish(jetstream, f"{number}", bus.subject_of(one), one.SerializeToString())
    async with consuming(nats_url, ledger_store):
        await eventually(lambda: all_acked(jetstream))
    assert (await jetstream.stream_info(bus.STREAM_NAME)).state.messages == 3
    assert await balance(pool, account_id) in (-9, -1)
    assert REGISTRY.get_sample_value("lurus_settlement_conflicts_total") == before + 1


# Field 9000, five bytes: of a version that is yet to come.
OF_TOMORROW = b"\xc2\xb2\x04\x05hello"


@pytest.mark.row("F46")
async def test_events_of_an_older_and_of_a_newer_version_are_booked(
    pool: asyncpg.Pool,
    jetstream: JetStreamContext,
    nats_url: str,
    ledger_store: LedgerStore,
    account_id: str,
    make_event: Make,
) -> None:
    newer = make_event(account_id, 9)
    full = make_event(account_id, 30)
    older = UsageEvent()
    for name in (
        "request_id",
        "account_id",
        "event_time",
        "cost_nano_usd",
        "tokens",
        "token_source",
        "terminal",
    ):
        if full.HasField(name) if full.DESCRIPTOR.fields_by_name[name].message_type else True:
            older.MergeFrom(UsageEvent(**{name: getattr(full, name)}))
    for event, more in ((newer, OF_TOMORROW), (older, b"")):
        payload = event.SerializeToString() + more
        await bus.publish(jetstream, event.request_id, bus.subject_of(event), payload)
    async with consuming(nats_url, ledger_store):
        await eventually(lambda: all_acked(jetstream))
    assert await balance(pool, account_id) == -39


async def test_usage_of_nobody_is_booked_as_debt(
    pool: asyncpg.Pool,
    jetstream: JetStreamContext,
    nats_url: str,
    ledger_store: LedgerStore,
    make_event: Make,
) -> None:
    nobody = new_id("acct")
    await publish(jetstream, make_event(nobody, 4))
    async with consuming(nats_url, ledger_store):
        await eventually(lambda: all_acked(jetstream))
    assert await balance(pool, nobody) == -4


async def test_a_bus_that_cannot_be_named_is_a_problem_to_mend(ledger_store: LedgerStore) -> None:
    usage = UsageBus("nats://127.0.0.1:port", ledger_store)
    assert await usage.problems() == {}
    with pytest.raises(bus.NatsError):
        await usage.run()
    assert list(await usage.problems()) == ["usage"]
