"""Asks the provider service for prices, for receipts and to price again. Never on the path of a request."""

import logging
from typing import TYPE_CHECKING

import grpc.aio

from lurus.provider.v1 import provider_pb2
from lurus_common.errors import DependencyUnavailable
from lurus_common.rpc import error_of

if TYPE_CHECKING:
    from lurus.provider.v1.provider_pb2_grpc import ProviderServiceAsyncStub

log = logging.getLogger(__name__)

LOOKUP_SECONDS = 2.0
# More dated prices of one name than anybody has.
MAX_PRICES = 20_000


class PriceLookup:
    """Prices by id. A price that is in effect is history: its rates never change.

    Args:
        provider: the service that owns them.
    """

    def __init__(self, provider: "ProviderServiceAsyncStub") -> None:
        self._provider = provider

    async def find(self, price_id: str) -> provider_pb2.Price | None:
        """Returns a price, or None if there is none, or the service does not answer."""
        if not price_id:
            return None
        request = provider_pb2.GetPriceRequest(price_id=price_id)
        try:
            return (await self._provider.GetPrice(request, timeout=LOOKUP_SECONDS)).price
        except grpc.aio.AioRpcError as error:
            log.info("the rates of %s are not known: %s", price_id, error_of(error).message)
            return None

    async def of_model(self, model: str) -> list[provider_pb2.Price]:
        """Returns all dated prices of a name, of any provider and for all.

        Raises:
            DependencyUnavailable: if the service does not answer: without it nothing is priced.
        """
        request = provider_pb2.ListPricesRequest(model=model, page_size=1000)
        found: list[provider_pb2.Price] = []
        try:
            while len(found) < MAX_PRICES:
                page = await self._provider.ListPrices(request, timeout=LOOKUP_SECONDS)
                found += page.prices
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    return found
        except grpc.aio.AioRpcError as error:
            raise DependencyUnavailable("the prices cannot be read now", dependency="provider") from error
        raise DependencyUnavailable(f"more than {MAX_PRICES} prices of one model", dependency="provider")
