"""What a request cost and why, from the real ledger and the real price; what is unknown is said."""

import base64
import os
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.billing.calls import refused, stub_of
from tests.billing.test_store import refusal, top_up

from lurus.billing.v1 import billing_pb2 as pb
from lurus.provider.v1 import provider_pb2
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing.receipts import receipt
from lurus_billing.store import LedgerStore
from lurus_common.ids import new_id
from lurus_common.rpc import open_channel
from lurus_common.settings import Settings
from lurus_provider.server import provider_server

pytestmark = pytest.mark.anyio
Make = Callable[..., UsageEvent]
UPSTREAM_COST, PRICE = pb.RECEIPT_GAP_UPSTREAM_COST, pb.RECEIPT_GAP_PRICE
MULTIPLIER, EVENT = pb.RECEIPT_GAP_MULTIPLIER, pb.RECEIPT_GAP_EVENT
TOKENS = usage_pb2.Tokens(
    input=1_003, cache_read=50_001, cache_write_5m=777, cache_write_1h=11, output=2_345, reasoning=2_000
)
RATES = {
    "input_nano_usd": 3_000_000_000,
    "cache_read_nano_usd": 300_000_000,
    "cache_write_5m_nano_usd": 3_750_000_000,
    "cache_write_1h_nano_usd": 6_000_000_000,
    "output_nano_usd": 15_000_000_000,
}
# 1003*3000 + 50001*300 + 777*3750 + 11*6000 + 2345*15000 nano-USD, by hand.
COST = 3_009_000 + 15_000_300 + 2_913_750 + 66_000 + 35_175_000


@pytest.fixture
async def priced(settings: Settings, pool: asyncpg.Pool) -> AsyncIterator[tuple[Any, str]]:
    """The service beside a real provider service, and the id of a price there."""
    own = {"provider_port": 0, "credential_key": base64.b64encode(os.urandom(32)).decode()}
    async with provider_server(msgspec.structs.replace(settings, **own)) as port:
        address = f"127.0.0.1:{port}"
        async with open_channel(address, settings.admin_token) as channel:
            price = provider_pb2.Price(model="m-" + secrets.token_hex(4), source="the vendor's page", **RATES)
            request = provider_pb2.CreatePriceRequest(price=price)
            created = await ProviderServiceStub(channel).CreatePrice(request)
        async with stub_of(msgspec.structs.replace(settings, provider_address=address)) as stub:
            yield stub, created.price.price_id


def used(make_event: Make, payer: str, cost: int = COST, **fields: Any) -> UsageEvent:
    """An event of two attempts, with all that the log keeps too."""
    event = make_event(
        payer,
        cost,
        provider_id="second",
        terminal=usage_pb2.TERMINAL_CLIENT_GONE,
        token_source=usage_pb2.TOKEN_SOURCE_PARTIAL,
        raw_usage=b'{"input_tokens": 1003}',
        decision=b"{}",
        session_id="a session",
        user_agent="an agent",
        **fields,
    )
    event.tokens.CopyFrom(TOKENS)
    failed = usage_pb2.Attempt(provider_id="first", http_status=529, error_reason="UPSTREAM_FAILED")
    answered = usage_pb2.Attempt(provider_id="second", http_status=200, total_duration=Duration(seconds=3))
    event.attempts.extend([failed, answered])
    return event


async def receipt_of(stub: Any, request_id: str) -> pb.GetReceiptResponse:
    return await stub.GetReceipt(pb.GetReceiptRequest(request_id=request_id))


class TestGetReceipt:
    async def test_it_explains_a_charge_from_tokens_to_amount(
        self, priced: tuple[Any, str], ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        stub, price_id = priced
        event = used(make_event, account_id, price_id=price_id)
        await ledger_store.settle([event])
        found = await receipt_of(stub, event.request_id)
        for name in ("decision", "session_id", "user_agent"):
            event.ClearField(name)  # type: ignore[arg-type]
        assert found.event == event
        assert found.event.raw_usage == b'{"input_tokens": 1003}'
        assert (found.transaction.amount_nano_usd, found.transaction.tokens) == (-COST, TOKENS)
        assert found.transaction.token_source == usage_pb2.TOKEN_SOURCE_PARTIAL
        assert (found.price.price_id, found.price.source) == (price_id, "the vendor's page")
        assert {name: getattr(found.price, name) for name in RATES} == RATES
        assert list(found.gaps) == [UPSTREAM_COST]

    async def test_a_cost_that_the_rates_do_not_explain_is_said(
        self, priced: tuple[Any, str], ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        stub, price_id = priced
        event = used(make_event, account_id, 2 * COST, price_id=price_id)
        await ledger_store.settle([event])
        assert list((await receipt_of(stub, event.request_id)).gaps) == [UPSTREAM_COST, MULTIPLIER]

    async def test_without_the_price_it_says_so(
        self,
        priced: tuple[Any, str],
        stub: Any,
        ledger_store: LedgerStore,
        account_id: str,
        make_event: Make,
    ) -> None:
        with_prices, price_id = priced
        unknown, known = used(make_event, account_id), used(make_event, account_id, price_id=price_id)
        await ledger_store.settle([unknown, known])
        nowhere = [
            await receipt_of(with_prices, unknown.request_id),
            await receipt_of(stub, known.request_id),  # nobody answers at its provider address
        ]
        for found in nowhere:
            assert not found.HasField("price")
            assert list(found.gaps) == [UPSTREAM_COST, PRICE]
            assert found.transaction.amount_nano_usd == -COST

    async def test_unpriced_usage_has_no_price_to_miss(
        self, stub: Any, ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        event = make_event(account_id, 0, is_unpriced=True, price_id="")
        await ledger_store.settle([event])
        found = await receipt_of(stub, event.request_id)
        assert (found.transaction.is_unpriced, list(found.gaps)) == (True, [])

    async def test_corrections_follow_in_order(
        self, stub: Any, ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        event = make_event(account_id, 10)
        await ledger_store.settle([event, make_event(account_id, 5)])
        for amount in (3, -1):
            correction = top_up(account_id, amount)
            correction.kind = pb.TRANSACTION_KIND_ADJUSTMENT
            correction.corrects_transaction_id = event.request_id
            await ledger_store.move(correction)
        found = await receipt_of(stub, event.request_id)
        assert [one.amount_nano_usd for one in found.corrections] == [3, -1]
        assert found.transaction.amount_nano_usd == -10

    async def test_what_was_booked_without_its_event_says_so(
        self, stub: Any, ledger_store: LedgerStore, pool: asyncpg.Pool, account_id: str, make_event: Make
    ) -> None:
        event = make_event(account_id, 10, price_id="")
        await ledger_store.settle([event])
        await pool.execute("DELETE FROM billing.usage_event WHERE request_id = $1", event.request_id)
        found = await receipt_of(stub, event.request_id)
        assert (found.HasField("event"), list(found.gaps)) == (False, [EVENT])
        assert (found.transaction.tokens.output, found.transaction.model) == (20, "claude-test")

    async def test_a_settled_reservation_has_one_too(
        self, stub: Any, ledger_store: LedgerStore, account_id: str
    ) -> None:
        await ledger_store.move(top_up(account_id, 100))
        name = new_id("rsv")
        await stub.CreateReservation(
            pb.CreateReservationRequest(reservation_id=name, account_id=account_id, amount_nano_usd=100)
        )
        assert (await refused(receipt_of(stub, name))).reason == "NOT_FOUND"
        await stub.SettleReservation(pb.SettleReservationRequest(reservation_id=name, amount_nano_usd=60))
        found = await receipt_of(stub, name)
        assert (found.transaction.amount_nano_usd, list(found.gaps)) == (-60, [EVENT])

    async def test_what_is_no_usage_has_none(
        self, stub: Any, ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        money, idle = top_up(account_id, 100), refusal(make_event, account_id)
        await ledger_store.move(money)
        await ledger_store.settle([idle])
        for name in (money.transaction_id, idle.request_id, new_id("req"), "a\0b"):
            assert (await refused(receipt_of(stub, name))).reason in ("NOT_FOUND", "INVALID_REQUEST")


class TestGaps:
    def test_a_request_without_attempts_misses_no_cost_of_them(self, make_event: Make) -> None:
        found = receipt(pb.Transaction(), make_event("acct_a", 0, price_id=""), None, [])
        assert list(found.gaps) == []

    def test_what_attempts_cost_is_added_up_and_what_one_lacks_is_said(self, make_event: Make) -> None:
        event = used(make_event, "acct_a", 0, price_id="")
        event.attempts[1].price_id, event.attempts[1].cost_nano_usd = "price_1", 70
        event.attempts[0].http_status = 529  # it refused, and counts nothing
        found = receipt(pb.Transaction(), event, None, [])
        assert (found.upstream_cost_nano_usd, list(found.gaps)) == (70, [])
        event.attempts.add(provider_id="third")  # nobody answered: it may have worked all the same
        assert list(receipt(pb.Transaction(), event, None, []).gaps) == [UPSTREAM_COST]

    def test_multipliers_units_and_the_tier_explain_the_amount(self, make_event: Make) -> None:
        price = provider_pb2.Price(
            price_id="price_1",
            input_nano_usd=10**9,
            tiers=[provider_pb2.PriceTier(above_input_tokens=5, input_nano_usd=2 * 10**9)],
            unit_rates=[provider_pb2.UnitRate(kind="web_search", nano_usd_per_thousand=10 * 10**9)],
        )
        event = make_event("acct_a", 0)
        event.provider_multiplier_ppm, event.account_multiplier_ppm = 500_000, 1_200_000
        event.units.add(kind="web_search", count=2)
        tokens = usage_pb2.Tokens(input=10)
        # (10 x 2000 + 2 x 10,000,000) x 0.5 x 1.2 nano-USD.
        booked = pb.Transaction(tokens=tokens, price_id="price_1", amount_nano_usd=-12_012_000)
        found = receipt(booked, event, price, [])
        assert (list(found.gaps), found.tier_above_input_tokens) == ([], 5)
        event.units[0].count = 3
        assert list(receipt(booked, event, price, []).gaps) == [MULTIPLIER]

    def test_what_was_waived_is_no_gap_and_a_unit_without_a_rate_is_one(self, make_event: Make) -> None:
        price = provider_pb2.Price(price_id="price_1", input_nano_usd=10**9)
        event = make_event("acct_a", 0)
        event.waived_nano_usd, event.has_unpriced_units = 10_000, True
        booked = pb.Transaction(tokens=usage_pb2.Tokens(input=10), price_id="price_1")
        assert list(receipt(booked, event, price, []).gaps) == [pb.RECEIPT_GAP_UNIT_RATE]
