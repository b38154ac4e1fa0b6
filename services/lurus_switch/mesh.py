"""Speaks to a mesh over gRPC on behalf of a command, and tells failures in words."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import grpc.aio

from lurus.billing.v1.billing_pb2_grpc import BillingServiceStub
from lurus.log.v1.log_pb2_grpc import LogServiceStub
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus.routing.v1.routing_pb2_grpc import RoutingServiceStub
from lurus_common.errors import DependencyUnavailable, LurusError
from lurus_common.rpc import error_of, open_channel
from lurus_switch.failures import FAILED, UNREACHABLE, CommandFailed
from lurus_switch.places import Place

if TYPE_CHECKING:
    from lurus.billing.v1.billing_pb2_grpc import BillingServiceAsyncStub
    from lurus.log.v1.log_pb2_grpc import LogServiceAsyncStub
    from lurus.provider.v1.provider_pb2_grpc import ProviderServiceAsyncStub
    from lurus.routing.v1.routing_pb2_grpc import RoutingServiceAsyncStub

MAX_PAGES = 1000
PAGE_SIZE = 1000

_UNREACHABLE_REASONS = frozenset(
    {"DEPENDENCY_UNAVAILABLE", "AUTHENTICATION_UNAVAILABLE", "ACCOUNTING_UNAVAILABLE", "OVERLOADED"}
)
_REMEDIES = {
    "KEY_INVALID": "Operators' commands need the admin token: name the mesh's directory with --data-dir,\n"
    "or set LURUS_ADMIN_TOKEN. `lurus ask` needs a live API key: `lurus key create`.",
    "MODEL_NOT_FOUND": "`lurus models` lists what is served; `lurus explain MODEL` tells why not more.",
    "MODEL_FORBIDDEN": "The key allows other models: `lurus key list`.",
    "BALANCE_TOO_LOW": "Add money: lurus account credit ACCOUNT 10.00",
    "QUOTA_EXCEEDED": "See the caps with `lurus quota`, raise them with `lurus quota --daily 10.00`.",
    "NOT_FOUND": "The `list` command of the same noun shows what there is; for requests `lurus logs`.",
    "ALREADY_EXISTS": "Change it with `update`, or choose another id.",
    "DEPENDENCY_UNAVAILABLE": "`lurus status` and `lurus doctor` show what is down.",
    "NO_HEALTHY_PROVIDER": "`lurus explain MODEL` shows what is benched and for how long.",
    "NOT_IMPLEMENTED": "It is part of the contract and comes with a later version.",
}


class Mesh:
    """Stubs of the four services; channels are opened when first used."""

    def __init__(self, place: Place, stack: AsyncExitStack) -> None:
        self.place = place
        self._stack = stack
        self._channels: dict[str, grpc.aio.Channel] = {}

    def channel(self, area: str) -> grpc.aio.Channel:
        """Returns a channel that presents the admin token."""
        if area not in self._channels:
            self._channels[area] = self._open(area, self.place.admin_token())
        return self._channels[area]

    def _open(self, area: str, token: str) -> grpc.aio.Channel:
        channel = open_channel(self.place.address(area), token, for_inference=area == "routing")
        self._stack.push_async_callback(channel.close)
        return channel

    @property
    def billing(self) -> "BillingServiceAsyncStub":
        """Accounts, keys, money."""
        stub: BillingServiceAsyncStub = BillingServiceStub(self.channel("billing"))
        return stub

    @property
    def provider(self) -> "ProviderServiceAsyncStub":
        """Providers, models, prices."""
        stub: ProviderServiceAsyncStub = ProviderServiceStub(self.channel("provider"))
        return stub

    @property
    def log(self) -> "LogServiceAsyncStub":
        """The request log."""
        stub: LogServiceAsyncStub = LogServiceStub(self.channel("log"))
        return stub

    @property
    def routing(self) -> "RoutingServiceAsyncStub":
        """Routes, for the operator."""
        stub: RoutingServiceAsyncStub = RoutingServiceStub(self.channel("routing"))
        return stub

    def routing_for(self, api_key: str) -> "RoutingServiceAsyncStub":
        """Routes, as the holder of an API key sees and uses them."""
        stub: RoutingServiceAsyncStub = RoutingServiceStub(self._open("routing", api_key))
        return stub


def run(command: Callable[[Mesh], Awaitable[None]], data_dir: Path | None = None) -> None:
    """Runs a command against the mesh that `data_dir` and the environment mean.

    Raises:
        CommandFailed: says in one sentence what is wrong, and what to do.
    """
    place = Place.here(data_dir)
    try:
        asyncio.run(_run(command, place))
    except grpc.aio.AioRpcError as error:
        fail(error, place)
    except LurusError as error:
        raise failure(error) from None


async def _run(command: Callable[[Mesh], Awaitable[None]], place: Place) -> None:
    async with AsyncExitStack() as stack:
        await command(Mesh(place, stack))


def fail(error: grpc.aio.AioRpcError, place: Place) -> NoReturn:
    """Raises what a failed call means."""
    found = error_of(error)
    if isinstance(found, DependencyUnavailable) and not _is_reported(error):
        raise CommandFailed(_silence(place), remedy=_how_to_start(place), exit_code=UNREACHABLE) from None
    raise failure(found) from None


def _is_reported(error: grpc.aio.AioRpcError) -> bool:
    """Whether a service of ours has reported this failure, and not the transport."""
    return any(name == "grpc-status-details-bin" for name, _ in error.trailing_metadata() or ())


def failure(error: LurusError) -> CommandFailed:
    """Returns what a service reported, in words."""
    exit_code = UNREACHABLE if error.reason in _UNREACHABLE_REASONS else FAILED
    details = ", ".join(f"{name} {value}" for name, value in sorted(error.metadata.items()))
    shown = (
        error.message if not details or error.reason == "INVALID_REQUEST" else f"{error.message} [{details}]"
    )
    return CommandFailed(
        shown, reason=error.reason, remedy=_REMEDIES.get(error.reason, ""), exit_code=exit_code
    )


def _silence(place: Place) -> str:
    if place.run and not place.run.is_alive:
        return f"the mesh of {place.data_dir} has ended"
    if place.run:
        return f"a service of the mesh in {place.data_dir} does not answer"
    if place.is_here:
        return f"no mesh runs in {place.data_dir}, and nobody answers at the addresses of the settings"
    return "nobody answers at the addresses of the settings"


def _how_to_start(place: Place) -> str:
    if place.run and place.run.is_alive:
        return "`lurus status` shows which process is down; `lurus doctor` looks for the cause."
    return "Start the mesh with `lurus up`; `lurus doctor` looks for what stands in its way."


async def pages(
    method: Callable[[Any], Awaitable[Any]], request: Any, field: str, limit: int = 0
) -> AsyncIterator[Any]:
    """Yields the rows of a list, page after page, at most `limit` of them (0: all).

    Args:
        method: of a stub.
        request: with `page_size` and `page_token`, which are set here.
        field: of the response, that holds the rows.
    """
    count = 0
    for _ in range(MAX_PAGES):
        request.page_size = min(limit - count, PAGE_SIZE) if limit else PAGE_SIZE
        response = await method(request)
        for row in getattr(response, field):
            yield row
            count += 1
            if limit and count >= limit:
                return
        request.page_token = response.next_page_token
        if not request.page_token:
            return


async def whole_list(
    method: Callable[[Any], Awaitable[Any]], request: Any, response: Any, limit: int = 0
) -> Any:
    """Returns a list's pages in one response, given an empty one."""
    field = next(iter(response.DESCRIPTOR.fields)).name
    async for row in pages(method, request, field, limit):
        getattr(response, field).add().CopyFrom(row)
    return response
