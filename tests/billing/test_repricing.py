"""Requests that are priced again: once, as new entries, from what was recorded of each."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
import pytest
from tests.billing.test_store import top_up

from lurus.billing.v1 import billing_pb2 as pb
from lurus.provider.v1.provider_pb2 import Price
from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing.receipt_store import ReceiptStore
from lurus_billing.repricing_store import RepricingStore
from lurus_billing.store import LedgerStore
from lurus_common.errors import DependencyUnavailable
from lurus_common.ids import new_id

pytestmark = pytest.mark.anyio
Make = Callable[..., UsageEvent]


class Catalogue:
    """Prices by name, as the provider service tells them."""

    def __init__(self) -> None:
        self.prices: list[Price] = []

    def add(self, price_id: str, model: str, rate: int, **fields: Any) -> Price:
        price = Price(price_id=price_id, model=model, input_nano_usd=rate, output_nano_usd=rate, **fields)
        price.effective_time.FromSeconds(1)
        self.prices.append(price)
        return price

    async def of_model(self, model: str) -> Sequence[Price]:
        return [price for price in self.prices if price.model == model]


@pytest.fixture
def model() -> str:
    """A model of the test's own."""
    return f"m-{new_id('x')}"


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue()


@pytest.fixture
def store(pool: asyncpg.Pool) -> RepricingStore:
    return RepricingStore(pool)


async def balance(pool: asyncpg.Pool, account_id: str) -> int:
    query = "SELECT balance_nano_usd FROM billing.ledger_account WHERE ledger_account_id = $1"
    return int(await pool.fetchval(query, account_id))


class TestReprice:
    async def test_what_had_no_price_is_booked_once_however_often_it_is_asked(
        self,
        store: RepricingStore,
        ledger_store: LedgerStore,
        pool: asyncpg.Pool,
        account_id: str,
        make_event: Make,
        catalogue: Catalogue,
        model: str,
    ) -> None:
        events = [make_event(account_id, 0, is_unpriced=True, price_id="", model=model) for _ in range(5)]
        for event in events:
            event.account_multiplier_ppm = 2_000_000
        await ledger_store.settle(events)
        request = pb.RepriceUsageRequest(model=model, page_size=2)
        assert (await store.reprice(request, catalogue.of_model, None)).unpriced_count == 2
        assert await balance(pool, account_id) == 0
        catalogue.add("price_new", model, 10**9)
        dry = await store.reprice(
            pb.RepriceUsageRequest(model=model, is_dry_run=True), catalogue.of_model, None
        )
        # 30 tokens at 1000 nano-USD, twice.
        assert [one.cost_nano_usd for one in dry.repricings] == [60_000] * 5
        assert await balance(pool, account_id) == 0
        whole = pb.RepriceUsageRequest(model=model)
        both = [store.reprice(whole, catalogue.of_model, None) for _ in range(4)]
        done = await asyncio.gather(*both)
        assert sum(len(one.repricings) for one in done) == 5
        assert sum(one.unchanged_count for one in done) == 15
        assert await balance(pool, account_id) == -300_000
        unpriced = await store.unpriced(pb.ListUnpricedModelsRequest())
        assert model not in {row.model for row in unpriced.models}

    async def test_pages_reach_every_request(
        self,
        store: RepricingStore,
        ledger_store: LedgerStore,
        account_id: str,
        make_event: Make,
        catalogue: Catalogue,
        model: str,
    ) -> None:
        events = [make_event(account_id, 0, is_unpriced=True, price_id="", model=model) for _ in range(5)]
        moment = events[0].event_time
        for event in events[:3]:  # of one moment: the id tells them apart
            event.event_time.CopyFrom(moment)
        await ledger_store.settle(events)
        catalogue.add("price_new", model, 10**9)
        request = pb.RepriceUsageRequest(model=model, page_size=2, only_unpriced=True)
        seen: list[str] = []
        for _ in range(3):
            page = await store.reprice(request, catalogue.of_model, None)
            seen += [one.request_id for one in page.repricings]
            request.page_token = page.next_page_token
        assert sorted(seen) == sorted(event.request_id for event in events)
        assert request.page_token == ""

    async def test_a_wrong_price_is_corrected_there_and_back(
        self,
        store: RepricingStore,
        ledger_store: LedgerStore,
        pool: asyncpg.Pool,
        account_id: str,
        make_event: Make,
        catalogue: Catalogue,
        model: str,
    ) -> None:
        event = make_event(account_id, 30_000, price_id="price_old", model=model)
        await ledger_store.settle([event])
        old, new = catalogue.add("price_old", model, 10**9), catalogue.add("price_new", model, 4 * 10**9)
        request = pb.RepriceUsageRequest(model=model)
        for price, cost in ((new, 120_000), (new, 120_000), (old, 30_000), (new, 120_000)):
            await store.reprice(request, catalogue.of_model, price)
            assert await balance(pool, account_id) == -cost
        booked = await ReceiptStore(pool).find(event.request_id)
        assert [one.amount_nano_usd for one in booked.corrections] == [-90_000, 90_000, -90_000]
        assert [one.price_id for one in booked.corrections] == ["price_new", "price_old", "price_new"]
        assert booked.transaction.amount_nano_usd == -30_000
        assert booked.corrections[0].description == "priced again by price_new, was price_old"

    async def test_tokens_are_read_anew_from_what_the_provider_said(
        self,
        store: RepricingStore,
        ledger_store: LedgerStore,
        pool: asyncpg.Pool,
        account_id: str,
        make_event: Make,
        catalogue: Catalogue,
        model: str,
    ) -> None:
        raw = b'{"prompt_tokens":100,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":90}}'
        event = make_event(account_id, 105_000, price_id="price_1", model=model, raw_usage=raw)
        event.upstream_dialect = usage_pb2.DIALECT_OPENAI_CHAT
        event.tokens.CopyFrom(usage_pb2.Tokens(input=100, output=5))  # a gateway that knew no caches
        await ledger_store.settle([event])
        catalogue.add("price_1", model, 10**9, cache_read_nano_usd=10**8)
        request = pb.RepriceUsageRequest(model=model)
        assert (await store.reprice(request, catalogue.of_model, None)).unchanged_count == 1
        request.recounts = True
        await store.reprice(request, catalogue.of_model, None)
        assert await balance(pool, account_id) == -(10 * 1000 + 90 * 100 + 5 * 1000)

    async def test_what_a_person_has_corrected_and_what_was_waived_is_left_alone(
        self,
        store: RepricingStore,
        ledger_store: LedgerStore,
        pool: asyncpg.Pool,
        account_id: str,
        make_event: Make,
        catalogue: Catalogue,
        model: str,
    ) -> None:
        by_hand, waived = make_event(account_id, 10, model=model), make_event(account_id, 0, model=model)
        waived.charge_reason, waived.waived_nano_usd = usage_pb2.CHARGE_REASON_WAIVED_BY_POLICY, 10
        await ledger_store.settle([by_hand, waived])
        correction = top_up(account_id, 10)
        correction.kind = pb.TRANSACTION_KIND_ADJUSTMENT
        correction.corrects_transaction_id = by_hand.request_id
        await ledger_store.move(correction)
        catalogue.add("price_new", model, 10**9)
        done = await store.reprice(pb.RepriceUsageRequest(model=model), catalogue.of_model, None)
        assert (done.skipped_count, len(done.repricings)) == (2, 0)
        assert await balance(pool, account_id) == 0

    async def test_without_the_catalogue_nothing_is_decided(
        self,
        store: RepricingStore,
        ledger_store: LedgerStore,
        pool: asyncpg.Pool,
        account_id: str,
        make_event: Make,
        model: str,
    ) -> None:
        async def away(_: str) -> Sequence[Price]:
            raise DependencyUnavailable("the prices cannot be read now", dependency="provider")

        await ledger_store.settle([make_event(account_id, 10, model=model)])
        with pytest.raises(DependencyUnavailable):
            await store.reprice(pb.RepriceUsageRequest(model=model), away, None)
        assert await balance(pool, account_id) == -10


class TestUnpriced:
    async def test_models_are_listed_with_what_they_used(
        self, store: RepricingStore, ledger_store: LedgerStore, account_id: str, make_event: Make, model: str
    ) -> None:
        events = [make_event(account_id, 0, is_unpriced=True, price_id="", model=model) for _ in range(3)]
        await ledger_store.settle([*events, make_event(account_id, 5, model=model)])
        found = {row.model: row for row in (await store.unpriced(pb.ListUnpricedModelsRequest())).models}
        assert found[model].request_count == 3
        assert (found[model].tokens.input, found[model].tokens.output) == (30, 60)
        assert found[model].first_time.ToNanoseconds() <= found[model].last_time.ToNanoseconds()
        later = pb.ListUnpricedModelsRequest()
        later.start_time.FromSeconds(events[0].event_time.seconds + 3600)
        assert model not in {row.model for row in (await store.unpriced(later)).models}
