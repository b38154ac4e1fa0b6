"""Asks the provider service for a price, for receipts. Never on the path of money."""

import logging
from typing import TYPE_CHECKING

import grpc.aio

from lurus.provider.v1 import provider_pb2
from lurus_common.rpc import error_of

if TYPE_CHECKING:
    from lurus.provider.v1.provider_pb2_grpc import ProviderServiceAsyncStub

log = logging.getLogger(__name__)

LOOKUP_SECONDS = 2.0


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
