"""What is refused at write, through the whole stack, and that nothing of it is stored."""

from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tests.provider.rig import SECRET, a_provider, create, refused, served

from lurus.provider.v1 import provider_pb2 as pb
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus_common.errors import InvalidRequest
from lurus_common.settings import Settings

pytestmark = pytest.mark.anyio

MAPPING = pb.ModelMapping(model="a", upstream_model="b*")
WRONG_PROVIDERS: list[dict[str, Any]] = [
    {"provider_id": "Upper"},
    {"provider_id": ""},
    {"dialects": []},
    {"dialects": [0]},
    {"dialects": [1, 1]},
    {"dialects": [9]},
    {"level": 11},
    {"level": -1},
    {"weight": -1},
    {"cost_multiplier_ppm": -1},
    {"cost_multiplier_ppm": 10**9 + 1},
    {"supported_models": ["a*b*"]},
    {"supported_models": [""]},
    {"supported_models": ["x\ny"]},
    {"supported_models": ["m"] * 10_001},
    {"model_mappings": [MAPPING]},
    {"model_mappings": [pb.ModelMapping(model="a*", upstream_model="**")]},
    {"model_mappings": [pb.ModelMapping(model="a\x00", upstream_model="b")]},
    {"tags": ["a", "a"]},
    {"tags": ["\x00"]},
    {"display_name": "\x1b[2J"},
    {"limits": pb.ProviderLimits(idle_timeout=Duration())},
    {"limits": pb.ProviderLimits(connect_timeout=Duration(seconds=-1))},
    {"limits": pb.ProviderLimits(first_event_timeout=Duration(seconds=86_401))},
    {"limits": pb.ProviderLimits(idle_timeout=Duration(seconds=1, nanos=-1))},
    {"limits": pb.ProviderLimits(max_concurrency=-1)},
    {"credentials": []},
    {"credentials": [pb.Credential()]},
    {"credentials": [pb.Credential(secret="line\r\nx-injected: 1")]},
    {"credentials": [pb.Credential(secret="sp ace")]},
    {"credentials": [pb.Credential(secret="ключ")]},
    {"credentials": [pb.Credential(secret="a"), pb.Credential(credential_id="default", secret="b")]},
    {"credentials": [pb.Credential(credential_id="x", sealed_secret=b"x")]},
    {"supported_models": ["x" * 512] * 2_100},
    *(
        {"quirks": pb.ProviderQuirks(dropped_params=[name])}
        for name in ("model", "stream", "messages", "x.y")
    ),
    *(
        {"quirks": pb.ProviderQuirks(set_params=[pb.SetParam(name=name, json=value)])}
        for name, value in (
            ("model", '"dear"'),
            ("input", "[]"),
            ("messages", "[]"),
            ("stream", "true"),
            ("stream_options", "{}"),
            ("top_k", "1 1"),
            ("top_k", '1,"model":"dear"'),
            ("top_k", ""),
            ("top_k", '"' + "x" * 4096 + '"'),
        )
    ),
    {"quirks": pb.ProviderQuirks(set_params=[pb.SetParam(name="n", json="1")] * 2)},
    {"quirks": pb.ProviderQuirks(set_params=[pb.SetParam(name="n", json="1")], dropped_params=["n"])},
]
WRONG_URLS = [
    "https://127.1",
    "https://2130706433",
    "https://[::ffff:127.0.0.1]",
    "https://[64:ff9b::7f00:1]",
    "https://[2002:7f00:1::]",
    "https://169.254.169.254/latest",
    "https://user@api.anthropic.com",
    "https://api.anthropic.com/v1",
    "http://api.anthropic.com",
    "https://localhost.",
]
WRONG_PRICES = [
    pb.Price(model=""),
    pb.Price(model="m", input_nano_usd=-1),
    pb.Price(model="m", output_nano_usd=10**15 + 1),
    pb.Price(model="m\x00"),
    pb.Price(model="m", source="\x00"),
    pb.Price(model="m", price_id="other_1"),
    pb.Price(model="m", effective_time=Timestamp(seconds=-1)),
    pb.Price(model="m", effective_time=Timestamp(seconds=2**62)),
    pb.Price(model="m", effective_time=Timestamp(nanos=-1)),
]
WRONG_MODELS = [
    pb.Model(model_id=""),
    pb.Model(model_id="a\nb"),
    pb.Model(model_id="a", max_input_tokens=-1),
    pb.Model(model_id="a", display_name="\x07"),
    pb.Model(model_id="a", release_time=Timestamp(seconds=2**50)),
]


async def count(stub: ProviderServiceStub) -> tuple[int, int, int]:
    providers = await stub.ListProviders(pb.ListProvidersRequest(page_size=1000))
    models = await stub.ListModels(pb.ListModelsRequest(page_size=1000))
    prices = await stub.ListPrices(pb.ListPricesRequest(page_size=1000))
    return len(providers.providers), len(models.models), len(prices.prices)


@pytest.mark.row("B48", "B49")
async def test_nothing_wrong_is_stored(stub: ProviderServiceStub) -> None:
    before = await count(stub)
    wrong = [a_provider(**fields) for fields in WRONG_PROVIDERS]
    wrong += [a_provider(base_url=url) for url in WRONG_URLS]
    for provider in wrong:
        error = await refused(stub.CreateProvider(pb.CreateProviderRequest(provider=provider)))
        assert isinstance(error, InvalidRequest), provider
        assert error.metadata["param"].startswith("provider")
        assert SECRET not in error.message
    for price in WRONG_PRICES:
        error = await refused(stub.CreatePrice(pb.CreatePriceRequest(price=price)))
        assert isinstance(error, InvalidRequest), price
    for model in WRONG_MODELS:
        error = await refused(stub.CreateModel(pb.CreateModelRequest(model=model)))
        assert isinstance(error, InvalidRequest), model
    assert await count(stub) == before


async def test_an_update_is_checked_as_a_create(stub: ProviderServiceStub) -> None:
    created = await create(stub)
    for fields in WRONG_PROVIDERS[2:26]:
        wrong = pb.Provider(provider_id=created.provider_id, **fields)
        if not wrong.ListFields()[1:]:
            continue  # says nothing
        error = await refused(stub.UpdateProvider(pb.UpdateProviderRequest(provider=wrong)))
        assert isinstance(error, InvalidRequest), fields
    for url in WRONG_URLS:
        wrong = pb.Provider(provider_id=created.provider_id, base_url=url)
        assert isinstance(
            await refused(stub.UpdateProvider(pb.UpdateProviderRequest(provider=wrong))), InvalidRequest
        )
    found = await stub.GetProvider(pb.GetProviderRequest(provider_id=created.provider_id))
    assert found.provider == created


async def test_a_host_must_be_listed_to_be_private(settings: Settings) -> None:
    async with served(settings, allowed_http_hosts="vllm.internal") as stub:
        for url in ("https://localhost", "https://127.0.0.1", "http://other.internal"):
            request = pb.CreateProviderRequest(provider=a_provider(base_url=url))
            assert isinstance(await refused(stub.CreateProvider(request)), InvalidRequest)
        assert (
            await create(stub, base_url="http://vllm.internal:8000")
        ).base_url == "http://vllm.internal:8000"


@pytest.mark.parametrize("text", ["NaN", "1e30", "3.0000000000001", '"Infinity"', "1.5"])
@pytest.mark.row("B49")
def test_no_amount_is_ever_a_fraction(text: str) -> None:
    with pytest.raises(json_format.ParseError):
        json_format.Parse(f'{{"inputNanoUsd": {text}}}', pb.Price())
