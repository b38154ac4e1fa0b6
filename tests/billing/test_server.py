"""The billing service over real gRPC, with PostgreSQL and, where said, a bus."""

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc
import grpc.aio
import msgspec
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from prometheus_client import REGISTRY
from tests.billing.calls import lookup, new_account, new_key, refused, stub_of, until

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing.server import billing_server
from lurus_common import secrets
from lurus_common.ids import new_id
from lurus_common.rpc import error_of
from lurus_common.settings import Settings, SettingsError

pytestmark = pytest.mark.anyio
Make = Callable[..., UsageEvent]
# A position that no column holds; msgspec would not write it.
HUGE_TOKEN = base64.urlsafe_b64encode(b"[%d]" % (2**63)).decode()


class TestAccess:
    @pytest.mark.parametrize("token", ["", "wrong"])
    async def test_callers_without_the_admin_token_are_refused(
        self, settings: Settings, pool: asyncpg.Pool, token: str
    ) -> None:
        async with stub_of(settings, token) as stub:
            error = await refused(stub.ListAccounts(pb.ListAccountsRequest()))
            assert error.reason == "KEY_INVALID"
            with pytest.raises(grpc.aio.AioRpcError):
                await anext(aiter(stub.WatchKeys(pb.WatchKeysRequest())))

    async def test_a_missing_setting_stops_the_start(self, settings: Settings) -> None:
        for name in ("database_url", "nats_url", "admin_token", "key_pepper"):
            with pytest.raises(SettingsError, match=name.upper()):
                async with billing_server(msgspec.structs.replace(settings, **{name: ""})):
                    pass


class TestAccounts:
    async def test_create_is_idempotent_by_id_and_content(self, stub: Any) -> None:
        account = pb.Account(account_id=new_id("acct"), display_name="A", time_zone="Europe/Berlin")
        first = await stub.CreateAccount(pb.CreateAccountRequest(account=account))
        again = await stub.CreateAccount(pb.CreateAccountRequest(account=account))
        assert first == again
        assert first.account.offline_policy == pb.OFFLINE_POLICY_LEASE
        account.display_name = "B"
        error = await refused(stub.CreateAccount(pb.CreateAccountRequest(account=account)))
        assert (error.reason, error.metadata["id"]) == ("ALREADY_EXISTS", account.account_id)

    async def test_a_mask_says_what_changes(self, stub: Any) -> None:
        name = await new_account(stub, display_name="A", credit_limit_nano_usd=5)

        async def update(account: pb.Account, *paths: str) -> pb.Account:
            request = pb.UpdateAccountRequest(account=account, update_mask=FieldMask(paths=paths))
            return (await stub.UpdateAccount(request)).account

        changed = await update(pb.Account(account_id=name, display_name="B"))
        assert (changed.display_name, changed.credit_limit_nano_usd) == ("B", 5)
        changed = await update(pb.Account(account_id=name, display_name="C"), "credit_limit_nano_usd")
        assert (changed.display_name, changed.credit_limit_nano_usd) == ("B", 0)
        assert (await refused(update(pb.Account(account_id=name), "create_time"))).reason == "INVALID_REQUEST"
        assert (await refused(update(pb.Account(account_id="acct_nobody")))).reason == "NOT_FOUND"

    async def test_pages_go_by_id(self, stub: Any) -> None:
        names = {await new_account(stub) for _ in range(5)}
        seen: list[str] = []
        request = pb.ListAccountsRequest(page_size=2)
        while True:
            page = await stub.ListAccounts(request)
            seen += [account.account_id for account in page.accounts]
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        assert seen == sorted(seen)
        assert names <= set(seen)

    async def test_closing_stops_its_keys_and_keeps_its_ledger(self, stub: Any, settings: Settings) -> None:
        name = await new_account(stub)
        key = await new_key(stub, name)
        assert not (await lookup(stub, settings, key.secret)).is_revoked
        for _ in range(2):
            await stub.DeleteAccount(pb.DeleteAccountRequest(account_id=name))
        assert (await lookup(stub, settings, key.secret)).is_revoked
        assert (await stub.GetBalance(pb.GetBalanceRequest(account_id=name))).balance_nano_usd == 0
        assert (await refused(new_key(stub, name))).reason == "FAILED_PRECONDITION"


class TestKeys:
    async def test_the_secret_is_shown_once_and_stored_nowhere(
        self, stub: Any, settings: Settings, pool: asyncpg.Pool
    ) -> None:
        name = await new_account(stub)
        expiry = datetime(2030, 1, 1, tzinfo=UTC)
        key = pb.Key(key_id=new_id("key"), account_id=name, allowed_models=["claude-*"], expire_time=expiry)
        first = await stub.CreateKey(pb.CreateKeyRequest(key=key))
        again = await stub.CreateKey(pb.CreateKeyRequest(key=key))
        assert secrets.is_api_key(first.secret)
        assert (again.secret, again.key) == ("", first.key)
        assert first.key.secret_prefix == first.secret[:8]
        grant = await lookup(stub, settings, first.secret)
        assert (grant.key_id, grant.account_id) == (key.key_id, name)
        assert (list(grant.allowed_models), grant.expire_time) == (["claude-*"], key.expire_time)
        tables = await pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'billing'")
        dump = "".join([str(await pool.fetch(f"SELECT t::text FROM billing.{row[0]} t")) for row in tables])
        assert key.key_id in dump
        assert first.secret[8:] not in dump
        assert first.secret.encode().hex() not in dump

    async def test_the_same_id_for_another_key_is_refused(self, stub: Any) -> None:
        name = await new_account(stub)
        key = await new_key(stub, name, display_name="A")
        error = await refused(new_key(stub, name, key_id=key.key.key_id, display_name="B"))
        assert error.reason == "ALREADY_EXISTS"

    async def test_revoking_is_for_good(self, stub: Any, settings: Settings) -> None:
        key = await new_key(stub, await new_account(stub))
        first = await stub.RevokeKey(pb.RevokeKeyRequest(key_id=key.key.key_id))
        again = await stub.RevokeKey(pb.RevokeKeyRequest(key_id=key.key.key_id))
        assert first.key.revoke_time == again.key.revoke_time
        assert (await lookup(stub, settings, key.secret)).is_revoked

    async def test_updates_change_what_the_mask_says(self, stub: Any, settings: Settings) -> None:
        name = await new_account(stub)
        key = await new_key(stub, name, allowed_models=["a"], expire_time=datetime(2030, 1, 1, tzinfo=UTC))
        key_id = key.key.key_id

        async def update(changed: pb.Key, *paths: str) -> pb.Key:
            request = pb.UpdateKeyRequest(key=changed, update_mask=FieldMask(paths=paths))
            return (await stub.UpdateKey(request)).key

        assert (await update(pb.Key(key_id=key_id, display_name="B"))).display_name == "B"
        changed = await update(pb.Key(key_id=key_id), "expire_time", "allowed_models")
        assert (changed.HasField("expire_time"), list(changed.allowed_models)) == (False, [])
        assert changed.display_name == "B"
        assert not (await lookup(stub, settings, key.secret)).HasField("expire_time")
        error = await refused(update(pb.Key(key_id=key_id, account_id="acct_other", display_name="C")))
        assert error.reason == "INVALID_REQUEST"
        assert (await refused(update(pb.Key(key_id=key_id), "revoke_time"))).reason == "INVALID_REQUEST"

    async def test_pages_hold_no_more_than_a_message_can(self, stub: Any) -> None:
        name = await new_account(stub)
        models = [f"{number:03}" + "m" * 500 for number in range(120)]
        made = [await new_key(stub, name, allowed_models=models) for _ in range(40)]
        seen: list[str] = []
        request = pb.ListKeysRequest(account_id=name, page_size=1000)
        while True:
            page = await stub.ListKeys(request)
            seen += [key.key_id for key in page.keys]
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        assert seen == sorted(key.key.key_id for key in made)

    async def test_unknown_keys_are_not_found(self, stub: Any) -> None:
        calls = [
            stub.GetKey(pb.GetKeyRequest(key_id="key_x")),
            stub.RevokeKey(pb.RevokeKeyRequest(key_id="key_x")),
            stub.LookupKey(pb.LookupKeyRequest(verifier=bytes(32))),
            stub.CreateKey(pb.CreateKeyRequest(key=pb.Key(account_id="acct_nobody"))),
        ]
        assert [(await refused(call)).reason for call in calls] == ["NOT_FOUND"] * 4


class TestMoney:
    async def test_transactions_balance_and_lease(self, stub: Any) -> None:
        name = await new_account(stub)
        request = pb.CreateTransactionRequest(
            transaction_id=new_id("tx"), account_id=name, kind=pb.TRANSACTION_KIND_TOP_UP, amount_nano_usd=500
        )
        first = await stub.CreateTransaction(request)
        assert await stub.CreateTransaction(request) == first
        lease = await stub.LeaseQuota(
            pb.LeaseQuotaRequest(account_id=name, worker_id="worker-0", amount_nano_usd=200)
        )
        assert lease.amount_nano_usd == 200
        assert lease.expire_time.ToDatetime(tzinfo=UTC) > datetime.now(UTC) + timedelta(seconds=30)
        balance = await stub.GetBalance(pb.GetBalanceRequest(account_id=name))
        assert (balance.balance_nano_usd, balance.leased_nano_usd, balance.available_nano_usd) == (
            500,
            200,
            300,
        )
        listed = await stub.ListTransactions(pb.ListTransactionsRequest(account_id=name))
        assert list(listed.transactions) == [first.transaction]
        quota = pb.Quota(daily_limit_nano_usd=9)
        await stub.UpdateQuota(pb.UpdateQuotaRequest(account_id=name, quota=quota))
        assert (await stub.GetQuota(pb.GetQuotaRequest(account_id=name))).quota == quota


class TestBadInput:
    @pytest.mark.parametrize(
        ("method", "request_message"),
        [
            ("CreateAccount", pb.CreateAccountRequest()),
            ("CreateAccount", pb.CreateAccountRequest(account=pb.Account(account_id="house:cash"))),
            ("CreateAccount", pb.CreateAccountRequest(account=pb.Account(account_id="acct_a\n"))),
            ("CreateAccount", pb.CreateAccountRequest(account=pb.Account(display_name="a\0b"))),
            ("CreateAccount", pb.CreateAccountRequest(account=pb.Account(time_zone="Mars/Base"))),
            ("CreateAccount", pb.CreateAccountRequest(account=pb.Account(credit_limit_nano_usd=-1))),
            ("GetAccount", pb.GetAccountRequest(account_id="a" * 65)),
            ("ListAccounts", pb.ListAccountsRequest(page_size=-1)),
            ("ListAccounts", pb.ListAccountsRequest(page_token="WyJcdTAwMDAiXQ")),
            ("ListKeys", pb.ListKeysRequest(page_token="W10")),
            ("ListTransactions", pb.ListTransactionsRequest(account_id="acct_a", page_token=HUGE_TOKEN)),
            ("LookupKey", pb.LookupKeyRequest(verifier=b"short")),
            ("LeaseQuota", pb.LeaseQuotaRequest(account_id="acct_a", worker_id="w", amount_nano_usd=-1)),
            ("ReportUsage", pb.ReportUsageRequest()),
        ],
    )
    async def test_it_is_the_callers_fault(self, stub: Any, method: str, request_message: Any) -> None:
        assert (await refused(getattr(stub, method)(request_message))).reason == "INVALID_REQUEST"

    @pytest.mark.parametrize(
        ("kind", "amount"),
        [("TOP_UP", -5), ("REFUND", 5), ("USAGE", -5), ("TOP_UP", 0), ("TOP_UP", 2 * 10**18)],
    )
    async def test_money_goes_its_way_only(self, stub: Any, kind: str, amount: int) -> None:
        request = pb.CreateTransactionRequest(
            transaction_id="tx_1",
            account_id=await new_account(stub),
            kind=pb.TransactionKind.Value(f"TRANSACTION_KIND_{kind}"),
            amount_nano_usd=amount,
        )
        assert (await refused(stub.CreateTransaction(request))).reason == "INVALID_REQUEST"

    async def test_an_impossible_expiry_and_a_list_too_long_are_refused(self, stub: Any) -> None:
        name = await new_account(stub)
        key = pb.Key(account_id=name)
        key.expire_time.seconds = 10**15
        assert (await refused(stub.CreateKey(pb.CreateKeyRequest(key=key)))).reason == "INVALID_REQUEST"
        assert (
            await refused(new_key(stub, name, allowed_models=["m" * 512] * 200))
        ).reason == "INVALID_REQUEST"


class TestReconcile:
    async def test_books_that_are_away_are_never_green(self, stub: Any) -> None:
        found = await stub.Reconcile(pb.ReconcileRequest())
        assert found.outcome == pb.RECONCILE_OUTCOME_UNKNOWN
        problems = {pb.Book.Name(row.book): row.problem for row in found.books}
        assert not problems.pop("BOOK_LEDGER") and len(problems) == 3 and all(problems.values()), problems
        assert found.end_time.seconds - found.start_time.seconds == 3600

    @pytest.mark.parametrize(("ago", "until"), [(0, 0), (60, 3600), (100_000, 0)])
    async def test_a_span_without_a_closed_minute_or_of_days_is_refused(
        self, stub: Any, ago: int, until: int
    ) -> None:
        now = int(datetime.now(UTC).timestamp())
        request = pb.ReconcileRequest()
        request.start_time.seconds, request.end_time.seconds = now - ago, now - until
        assert (await refused(stub.Reconcile(request))).reason == "INVALID_REQUEST"


class TestReservations:
    async def test_one_through_its_life(self, stub: Any) -> None:
        name = await new_account(stub, credit_limit_nano_usd=100)
        wanted = pb.CreateReservationRequest(
            reservation_id=new_id("rsv"), account_id=name, amount_nano_usd=80
        )
        wanted.lifetime_duration.FromSeconds(120)
        made = await stub.CreateReservation(wanted)
        left = made.expire_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
        assert timedelta(seconds=100) < left < timedelta(seconds=121)
        assert made.state == pb.RESERVATION_STATE_OPEN
        balance = await stub.GetBalance(pb.GetBalanceRequest(account_id=name))
        assert (balance.reserved_nano_usd, balance.available_nano_usd) == (80, 20)
        settle = pb.SettleReservationRequest(reservation_id=wanted.reservation_id, amount_nano_usd=120)
        overdrafts = REGISTRY.get_sample_value("lurus_overdrafts_total") or 0
        booked = (await stub.SettleReservation(settle)).transaction
        assert (booked.amount_nano_usd, booked.balance_after_nano_usd) == (-120, -120)
        assert await stub.SettleReservation(settle) == pb.SettleReservationResponse(transaction=booked)
        assert REGISTRY.get_sample_value("lurus_overdrafts_total") == overdrafts + 1
        release = pb.ReleaseReservationRequest(reservation_id=wanted.reservation_id)
        assert (await refused(stub.ReleaseReservation(release))).reason == "FAILED_PRECONDITION"

    async def test_refusals_say_why_and_by_how_much(self, stub: Any) -> None:
        name = await new_account(stub, credit_limit_nano_usd=100)
        wanted = pb.CreateReservationRequest(
            reservation_id=new_id("rsv"), account_id=name, amount_nano_usd=101
        )
        error = await refused(stub.CreateReservation(wanted))
        assert (error.reason, error.metadata["available_nano_usd"]) == ("BALANCE_TOO_LOW", "100")
        wanted.amount_nano_usd = 50
        await stub.CreateReservation(wanted)
        wanted.amount_nano_usd = 51
        error = await refused(stub.CreateReservation(wanted))
        assert (error.reason, error.metadata["id"]) == ("CONFLICT", wanted.reservation_id)
        settle = pb.SettleReservationRequest(reservation_id=wanted.reservation_id, amount_nano_usd=1)
        await stub.SettleReservation(settle)
        settle.amount_nano_usd = 2
        error = await refused(stub.SettleReservation(settle))
        assert (error.reason, error.code) == ("CONFLICT", "ABORTED")

    @pytest.mark.parametrize(
        ("fields", "nanos"),
        [
            ({"reservation_id": "req_1"}, 1),
            ({"reservation_id": "tx_1"}, 1),
            ({"reservation_id": "rsv_"}, 1),
            ({"reservation_id": "rsv_" + "a" * 61}, 1),
            ({"amount_nano_usd": -1}, 1),
            ({}, 0),
            ({}, -1),
            ({}, 86_400 * 10**9 + 1),
        ],
    )
    async def test_bad_requests(self, stub: Any, fields: dict[str, Any], nanos: int) -> None:
        name = await new_account(stub)
        request = pb.CreateReservationRequest(
            **{"reservation_id": new_id("rsv"), "account_id": name, **fields}
        )
        request.lifetime_duration.FromNanoseconds(nanos)
        assert (await refused(stub.CreateReservation(request))).reason == "INVALID_REQUEST"


class TestUsage:
    async def test_without_a_bus_keys_are_served_and_usage_is_refused(
        self, stub: Any, settings: Settings, make_event: Make
    ) -> None:
        name = await new_account(stub)
        key = await new_key(stub, name)
        assert (await lookup(stub, settings, key.secret)).account_id == name
        error = await refused(stub.ReportUsage(pb.ReportUsageRequest(event=make_event(name, 1))))
        assert (error.reason, error.metadata) == ("DEPENDENCY_UNAVAILABLE", {"dependency": "nats"})

    async def test_reported_usage_is_charged_once(
        self, settings: Settings, pool: asyncpg.Pool, nats_url: str, make_event: Make
    ) -> None:
        async with stub_of(msgspec.structs.replace(settings, nats_url=nats_url)) as stub:
            name = await new_account(stub)
            event = make_event(name, 40)
            request = pb.ReportUsageRequest(event=event)

            async def report() -> Any:
                try:
                    return await stub.ReportUsage(request)
                except grpc.aio.AioRpcError as error:
                    assert error_of(error).reason == "DEPENDENCY_UNAVAILABLE"
                    return None

            first = await until(report)
            second = await stub.ReportUsage(request)
            assert (first.is_duplicate, second.is_duplicate) == (False, True)

            async def charged() -> bool:
                found = await stub.GetBalance(pb.GetBalanceRequest(account_id=name))
                return found.balance_nano_usd == -40

            await until(charged)
            bad = make_event("acct_a", 1, model="a\0")
            assert (
                await refused(stub.ReportUsage(pb.ReportUsageRequest(event=bad)))
            ).reason == "INVALID_REQUEST"
