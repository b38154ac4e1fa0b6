"""Follows billing's keys and provider's catalog: whole once, then every change, for ever."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from lurus.billing.v1 import billing_pb2
from lurus.provider.v1 import provider_pb2
from lurus_common.errors import NotFound
from lurus_common.rpc import error_of
from lurus_routing.keys import KeyTable

if TYPE_CHECKING:  # the async stubs exist for the type checker only
    from lurus.billing.v1.billing_pb2_grpc import BillingServiceAsyncStub
    from lurus.provider.v1.provider_pb2_grpc import ProviderServiceAsyncStub

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 2.0
LOOKUP_SECONDS = 3.0


async def follow_keys(billing: "BillingServiceAsyncStub", keys: KeyTable) -> None:
    """Keeps the key table current until cancelled."""

    def take(message: billing_pb2.WatchKeysResponse) -> None:
        if message.is_snapshot:
            keys.replace(message.grants)
        else:
            keys.update(message.grants)

    await _follow("keys", lambda: billing.WatchKeys(billing_pb2.WatchKeysRequest()), take)


async def follow_providers(
    provider: "ProviderServiceAsyncStub", take: Callable[[provider_pb2.WatchProvidersResponse], None]
) -> None:
    """Hands every message of the provider service to `take` until cancelled."""
    await _follow("providers", lambda: provider.WatchProviders(provider_pb2.WatchProvidersRequest()), take)


async def _follow(name: str, start: Callable[[], Any], take: Callable[[Any], None]) -> None:
    wait_seconds = FIRST_RETRY_SECONDS
    while True:
        call: AsyncIterator[Any] = start()
        try:
            async for message in call:
                take(message)
                wait_seconds = FIRST_RETRY_SECONDS
        except grpc.aio.AioRpcError as error:
            log.info("watching %s: %s; trying again", name, error.details())
        except Exception:
            # What was known before goes on to count: one bad row must not stop the worker.
            log.exception("what was told of %s cannot be used; trying again", name)
        finally:
            call.cancel()  # type: ignore[attr-defined]  # leaving a stream does not end it
        await asyncio.sleep(wait_seconds)
        wait_seconds = min(wait_seconds * 2, MAX_RETRY_SECONDS)


def key_lookup(billing: "BillingServiceAsyncStub") -> Any:
    """Returns what asks billing for one key by its verifier."""

    async def lookup(verifier: bytes) -> billing_pb2.KeyGrant | None:
        try:
            found = await billing.LookupKey(
                billing_pb2.LookupKeyRequest(verifier=verifier), timeout=LOOKUP_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            failure = error_of(error)
            if isinstance(failure, NotFound):
                return None
            raise failure from error
        return found.grant

    return lookup


def lease_request(billing: "BillingServiceAsyncStub") -> Any:
    """Returns what asks billing for a lease."""

    async def ask(request: billing_pb2.LeaseQuotaRequest) -> billing_pb2.LeaseQuotaResponse:
        try:
            return await billing.LeaseQuota(request, timeout=LOOKUP_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error

    return ask
