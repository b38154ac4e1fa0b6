"""ProviderService through real gRPC: resources, masks, repeats, pages, refusals."""

import asyncio

import grpc.aio
import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from tests.provider.rig import SECRET, a_provider, create, new_name, refused, served

from lurus.provider.v1 import provider_pb2 as pb
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus_common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    KeyInvalid,
    NotBuiltYet,
    NotFound,
)
from lurus_common.rpc import open_channel
from lurus_common.settings import Settings, SettingsError
from lurus_provider.server import provider_server

pytestmark = pytest.mark.anyio

FAR = Timestamp(seconds=4_000_000_000)


async def update(stub: ProviderServiceStub, provider: pb.Provider, *paths: str) -> pb.Provider:
    request = pb.UpdateProviderRequest(provider=provider, update_mask=FieldMask(paths=paths))
    response = await stub.UpdateProvider(request)
    return response.provider


class TestProviders:
    async def test_what_is_created_is_returned_without_its_secret(self, stub: ProviderServiceStub) -> None:
        created = await create(stub, supported_models=["claude-*"], base_url="HTTP://LocalHost:80/x/")
        found = await stub.GetProvider(pb.GetProviderRequest(provider_id=created.provider_id))
        assert found.provider == created
        assert created.base_url == "http://localhost/x"
        assert created.credentials == [pb.Credential(credential_id="default", last_four="WXYZ")]
        assert created.HasField("create_time")
        assert created.HasField("update_time")

    async def test_a_repeated_create_changes_nothing(self, stub: ProviderServiceStub) -> None:
        given = a_provider(tags=["a"])
        first = await stub.CreateProvider(pb.CreateProviderRequest(provider=given))
        again = await stub.CreateProvider(pb.CreateProviderRequest(provider=given))
        assert again == first
        for change in (
            pb.Provider(level=3),
            pb.Provider(credentials=[pb.Credential(credential_id="b", secret="x")]),
        ):
            other = pb.Provider()
            other.CopyFrom(given)
            other.MergeFrom(change)
            error = await refused(stub.CreateProvider(pb.CreateProviderRequest(provider=other)))
            assert isinstance(error, AlreadyExists)
        given.credentials[0].secret = SECRET + "-other"
        error = await refused(stub.CreateProvider(pb.CreateProviderRequest(provider=given)))
        assert error.metadata == {"resource": "provider", "id": given.provider_id}

    async def test_a_mask_says_what_changes(self, stub: ProviderServiceStub) -> None:
        created = await create(
            stub,
            display_name="one",
            level=2,
            limits=pb.ProviderLimits(max_concurrency=5, idle_timeout=Duration(seconds=9)),
        )
        change = pb.Provider(provider_id=created.provider_id, display_name="two", level=7, is_disabled=True)
        changed = await update(stub, change, "level")
        assert (changed.display_name, changed.level, changed.is_disabled) == ("one", 7, False)
        changed = await update(stub, change, "limits.idle_timeout", "is_disabled")
        assert changed.limits == pb.ProviderLimits(max_concurrency=5)
        assert changed.is_disabled
        changed = await update(stub, pb.Provider(provider_id=created.provider_id, display_name="three"))
        assert (changed.display_name, changed.level, changed.is_disabled) == ("three", 7, True)
        limits = pb.ProviderLimits(idle_timeout=Duration(seconds=1))
        changed = await update(stub, pb.Provider(provider_id=created.provider_id, limits=limits))
        assert changed.limits == pb.ProviderLimits(max_concurrency=5, idle_timeout=Duration(seconds=1))
        assert changed.update_time.ToNanoseconds() > created.update_time.ToNanoseconds()
        assert changed.create_time == created.create_time

    @pytest.mark.parametrize(
        "path",
        [
            "provider_id",
            "create_time",
            "colour",
            "limits.colour",
            "tags.x",
            "credentials.secret",
            "*",
            "limits.",
            "limits.idle_timeout.seconds",
            "dialects",
            "base_url",
            "credentials",
        ],
    )
    async def test_a_mask_that_is_wrong_or_clears_what_is_needed_is_refused(
        self, stub: ProviderServiceStub, path: str
    ) -> None:
        created = await create(stub)
        error = await refused(update(stub, pb.Provider(provider_id=created.provider_id), path))
        assert isinstance(error, InvalidRequest)
        found = await stub.GetProvider(pb.GetProviderRequest(provider_id=created.provider_id))
        assert found.provider == created

    async def test_a_change_that_changes_nothing_is_none(self, stub: ProviderServiceStub) -> None:
        created = await create(stub, level=4)
        assert await update(stub, pb.Provider(provider_id=created.provider_id, level=4)) == created
        credentials = [pb.Credential(credential_id="default", secret=SECRET)]
        same = pb.Provider(provider_id=created.provider_id, credentials=credentials)
        assert await update(stub, same) == created

    async def test_credentials_are_kept_replaced_added_and_removed(self, stub: ProviderServiceStub) -> None:
        created = await create(stub)
        name = created.provider_id
        both = [pb.Credential(), pb.Credential(credential_id="two", secret="another-secret-ABCD")]
        changed = await update(stub, pb.Provider(provider_id=name, credentials=both))
        assert [(c.credential_id, c.last_four) for c in changed.credentials] == [
            ("default", "WXYZ"),
            ("two", "ABCD"),
        ]
        only = [pb.Credential(credential_id="two", is_disabled=True)]
        changed = await update(stub, pb.Provider(provider_id=name, credentials=only))
        assert changed.credentials == [pb.Credential(credential_id="two", last_four="ABCD", is_disabled=True)]
        error = await refused(update(stub, pb.Provider(provider_id=name, credentials=both[:1])))
        assert error.metadata["credential_id"] == "default"

    async def test_another_origin_needs_every_secret_again(self, stub: ProviderServiceStub) -> None:
        created = await create(stub)
        name = created.provider_id
        moved = pb.Provider(provider_id=name, base_url="http://127.0.0.1:10")
        assert isinstance(await refused(update(stub, moved)), InvalidRequest)
        moved.credentials.append(pb.Credential(credential_id="default"))
        assert isinstance(await refused(update(stub, moved)), InvalidRequest)
        same_origin = pb.Provider(provider_id=name, base_url="http://127.0.0.1:9/prefix")
        assert (await update(stub, same_origin)).base_url == "http://127.0.0.1:9/prefix"
        moved.credentials[0].secret = SECRET
        assert (await update(stub, moved)).base_url == "http://127.0.0.1:10"

    async def test_what_is_deleted_is_gone(self, stub: ProviderServiceStub) -> None:
        created = await create(stub)
        name = created.provider_id
        await stub.DeleteProvider(pb.DeleteProviderRequest(provider_id=name))
        for call in (
            stub.GetProvider(pb.GetProviderRequest(provider_id=name)),
            stub.DeleteProvider(pb.DeleteProviderRequest(provider_id=name)),
            stub.CheckHealth(pb.CheckHealthRequest(provider_id=name)),
            update(stub, pb.Provider(provider_id=name, level=2)),
            stub.DeleteProvider(pb.DeleteProviderRequest(provider_id="nul\x00")),
        ):
            error = await refused(call)
            assert isinstance(error, NotFound)
            assert error.metadata["resource"] == "provider"
        assert (await create(stub, provider_id=name)).provider_id == name

    async def test_pages_hold_everything_once_in_order(self, stub: ProviderServiceStub) -> None:
        tag = new_name("tag")
        names = [(await create(stub, level=level, tags=[tag])).provider_id for level in (3, 0, 1, 10, 2)]
        expected = [names[index] for index in (1, 2, 4, 0, 3)]
        seen: list[str] = []
        token = ""
        while True:
            request = pb.ListProvidersRequest(page_size=2, page_token=token, tag=tag)
            page = await stub.ListProviders(request)
            seen += [provider.provider_id for provider in page.providers]
            token = page.next_page_token
            if not token:
                break
        assert seen == expected
        for request in (pb.ListProvidersRequest(page_size=-1), pb.ListProvidersRequest(page_token="junk")):
            assert isinstance(await refused(stub.ListProviders(request)), InvalidRequest)


class TestModels:
    async def test_a_model_is_created_changed_listed_and_deleted(self, stub: ProviderServiceStub) -> None:
        name = f"vendor/model with 空 {new_name()}"
        given = pb.Model(model_id=name, owned_by="me", release_time=Timestamp(seconds=5, nanos=1_234))
        created = (await stub.CreateModel(pb.CreateModelRequest(model=given))).model
        assert (await stub.CreateModel(pb.CreateModelRequest(model=given))).model == created
        assert created.release_time == Timestamp(seconds=5, nanos=1_000)
        given.owned_by = "you"
        assert isinstance(await refused(stub.CreateModel(pb.CreateModelRequest(model=given))), AlreadyExists)
        change = pb.UpdateModelRequest(model=pb.Model(model_id=name, is_hidden=True))
        changed = (await stub.UpdateModel(change)).model
        assert (changed.owned_by, changed.is_hidden) == ("me", True)
        assert (await stub.GetModel(pb.GetModelRequest(model_id=name))).model == changed
        listed = await stub.ListModels(pb.ListModelsRequest(page_size=1000))
        assert changed in listed.models
        assert [m.model_id for m in listed.models] == sorted(m.model_id for m in listed.models)
        await stub.DeleteModel(pb.DeleteModelRequest(model_id=name))
        assert isinstance(await refused(stub.GetModel(pb.GetModelRequest(model_id=name))), NotFound)


class TestPrices:
    async def test_a_price_in_effect_is_history(self, stub: ProviderServiceStub) -> None:
        given = pb.Price(model=new_name("model"), input_nano_usd=3_000_000_000)
        price = (await stub.CreatePrice(pb.CreatePriceRequest(price=given))).price
        assert price.price_id.startswith("price_")
        assert price.HasField("effective_time")
        change = pb.Price(price_id=price.price_id, input_nano_usd=1)
        for call in (
            stub.UpdatePrice(pb.UpdatePriceRequest(price=change)),
            stub.DeletePrice(pb.DeletePriceRequest(price_id=price.price_id)),
        ):
            assert isinstance(await refused(call), FailedPrecondition)
        assert (await stub.GetPrice(pb.GetPriceRequest(price_id=price.price_id))).price == price

    async def test_a_price_to_come_can_change_and_go(self, stub: ProviderServiceStub) -> None:
        given = pb.Price(price_id=f"price_{new_name()}", model=new_name("model"), effective_time=FAR)
        price = (await stub.CreatePrice(pb.CreatePriceRequest(price=given))).price
        assert (await stub.CreatePrice(pb.CreatePriceRequest(price=given))).price == price
        change = pb.Price(price_id=price.price_id, output_nano_usd=10**15)
        changed = (await stub.UpdatePrice(pb.UpdatePriceRequest(price=change))).price
        assert (changed.output_nano_usd, changed.create_time) == (10**15, price.create_time)
        given.input_nano_usd = 1
        assert isinstance(await refused(stub.CreatePrice(pb.CreatePriceRequest(price=given))), AlreadyExists)
        await stub.DeletePrice(pb.DeletePriceRequest(price_id=price.price_id))
        assert isinstance(await refused(stub.GetPrice(pb.GetPriceRequest(price_id=price.price_id))), NotFound)

    async def test_two_prices_from_the_same_moment_on_are_refused(self, stub: ProviderServiceStub) -> None:
        given = pb.Price(model=new_name("model"), effective_time=FAR)
        await stub.CreatePrice(pb.CreatePriceRequest(price=given))
        assert isinstance(await refused(stub.CreatePrice(pb.CreatePriceRequest(price=given))), AlreadyExists)

    async def test_a_price_names_a_provider_that_exists_and_outlives_it(
        self, stub: ProviderServiceStub
    ) -> None:
        given = pb.Price(model="m", provider_id="nobody")
        assert isinstance(await refused(stub.CreatePrice(pb.CreatePriceRequest(price=given))), NotFound)
        given.provider_id = (await create(stub)).provider_id
        price = (await stub.CreatePrice(pb.CreatePriceRequest(price=given))).price
        await stub.DeleteProvider(pb.DeleteProviderRequest(provider_id=given.provider_id))
        assert (await stub.GetPrice(pb.GetPriceRequest(price_id=price.price_id))).price == price

    async def test_a_list_shows_what_is_in_effect_at_a_moment(self, stub: ProviderServiceStub) -> None:
        model = new_name("model")
        for seconds in (300, 100, 200):
            given = pb.Price(model=model, effective_time=Timestamp(seconds=seconds))
            await stub.CreatePrice(pb.CreatePriceRequest(price=given))

        async def times(**request: object) -> list[int]:
            page = await stub.ListPrices(pb.ListPricesRequest(model=model, **request))  # type: ignore[arg-type]
            return [price.effective_time.seconds for price in page.prices]

        assert await times() == [100, 200, 300]
        assert await times(at_time=Timestamp(seconds=99)) == []
        assert await times(at_time=Timestamp(seconds=200)) == [200]
        assert await times(at_time=Timestamp(seconds=10**9)) == [300]

    async def test_the_ids_of_shipped_prices_are_taken(self, stub: ProviderServiceStub) -> None:
        given = pb.Price(price_id="price_catalogue-mine", model="m")
        assert isinstance(await refused(stub.CreatePrice(pb.CreatePriceRequest(price=given))), InvalidRequest)


async def test_match_model_knows_levels_rules_and_dialects(stub: ProviderServiceStub) -> None:
    model = new_name("match")
    rules = [pb.ModelMapping(model=f"{model}*", upstream_model="vendor/*")]
    mapped = await create(stub, model_mappings=rules, level=1, dialects=[2])
    exact = await create(stub, supported_models=[model], level=1)
    await create(stub, supported_models=[model], is_disabled=True)
    await create(stub, supported_models=["other"])
    found = await stub.MatchModel(pb.MatchModelRequest(model=model))
    rows = [(match.provider, match.upstream_model, match.rule) for match in found.matches]
    assert rows[0] == (exact, model, model)
    assert (mapped, "vendor/", f"{model}*") in rows
    in_dialect = await stub.MatchModel(pb.MatchModelRequest(model=model, dialect=2))
    assert [match.provider.provider_id for match in in_dialect.matches] == [mapped.provider_id]


async def test_without_the_admin_token_nothing_is_answered(settings: Settings) -> None:
    async with provider_server(settings) as port:
        for token in ("", "wrong"):
            async with open_channel(f"127.0.0.1:{port}", token) as channel:
                stub = ProviderServiceStub(channel)
                error = await refused(stub.ListProviders(pb.ListProvidersRequest()))
                assert isinstance(error, KeyInvalid)
                error = await refused(stub.WatchProviders(pb.WatchProvidersRequest()).read())
                assert isinstance(error, KeyInvalid)


async def test_methods_that_are_not_built_say_so(stub: ProviderServiceStub) -> None:
    request = pb.ImportProvidersRequest(providers=[a_provider()])
    for call in (stub.ImportProviders(request), stub.ExportProviders(pb.ExportProvidersRequest()).read()):
        error = await refused(call)
        assert isinstance(error, NotBuiltYet)
        assert error.metadata["method"].endswith("ortProviders")


async def test_two_starters_at_once_and_a_restart_agree(settings: Settings) -> None:
    async with served(settings) as one, served(settings) as other:
        created = await create(one)
        async with asyncio.timeout(5):
            while True:
                try:
                    request = pb.GetProviderRequest(provider_id=created.provider_id)
                    assert (await other.GetProvider(request)).provider == created
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.01)


async def test_it_does_not_start_without_what_it_needs(settings: Settings) -> None:
    for name in ("database_url", "admin_token", "credential_key"):
        with pytest.raises(SettingsError, match=name.upper()):
            async with provider_server(msgspec.structs.replace(settings, **{name: ""})):
                pass
