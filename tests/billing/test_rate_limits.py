"""Rate limits of keys and accounts: kept, changed one by one, told to workers."""

import asyncio
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from tests.billing.calls import lookup, new_account, new_key, refused, until

from lurus.billing.v1 import billing_pb2 as pb
from lurus_common.settings import Settings

pytestmark = pytest.mark.anyio
LIMITS = pb.RateLimits(requests_per_minute=60, tokens_per_minute=90_000, concurrent_requests=4)


class TestRateLimits:
    async def test_they_are_kept_and_told_with_the_grant(self, stub: Any, settings: Settings) -> None:
        name = await new_account(stub, rate_limits=LIMITS)
        key = await new_key(stub, name, rate_limits=pb.RateLimits(tokens_per_minute=7))
        plain = await new_key(stub, await new_account(stub))
        assert (await stub.GetAccount(pb.GetAccountRequest(account_id=name))).account.rate_limits == LIMITS
        assert key.key.rate_limits == pb.RateLimits(tokens_per_minute=7)
        grant = await lookup(stub, settings, key.secret)
        assert (grant.rate_limits, grant.account_rate_limits) == (key.key.rate_limits, LIMITS)
        grant = await lookup(stub, settings, plain.secret)
        assert not grant.HasField("rate_limits") and not grant.HasField("account_rate_limits")

    async def test_a_mask_changes_one_of_them_or_all(self, stub: Any) -> None:
        name = await new_account(stub, rate_limits=LIMITS)
        key = await new_key(stub, name, rate_limits=LIMITS)
        half = pb.RateLimits(requests_per_minute=30)
        for path, expected in (
            ("rate_limits.requests_per_minute", (30, 90_000, 4)),
            ("rate_limits", (30, 0, 0)),
        ):
            mask = FieldMask(paths=[path])
            account = pb.Account(account_id=name, rate_limits=half)
            changed_account = await stub.UpdateAccount(
                pb.UpdateAccountRequest(account=account, update_mask=mask)
            )
            changed_key = await stub.UpdateKey(
                pb.UpdateKeyRequest(key=pb.Key(key_id=key.key.key_id, rate_limits=half), update_mask=mask)
            )
            for limits in (changed_account.account.rate_limits, changed_key.key.rate_limits):
                values = limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_requests
                assert values == expected

    async def test_impossible_ones_are_refused(self, stub: Any) -> None:
        for limits in (pb.RateLimits(requests_per_minute=-1), pb.RateLimits(concurrent_requests=10**7)):
            error = await refused(new_account(stub, rate_limits=limits))
            assert error.reason == "INVALID_REQUEST"
            assert "rate_limits." in error.metadata["param"]

    async def test_a_change_of_the_account_reaches_those_who_watch(self, stub: Any) -> None:
        name = await new_account(stub)
        key = await new_key(stub, name)
        told: list[pb.KeyGrant] = []
        call = stub.WatchKeys(pb.WatchKeysRequest())

        async def read() -> None:
            async for response in call:
                told.extend(grant for grant in response.grants if grant.key_id == key.key.key_id)

        async def has(limits: pb.RateLimits) -> bool:
            return bool(told) and told[-1].account_rate_limits == limits

        reading = asyncio.create_task(read())
        await until(lambda: has(pb.RateLimits()))
        await stub.UpdateAccount(
            pb.UpdateAccountRequest(account=pb.Account(account_id=name, rate_limits=LIMITS))
        )
        await until(lambda: has(LIMITS))
        call.cancel()
        await asyncio.wait([reading])
