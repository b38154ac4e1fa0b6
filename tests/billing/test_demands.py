"""What keys and accounts demand of providers: kept, changed one by one, told to workers."""

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from tests.billing.calls import lookup, new_account, new_key, refused

from lurus.billing.v1 import billing_pb2 as pb
from lurus_common.settings import Settings

pytestmark = pytest.mark.anyio
ACCOUNT = pb.Demands(required_tags=["eu"], max_input_nano_usd=7, max_output_nano_usd=9)


class TestDemands:
    async def test_what_a_key_leaves_out_counts_as_its_account_says(
        self, stub: Any, settings: Settings
    ) -> None:
        name = await new_account(stub, demands=ACCOUNT)
        own = pb.Demands(required_tags=["us", "zdr"], max_output_nano_usd=20)
        key = await new_key(stub, name, demands=own)
        assert (await stub.GetAccount(pb.GetAccountRequest(account_id=name))).account.demands == ACCOUNT
        assert key.key.demands == own
        grant = await lookup(stub, settings, key.secret)
        assert list(grant.demands.required_tags) == ["us", "zdr"]
        assert (grant.demands.max_input_nano_usd, grant.demands.max_output_nano_usd) == (7, 20)
        plain = await new_key(stub, name)
        assert (await lookup(stub, settings, plain.secret)).demands == ACCOUNT

    async def test_a_mask_changes_one_of_them_and_workers_are_told(
        self, stub: Any, settings: Settings
    ) -> None:
        name = await new_account(stub)
        key = await new_key(stub, name, demands=ACCOUNT)
        change = pb.Key(key_id=key.key.key_id)
        for path, expected in (
            ("demands.required_tags", pb.Demands(max_input_nano_usd=7, max_output_nano_usd=9)),
            ("demands", None),
        ):
            mask = FieldMask(paths=[path])
            await stub.UpdateKey(pb.UpdateKeyRequest(key=change, update_mask=mask))
            grant = await lookup(stub, settings, key.secret)
            assert (grant.demands if grant.HasField("demands") else None) == expected
        mask = FieldMask(paths=["demands.required_tags"])
        account = pb.Account(account_id=name, demands=pb.Demands(required_tags=["fr"]))
        await stub.UpdateAccount(pb.UpdateAccountRequest(account=account, update_mask=mask))
        assert list((await lookup(stub, settings, key.secret)).demands.required_tags) == ["fr"]

    async def test_impossible_ones_are_refused(self, stub: Any) -> None:
        for demands in (pb.Demands(max_input_nano_usd=-1), pb.Demands(required_tags=[""])):
            error = await refused(new_account(stub, demands=demands))
            assert error.reason == "INVALID_REQUEST"
