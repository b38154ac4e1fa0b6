"""What the tests of the billing server call it with."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from lurus.billing.v1 import billing_pb2 as pb
from lurus.billing.v1.billing_pb2_grpc import BillingServiceStub
from lurus_billing.server import billing_server
from lurus_common import secrets
from lurus_common.errors import LurusError
from lurus_common.rpc import error_of, open_channel
from lurus_common.settings import Settings


@asynccontextmanager
async def stub_of(settings: Settings, token: str | None = None) -> AsyncIterator[Any]:
    async with billing_server(settings) as port:
        channel = open_channel(f"127.0.0.1:{port}", settings.admin_token if token is None else token)
        async with channel:
            yield BillingServiceStub(channel)


async def refused(call: Any) -> LurusError:
    """The failure that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_of(caught.value)


async def until(check: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := await check()):
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)
    return found


async def new_account(stub: Any, **fields: Any) -> str:
    account = pb.Account(**fields)
    return (await stub.CreateAccount(pb.CreateAccountRequest(account=account))).account.account_id


async def new_key(stub: Any, account_id: str, **fields: Any) -> pb.CreateKeyResponse:
    return await stub.CreateKey(pb.CreateKeyRequest(key=pb.Key(account_id=account_id, **fields)))


async def lookup(stub: Any, settings: Settings, secret: str) -> pb.KeyGrant:
    verifier = secrets.key_verifier(settings.key_pepper, secret)
    return (await stub.LookupKey(pb.LookupKeyRequest(verifier=verifier))).grant
