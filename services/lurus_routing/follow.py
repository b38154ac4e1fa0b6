"""Follows billing's keys and provider's catalog: whole once, then every change, for ever.

Both send a sign of life every few seconds. A stream that is silent for longer
is asked for anew, whatever the connection says, so that a change is late by
half a minute at most as long as the service can be reached at all.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import grpc.aio

from lurus.billing.v1 import billing_pb2
from lurus.provider.v1 import provider_pb2
from lurus_common.errors import NotFound
from lurus_common.rpc import error_of

if TYPE_CHECKING:  # the async stubs exist for the type checker only
    from lurus.billing.v1.billing_pb2_grpc import BillingServiceAsyncStub
    from lurus.provider.v1.provider_pb2_grpc import ProviderServiceAsyncStub

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 2.0
LOOKUP_SECONDS = 3.0
# Three signs of life.
SILENCE_SECONDS = 30.0


class Source(Protocol):
    """Takes what a stream tells, and that it has failed."""

    def take(self, message: Any) -> None:
        """Takes one message."""

    def fail(self, problem: str) -> None:
        """Takes notice that nothing is told now."""


async def follow_keys(billing: "BillingServiceAsyncStub", source: Source) -> None:
    """Hands every message of billing's `WatchKeys` to `source` until cancelled."""
    await _follow("keys", lambda: billing.WatchKeys(billing_pb2.WatchKeysRequest()), source)


async def follow_providers(provider: "ProviderServiceAsyncStub", source: Source) -> None:
    """Hands every message of `WatchProviders` to `source` until cancelled."""
    await _follow("providers", lambda: provider.WatchProviders(provider_pb2.WatchProvidersRequest()), source)


async def _follow(name: str, start: Callable[[], Any], source: Source) -> None:
    wait_seconds = FIRST_RETRY_SECONDS
    while True:
        call = start()
        try:
            async for message in _messages(call):
                source.take(message)
                wait_seconds = FIRST_RETRY_SECONDS
            source.fail("the stream has ended")
        except grpc.aio.AioRpcError as error:
            source.fail(error_of(error).message)
            log.info("watching %s: %s; trying again", name, error.details())
        except TimeoutError:
            source.fail("it is silent")
            log.warning("watching %s: silent for %.0f s; asking anew", name, SILENCE_SECONDS)
        except Exception:
            # What was known before goes on to count: one bad row must not stop the worker.
            source.fail("what it tells cannot be used")
            log.exception("what was told of %s cannot be used; trying again", name)
        finally:
            call.cancel()  # leaving a stream does not end it
        await asyncio.sleep(wait_seconds)
        wait_seconds = min(wait_seconds * 2, MAX_RETRY_SECONDS)


async def _messages(call: Any) -> AsyncIterator[Any]:
    """Yields what a stream tells.

    Raises:
        TimeoutError: it was silent.
    """
    told = aiter(call)
    while True:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                message = await anext(told)
        except StopAsyncIteration:
            return
        yield message


def key_lookup(billing: "BillingServiceAsyncStub", on_answer: Callable[[], None]) -> Any:
    """Returns what asks billing for one key by its verifier; `on_answer` is told whenever it answers."""

    async def lookup(verifier: bytes) -> billing_pb2.KeyGrant | None:
        try:
            found = await billing.LookupKey(
                billing_pb2.LookupKeyRequest(verifier=verifier), timeout=LOOKUP_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            failure = error_of(error)
            if isinstance(failure, NotFound):
                on_answer()
                return None
            raise failure from error
        on_answer()
        return found.grant

    return lookup


def lease_request(billing: "BillingServiceAsyncStub", on_answer: Callable[[], None]) -> Any:
    """Returns what asks billing for a lease; `on_answer` is told whenever it answers."""

    async def ask(request: billing_pb2.LeaseQuotaRequest) -> billing_pb2.LeaseQuotaResponse:
        try:
            lease = await billing.LeaseQuota(request, timeout=LOOKUP_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        on_answer()
        return lease

    return ask
