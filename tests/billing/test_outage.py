"""PostgreSQL dies while events flow: callers are told, nothing is lost, nothing counts twice."""

import asyncio
import secrets
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from grpc.aio import AioRpcError

from lurus.billing.v1 import billing_pb2 as pb
from lurus.billing.v1.billing_pb2_grpc import BillingServiceStub
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing.server import billing_server
from lurus_common import bus
from lurus_common.rpc import error_of, open_channel
from lurus_common.settings import Settings
from lurus_switch.embedded import EmbeddedBackends

pytestmark = pytest.mark.anyio
Make = Callable[..., UsageEvent]
ACCOUNT = "acct_outage"
EVENTS = 600


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackends]:
    """Stores of its own, since it kills them."""
    with EmbeddedBackends.running(tmp_path_factory.mktemp("stores"), ("postgres", "nats")) as running:
        yield running


@pytest.mark.row("F28")
async def test_postgres_killed_under_load(stores: EmbeddedBackends, make_event: Make) -> None:
    settings = Settings(
        database_url=stores.urls.database_url,
        nats_url=stores.urls.nats_url,
        admin_token=secrets.token_hex(16),
        key_pepper=secrets.token_hex(16),
        billing_port=0,
    )
    client = await bus.connect(stores.urls.nats_url, "test")
    await bus.ensure_stream(client.jetstream())
    reasons: set[str] = set()
    async with (
        billing_server(settings) as port,
        open_channel(f"127.0.0.1:{port}", settings.admin_token) as channel,
    ):
        stub = BillingServiceStub(channel)

        async def balance() -> int | None:
            try:
                found = await stub.GetBalance(pb.GetBalanceRequest(account_id=ACCOUNT))
            except AioRpcError as error:
                reasons.add(error_of(error).reason)
                return None
            return found.balance_nano_usd

        await stub.CreateAccount(pb.CreateAccountRequest(account=pb.Account(account_id=ACCOUNT)))
        for number in range(EVENTS):
            event = make_event(ACCOUNT, 3)
            subject = bus.subject_of(event)
            await bus.publish(client.jetstream(), event.request_id, subject, event.SerializeToString())
            if number in (100, 400):
                await asyncio.to_thread(stores.supervisor.signal, "postgres", signal.SIGKILL)
            if number % 20 == 0:
                await balance()
        deadline = time.monotonic() + 60
        while await balance() != -3 * EVENTS:
            assert time.monotonic() < deadline, "not everything was settled"
            await asyncio.sleep(0.1)
    await client.close()
    assert reasons <= {"DEPENDENCY_UNAVAILABLE"}
