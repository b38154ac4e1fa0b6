"""The shipped catalogue: what it says, and that an operator has the last word."""

import asyncpg
import msgspec
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from protovalidate import Validator
from tests.provider.rig import database, served

from lurus.provider.v1 import provider_pb2 as pb
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus_common import postgres
from lurus_common.migrations import SchemaTooNew
from lurus_common.money import Tokens, cost
from lurus_common.prices import price_of
from lurus_common.rpc import check_rules
from lurus_common.settings import Settings
from lurus_provider.catalogue import CATALOGUE, read_catalogue
from lurus_provider.price_import import CATALOGUE_PREFIX
from lurus_provider.rows import RATES
from lurus_provider.server import provider_server
from lurus_provider.store import ProviderStore

pytestmark = pytest.mark.anyio


def test_it_follows_the_rules_and_names_nothing_twice() -> None:
    models, prices = read_catalogue(CATALOGUE.read_bytes())
    for item in [*models, *prices]:
        check_rules(Validator(), item)
    assert len({model.model_id for model in models}) == len(models)
    assert len({price.model for price in prices}) == len(prices)
    for price in prices:
        assert price.price_id.startswith(CATALOGUE_PREFIX)
        assert 0 < price.cache_read_nano_usd <= price.input_nano_usd < price.output_nano_usd
        assert all(getattr(price, rate) > 0 for rate in RATES)


def test_long_prompts_cost_what_their_vendors_charge() -> None:
    """Worked out by hand: 300,000 tokens of input, of which 100,000 were cached, and 10,000 of output."""
    _, prices = read_catalogue(CATALOGUE.read_bytes())
    found = {price.model: price_of(price) for price in prices}
    short = Tokens(input=172_000, cache_read=100_000, output=10_000)
    long = Tokens(input=200_000, cache_read=100_000, output=10_000)
    # 0.172 x 2.5 + 0.1 x 0.25 + 0.01 x 15 dollars, and 0.2 x 5 + 0.1 x 0.5 + 0.01 x 22.5.
    assert cost(short, found["gpt-5.4"]) == 605_000_000
    assert cost(long, found["gpt-5.4"]) == 1_275_000_000
    # 0.2 x 0.5 + 0.1 x 0.05 + 0.01 x 2.5, and for a short one 0.05 x 0.1 + 0.05 x 0.01 + 0.01 x 0.5.
    assert cost(long, found["claude-haiku-5-5"]) == 130_000_000
    assert (
        cost(Tokens(input=50_000, cache_read=50_000, output=10_000), found["claude-haiku-5-5"]) == 10_500_000
    )
    assert sum(bool(price.tiers) for price in prices) > 12


def test_the_sandbox_has_its_price() -> None:
    _, prices = read_catalogue(CATALOGUE.read_bytes())
    sandbox = {price.model: price for price in prices if price.model.startswith("sandbox-")}
    assert set(sandbox) == {"sandbox-text", "sandbox-echo", "sandbox-tools", "sandbox-thinking"}
    for price in sandbox.values():
        assert (price.input_nano_usd, price.output_nano_usd) == (3_000_000_000, 15_000_000_000)
        assert (price.cache_read_nano_usd, price.cache_write_5m_nano_usd) == (300_000_000, 3_750_000_000)
        assert (price.cache_write_1h_nano_usd, price.cache_write_30m_nano_usd) == (
            6_000_000_000,
            3_750_000_000,
        )


@pytest.mark.parametrize("rate", ["1.5", "1e9", "null", '"1"'])
def test_an_amount_that_is_not_an_integer_is_refused(rate: str) -> None:
    content = CATALOGUE.read_text().replace('"output_nano_usd": 15000000000', f'"output_nano_usd": {rate}')
    with pytest.raises(msgspec.ValidationError):
        read_catalogue(content.encode())


async def current_price(stub: ProviderServiceStub, model: str) -> pb.Price:
    now = Timestamp()
    now.GetCurrentTime()
    page = await stub.ListPrices(pb.ListPricesRequest(model=model, at_time=now))
    return page.prices[0]


async def test_a_restart_changes_nothing_and_the_operator_wins(settings: Settings) -> None:
    async with served(settings) as stub:
        shipped = await current_price(stub, "claude-sonnet-4-5-20250929")
        assert shipped.price_id.startswith(CATALOGUE_PREFIX)
        own = pb.Price(model=shipped.model, input_nano_usd=7)
        own = (await stub.CreatePrice(pb.CreatePriceRequest(price=own))).price
        await stub.DeleteModel(pb.DeleteModelRequest(model_id="gpt-5"))
        change = pb.Model(model_id="o3", is_hidden=True)
        changed = (await stub.UpdateModel(pb.UpdateModelRequest(model=change))).model
        first = await stub.WatchProviders(pb.WatchProvidersRequest()).read()
    async with served(settings) as stub:
        again = await stub.WatchProviders(pb.WatchProvidersRequest()).read()
        assert again == first
        assert await current_price(stub, shipped.model) == own
        assert (await stub.GetModel(pb.GetModelRequest(model_id="o3"))).model == changed


async def test_a_later_catalogue_leaves_an_operators_price_alone(settings: Settings) -> None:
    pool = await postgres.open_pool(settings.database_url, schema="provider", max_size=2)
    try:
        store = ProviderStore(pool, lambda revision: None)
        ids = ("a", "b")
        later = [
            pb.Price(price_id=f"{CATALOGUE_PREFIX}later-{name}", model=model, input_nano_usd=1)
            for name, model in zip(ids, ("claude-sonnet-4-5-20250929", "gpt-5.2"), strict=True)
        ]
        assert await store.load_catalogue([], later) == 2
        assert await store.load_catalogue([], later) == 0
        message = await store.changes(None)
    finally:
        await postgres.close_pool(pool)
    loaded = {price.model for price in message.prices if "later" in price.price_id}
    assert loaded == {"gpt-5.2"}


async def test_a_schema_of_a_newer_release_is_refused(settings: Settings) -> None:
    server = settings.database_url.rpartition("/")[0] + "/postgres"
    async with database(server) as url:
        async with served(settings, database_url=url):
            pass
        connection = await asyncpg.connect(url)
        await connection.execute("INSERT INTO provider.schema_version (version, name) VALUES (999, 'later')")
        await connection.close()
        with pytest.raises(SchemaTooNew):
            async with provider_server(msgspec.structs.replace(settings, database_url=url)):
                pass
