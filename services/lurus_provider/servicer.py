"""ProviderService over gRPC."""

from collections.abc import AsyncIterator, Callable
from copy import deepcopy
from typing import Any

from aiohttp import ClientSession
from google.protobuf.message import Message
from prometheus_client import Counter
from protovalidate import Validator

from lurus.provider.v1 import provider_pb2 as pb
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceServicer
from lurus_common.addresses import refuse_private_name
from lurus_common.errors import InvalidRequest, NotBuiltYet
from lurus_common.ids import new_id
from lurus_common.rpc import check_rules
from lurus_provider import validation
from lurus_provider.credentials import have_secrets, seal_all, without_secrets
from lurus_provider.current import CurrentSet
from lurus_provider.feed import Feed
from lurus_provider.masks import merge, names
from lurus_provider.price_import import CATALOGUE_PREFIX
from lurus_provider.probe import probe_all
from lurus_provider.rows import is_same
from lurus_provider.store import ProviderStore
from lurus_provider.tables import MODELS, PRICES, PROVIDERS

MATCHES = Counter("lurus_provider_matches", "Calls of MatchModel.", ["result"])

_PROVIDER_FIXED = ("provider_id", "create_time", "update_time")
_MODEL_FIXED = ("model_id", "create_time", "update_time")
_PRICE_FIXED = ("price_id", "create_time")
_BASE_URL = "provider.base_url"


class ProviderServicer(ProviderServiceServicer):
    """Messages in, one call, messages out.

    Args:
        store: PostgreSQL, for writes.
        current: the whole set, for reads.
        feed: the changes.
        session: for probes.
        key: 32 bytes that seal credentials.
        http_hosts: hosts that may be called with plain http, or at any address.
    """

    def __init__(
        self,
        store: ProviderStore,
        current: CurrentSet,
        feed: Feed,
        session: ClientSession,
        key: bytes,
        http_hosts: frozenset[str],
    ) -> None:
        self._store = store
        self._current = current
        self._feed = feed
        self._session = session
        self._key = key
        self._http_hosts = http_hosts
        self._validator = Validator()
        self._found = MATCHES.labels("found")
        self._none = MATCHES.labels("none")

    async def GetProvider(self, request: pb.GetProviderRequest, context: Any) -> pb.GetProviderResponse:
        current = await self._current.get()
        return pb.GetProviderResponse(provider=current.provider(request.provider_id))

    async def ListProviders(self, request: pb.ListProvidersRequest, context: Any) -> pb.ListProvidersResponse:
        current = await self._current.get()
        page, token = current.provider_page(request.page_size, request.page_token, request.tag)
        return pb.ListProvidersResponse(providers=page, next_page_token=token)

    async def CreateProvider(
        self, request: pb.CreateProviderRequest, context: Any
    ) -> pb.CreateProviderResponse:
        provider = deepcopy(request.provider)
        validation.normalise_provider(provider)
        validation.check_provider(provider)
        await self._check_base_url(provider)
        given = deepcopy(provider)
        seal_all(provider, None, self._key)
        stored = await self._store.create(PROVIDERS, provider, lambda stored: self._is_same(stored, given))
        return pb.CreateProviderResponse(provider=without_secrets(stored))

    async def UpdateProvider(
        self, request: pb.UpdateProviderRequest, context: Any
    ) -> pb.UpdateProviderResponse:
        given = deepcopy(request.provider)
        validation.normalise_provider(given)
        if names(request.update_mask, given, "base_url"):
            await self._check_base_url(given)

        def change(stored: pb.Provider) -> pb.Provider:
            merged = merge(stored, given, request.update_mask, _PROVIDER_FIXED)
            self._check(merged, validation.check_provider, pb.CreateProviderRequest(provider=merged))
            seal_all(merged, stored, self._key)
            return merged

        stored = await self._store.update(PROVIDERS, given.provider_id, change)
        return pb.UpdateProviderResponse(provider=without_secrets(stored))

    async def DeleteProvider(
        self, request: pb.DeleteProviderRequest, context: Any
    ) -> pb.DeleteProviderResponse:
        await self._store.delete(PROVIDERS, request.provider_id)
        return pb.DeleteProviderResponse()

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        current = await self._current.get()
        return pb.GetModelResponse(model=current.model(request.model_id))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        current = await self._current.get()
        page, token = current.model_page(request.page_size, request.page_token)
        return pb.ListModelsResponse(models=page, next_page_token=token)

    async def CreateModel(self, request: pb.CreateModelRequest, context: Any) -> pb.CreateModelResponse:
        model = deepcopy(request.model)
        validation.normalise_model(model)
        validation.check_model(model)
        stored = await self._store.create(
            MODELS, model, lambda stored: is_same(stored, model, ("create_time", "update_time"))
        )
        return pb.CreateModelResponse(model=stored)

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Any) -> pb.UpdateModelResponse:
        given = deepcopy(request.model)
        validation.normalise_model(given)

        def change(stored: pb.Model) -> pb.Model:
            merged = merge(stored, given, request.update_mask, _MODEL_FIXED)
            self._check(merged, validation.check_model, pb.CreateModelRequest(model=merged))
            return merged

        return pb.UpdateModelResponse(model=await self._store.update(MODELS, given.model_id, change))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Any) -> pb.DeleteModelResponse:
        await self._store.delete(MODELS, request.model_id)
        return pb.DeleteModelResponse()

    async def GetPrice(self, request: pb.GetPriceRequest, context: Any) -> pb.GetPriceResponse:
        current = await self._current.get()
        return pb.GetPriceResponse(price=current.price(request.price_id))

    async def ListPrices(self, request: pb.ListPricesRequest, context: Any) -> pb.ListPricesResponse:
        current = await self._current.get()
        at_time = request.at_time.ToNanoseconds() if request.HasField("at_time") else None
        page, token = current.price_page(request.page_size, request.page_token, request.model, at_time)
        return pb.ListPricesResponse(prices=page, next_page_token=token)

    async def CreatePrice(self, request: pb.CreatePriceRequest, context: Any) -> pb.CreatePriceResponse:
        price = deepcopy(request.price)
        price.price_id = price.price_id or new_id("price")
        validation.normalise_price(price)
        validation.check_price(price)
        if price.price_id.startswith(CATALOGUE_PREFIX):
            raise InvalidRequest(f"{CATALOGUE_PREFIX}… is for shipped prices", param="price.price_id")
        ignored = ["create_time"] if price.HasField("effective_time") else ["create_time", "effective_time"]
        stored = await self._store.create(PRICES, price, lambda stored: is_same(stored, price, ignored))
        return pb.CreatePriceResponse(price=stored)

    async def UpdatePrice(self, request: pb.UpdatePriceRequest, context: Any) -> pb.UpdatePriceResponse:
        given = deepcopy(request.price)
        validation.normalise_price(given)

        def change(stored: pb.Price) -> pb.Price:
            merged = merge(stored, given, request.update_mask, _PRICE_FIXED)
            self._check(merged, validation.check_price, pb.CreatePriceRequest(price=merged))
            return merged

        return pb.UpdatePriceResponse(price=await self._store.update(PRICES, given.price_id, change))

    async def DeletePrice(self, request: pb.DeletePriceRequest, context: Any) -> pb.DeletePriceResponse:
        await self._store.delete(PRICES, request.price_id)
        return pb.DeletePriceResponse()

    async def ImportPrices(self, request: pb.ImportPricesRequest, context: Any) -> pb.ImportPricesResponse:
        return await self._store.import_prices(request)

    async def MatchModel(self, request: pb.MatchModelRequest, context: Any) -> pb.MatchModelResponse:
        current = await self._current.get()
        matches = current.matches(request.model, request.dialect)
        (self._found if matches else self._none).inc()
        return pb.MatchModelResponse(matches=matches)

    async def CheckHealth(self, request: pb.CheckHealthRequest, context: Any) -> pb.CheckHealthResponse:
        provider = await self._store.get(PROVIDERS, request.provider_id)
        rows = await probe_all(self._session, provider, self._key)
        return pb.CheckHealthResponse(is_healthy=any(row.is_healthy for row in rows), credentials=rows)

    def WatchProviders(
        self, request: pb.WatchProvidersRequest, context: Any
    ) -> AsyncIterator[pb.WatchProvidersResponse]:
        return self._feed.responses()

    async def ImportProviders(
        self, request: pb.ImportProvidersRequest, context: Any
    ) -> pb.ImportProvidersResponse:
        raise _not_built("ImportProviders")

    async def ExportProviders(
        self, request: pb.ExportProvidersRequest, context: Any
    ) -> AsyncIterator[pb.ExportProvidersResponse]:
        raise _not_built("ExportProviders")
        yield pb.ExportProvidersResponse()  # type: ignore[unreachable]  # makes this a generator

    async def _check_base_url(self, provider: pb.Provider) -> None:
        url = validation.check_base_url(provider, self._http_hosts)
        await refuse_private_name(url, self._http_hosts, _BASE_URL)

    def _is_same(self, stored: pb.Provider, given: pb.Provider) -> bool:
        ignored = ("credentials", "create_time", "update_time")
        return is_same(stored, given, ignored) and have_secrets(stored, given.credentials, self._key)

    def _check(self, merged: Message, check: Callable[[Any], None], create_request: Message) -> None:
        """Checks what an update makes as if it were created: a mask may name a field to clear it."""
        check_rules(self._validator, create_request)
        check(merged)


def _not_built(method: str) -> NotBuiltYet:
    return NotBuiltYet(f"{method} is not built yet", method=f"lurus.provider.v1.ProviderService/{method}")
