"""What the tests of the provider service share: databases, servers, providers, refusals."""

import base64
import itertools
import os
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import grpc.aio
import msgspec
import pytest

from lurus.provider.v1 import provider_pb2 as pb
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import LurusError
from lurus_common.rpc import error_of, open_channel
from lurus_common.settings import Settings
from lurus_provider.server import provider_server

ADMIN_TOKEN = secrets.token_hex(16)
CREDENTIAL_KEY = base64.b64encode(os.urandom(32)).decode()
SECRET = "sk-canary-0123456789-abcdefghij-WXYZ"
_numbers = itertools.count(1)


@asynccontextmanager
async def database(url: str) -> AsyncIterator[str]:
    """Gives the URL of a new database on the server at `url`."""
    name = f"lurus_{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(url)
    await connection.execute(f"CREATE DATABASE {name}")
    try:
        yield f"{url.rpartition('/')[0]}/{name}"
    finally:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.close()


@asynccontextmanager
async def served(settings: Settings, **changes: Any) -> AsyncIterator[ProviderServiceStub]:
    """Runs a provider service and gives a stub for it."""
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(provider_server(msgspec.structs.replace(settings, **changes)))
        channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{port}", ADMIN_TOKEN))
        yield ProviderServiceStub(channel)


def new_name(prefix: str = "p") -> str:
    """A name that no other test of this process has."""
    return f"{prefix}-{next(_numbers)}"


def a_provider(**fields: Any) -> pb.Provider:
    """A provider that may be created."""
    defaults: dict[str, Any] = {
        "provider_id": new_name(),
        "dialects": [usage_pb2.DIALECT_ANTHROPIC],
        "base_url": "http://127.0.0.1:9",
        "credentials": [pb.Credential(secret=SECRET)],
    }
    return pb.Provider(**{**defaults, **fields})


async def create(stub: ProviderServiceStub, **fields: Any) -> pb.Provider:
    """Creates a provider and returns it."""
    response = await stub.CreateProvider(pb.CreateProviderRequest(provider=a_provider(**fields)))
    return response.provider  # type: ignore[no-any-return]


async def refused(call: Awaitable[Any]) -> LurusError:
    """Returns the error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_of(caught.value)
