"""Who may call, and from which money: keys and leases, with billing near and away."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from lurus.billing.v1 import billing_pb2
from lurus_common.errors import (
    AccountingUnavailable,
    AuthenticationUnavailable,
    BalanceTooLow,
    KeyInvalid,
    LurusError,
    QuotaExceeded,
)
from lurus_common.ids import new_id
from lurus_common.secrets import new_api_key
from lurus_common.settings import Settings
from lurus_routing import follow, keys, leases
from tests.support.scripted_upstream import Exchange, plain

from .rig import ADMIN_TOKEN, ANTHROPIC, COST, PRICE, MakeRig, Rig, plain_answer, refusal, until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig(rig: Rig) -> Rig:
    rig.upstream.script = plain(plain_answer(ANTHROPIC))
    return rig


async def until_known(rig: Rig) -> None:
    """Waits until the key table has the rig's key, by asking with it until no look-up is needed."""
    while True:
        before = rig.billing.lookup_count
        await rig.relay()
        if rig.billing.lookup_count == before:
            return


class TestKeys:
    async def test_a_watched_key_is_not_looked_up(self, rig: Rig) -> None:
        await until_known(rig)
        before = rig.billing.lookup_count
        await rig.relay()
        assert rig.billing.lookup_count == before

    async def test_an_unknown_key_costs_one_look_up(self, rig: Rig) -> None:
        rig.key = new_api_key()
        outcomes = await asyncio.gather(*(refusal(rig.relay()) for _ in range(20)))
        assert {type(error) for error in outcomes} == {KeyInvalid}
        assert rig.billing.lookup_count == 1
        assert rig.upstream.requests == []
        assert rig.rows() == {}

    async def test_a_key_that_is_not_ours_costs_none(self, rig: Rig) -> None:
        for presented in ([], ["sk-ant-whatever"], ["lsk_short"], [new_api_key()[:-1] + "~"], ["é" * 53]):
            error = await refusal(rig.relay(credentials=presented))
            assert isinstance(error, KeyInvalid)
            assert error.metadata["request_id"].startswith("req_")
        assert rig.billing.lookup_count == 0

    async def test_a_new_key_works_at_once(self, rig: Rig) -> None:
        rig.key = rig.billing.add_key(is_watched=False)
        answers = await asyncio.gather(*(rig.relay() for _ in range(10)))
        assert {answer.head.status for answer in answers} == {200}
        assert rig.billing.lookup_count == 1

    async def test_the_first_live_one_counts(self, rig: Rig) -> None:
        revoked = rig.billing.add_key(is_revoked=True)
        answer = await rig.relay(credentials=["sk-other", new_api_key(), revoked, rig.key])
        assert (await rig.event(answer.request_id)).key_id == rig.billing.grant_of(rig.key).key_id

    async def test_a_revoked_key_stops_and_never_comes_back(self, rig: Rig) -> None:
        await until_known(rig)
        rig.billing.change_key(rig.key, is_revoked=True)

        async def is_refused() -> bool:
            try:
                await rig.relay()
            except KeyInvalid:
                return True
            return False

        started = time.monotonic()
        while not await is_refused():
            assert time.monotonic() - started < 5
            await asyncio.sleep(0.01)
        await rig.billing_server.stop()
        assert await is_refused()

    async def test_an_expired_key_is_invalid(self, rig: Rig) -> None:
        soon = Timestamp()
        soon.FromDatetime(datetime.now(UTC) + timedelta(seconds=0.4))
        rig.key = rig.billing.add_key(expire_time=soon)
        assert (await rig.relay()).head.status == 200
        await asyncio.sleep(0.45)
        assert isinstance(await refusal(rig.relay()), KeyInvalid)

    async def test_without_billing_known_keys_work_and_unknown_ones_may_come_back(self, rig: Rig) -> None:
        await until_known(rig)
        await rig.billing_server.stop()
        assert (await rig.relay()).head.status == 200
        error = await refusal(rig.relay(credentials=[new_api_key()]))
        assert isinstance(error, AuthenticationUnavailable)
        assert error.metadata["retry_after_seconds"] == "5"
        answer = await rig.relay(credentials=[new_api_key(), rig.key])
        assert answer.head.status == 200
        rig.key = rig.billing.add_key(is_watched=False)
        await rig.billing_server.start()

        async def works() -> bool:
            try:
                return (await rig.relay()).head.status == 200
            except AuthenticationUnavailable:
                return False

        started = time.monotonic()
        while not await works():
            assert time.monotonic() - started < 5
            await asyncio.sleep(0.01)

    @pytest.mark.parametrize("failure", [KeyInvalid("a token of services"), ValueError("a bug")])
    async def test_trouble_of_billing_is_never_an_invalid_key(
        self, rig: Rig, failure: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def lookup(*_: Any) -> Any:
            raise failure

        monkeypatch.setattr(rig.billing, "LookupKey", lookup)
        await rig.billing_server.stop()
        await rig.billing_server.start()
        rig.key = new_api_key()
        error = await refusal(rig.relay())
        assert isinstance(error, AuthenticationUnavailable)

    async def test_made_up_keys_do_not_flood_billing(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(keys, "MAX_LOOKUPS", 3)
        rig.billing.delay_seconds = 0.2
        outcomes = await asyncio.gather(*(refusal(rig.relay(credentials=[new_api_key()])) for _ in range(10)))
        assert sorted({type(error).__name__ for error in outcomes}) == [
            "AuthenticationUnavailable",
            "KeyInvalid",
        ]
        assert rig.billing.lookup_count == 3


def lend(amount: int, lifetime_milliseconds: int = 60_000) -> Any:
    """Lends always so much."""

    def answer(request: billing_pb2.LeaseQuotaRequest) -> billing_pb2.LeaseQuotaResponse:
        return billing_pb2.LeaseQuotaResponse(
            lease_id=new_id("lease"), amount_nano_usd=amount, lifetime_milliseconds=lifetime_milliseconds
        )

    return answer


def refuse(reason: str) -> Any:
    def answer(request: billing_pb2.LeaseQuotaRequest) -> billing_pb2.LeaseQuotaResponse:
        response = billing_pb2.LeaseQuotaResponse(refusal_reason=reason)
        response.reset_time.FromJsonString("2030-01-01T00:00:00Z")
        return response

    return answer


class TestLeases:
    async def test_many_calls_cost_one_lease(self, rig: Rig) -> None:
        answers = [await rig.relay() for _ in range(5)]
        assert len(rig.billing.lease_requests) == 1
        assert rig.billing.lease_requests[0].account_id == rig.account_id
        assert rig.billing.lease_requests[0].worker_id == rig.settings.worker_id
        leased = {(await rig.event(answer.request_id)).lease_id for answer in answers}
        assert len(leased) == 1 and leased.pop().startswith("lease_")

    async def test_a_lease_is_replaced_before_it_is_used_up(self, make_rig: MakeRig) -> None:
        rig = await make_rig(lease_nano_usd=COST * 10)
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        for _ in range(40):
            await rig.relay()
        requests = rig.billing.lease_requests
        assert 4 <= len(requests) <= 20
        for request in requests[1:]:
            assert request.previous_lease_id
            assert 0 < request.previous_spent_nano_usd <= COST * 10
        assert sum(request.previous_spent_nano_usd for request in requests) <= COST * 60

    async def test_everybody_waits_for_the_same_money(self, make_rig: MakeRig) -> None:
        rig = await make_rig(lease_nano_usd=COST * 20)
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        answers = await asyncio.gather(*(rig.relay() for _ in range(60)))
        assert {answer.head.status for answer in answers} == {200}

    @pytest.mark.parametrize(
        ("reason", "expected"), [("BALANCE_TOO_LOW", BalanceTooLow), ("QUOTA_EXCEEDED", QuotaExceeded)]
    )
    async def test_a_refusal_reaches_the_client_and_no_provider(
        self, rig: Rig, reason: str, expected: type[LurusError]
    ) -> None:
        rig.billing.lend = refuse(reason)
        outcomes = [await refusal(rig.relay()) for _ in range(5)]
        assert {type(error) for error in outcomes} == {expected}
        assert len({error.metadata["request_id"] for error in outcomes}) == 5
        assert len(rig.billing.lease_requests) == 1  # it is believed for a moment
        assert rig.upstream.requests == []
        event = await rig.event(outcomes[0].metadata["request_id"])
        assert (event.error_reason, event.http_status, event.cost_nano_usd) == (reason, 429, 0)

    async def test_money_that_comes_in_is_used_soon(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(leases, "REFUSAL_SECONDS", 0.1)
        rig.billing.lend = refuse("BALANCE_TOO_LOW")
        assert isinstance(await refusal(rig.relay()), BalanceTooLow)
        rig.billing.lend = lend(10**9)
        await asyncio.sleep(0.11)
        assert (await rig.relay()).head.status == 200

    async def test_a_burst_never_exceeds_the_balance(self, make_rig: MakeRig) -> None:
        """Two hundred at once on money for ten (fault F41)."""
        rig = await make_rig(lease_nano_usd=COST * 4)
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        bank = Bank(COST * 100)
        rig.billing.lend = bank.lend
        await rig.relay()  # so that the cost is learned; it is not declared yet
        bank.balance = COST * 11
        outcomes = await asyncio.gather(*(rig.relay() for _ in range(200)), return_exceptions=True)
        served = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert 8 <= len(served) <= 10
        assert {type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)} == {
            BalanceTooLow
        }

    async def test_one_dear_request_does_not_lock_the_cheap_ones_out(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leases, "REFUSAL_SECONDS", 0.0)
        dear = plain_answer(ANTHROPIC).replace(b'"output_tokens":50', b'"output_tokens":50000')
        rig.upstream.scripts = [plain(dear)]
        cost = (await rig.relay()).end.cost_nano_usd
        assert cost > 100 * COST
        rig.billing.lend = lend(cost // 3, lifetime_milliseconds=1)
        await rig.relay()
        await asyncio.sleep(0.01)
        assert (await rig.relay()).head.status == 200

    async def test_what_is_left_is_handed_back_at_a_stop(self, settings: Settings, kind: str) -> None:
        rig = Rig(settings, kind)
        rig.provider.prices.append(PRICE)
        async with rig.upstream, rig.other:
            rig.use(one={})
            rig.upstream.script = plain(plain_answer(ANTHROPIC))
            async with rig.running():
                answer = await rig.relay()
        last = rig.billing.lease_requests[-1]
        assert (last.amount_nano_usd, last.previous_spent_nano_usd) == (0, answer.end.cost_nano_usd)
        assert last.previous_lease_id


class Bank:
    """Lends a balance as billing does: what one lease holds, no other can have."""

    def __init__(self, balance: int) -> None:
        self.balance = balance
        self.held: dict[str, int] = {}

    def lend(self, request: billing_pb2.LeaseQuotaRequest) -> billing_pb2.LeaseQuotaResponse:
        if request.previous_lease_id in self.held:
            del self.held[request.previous_lease_id]
            self.balance -= request.previous_spent_nano_usd
        amount = min(request.amount_nano_usd, self.balance - sum(self.held.values()))
        if amount <= 0:
            return billing_pb2.LeaseQuotaResponse(refusal_reason="BALANCE_TOO_LOW")
        response = lend(amount)(request)
        self.held[response.lease_id] = amount
        assert isinstance(response, billing_pb2.LeaseQuotaResponse)
        return response


class TestWithoutBilling:
    POLICIES = (
        (billing_pb2.OFFLINE_POLICY_UNSPECIFIED, True, False),
        (billing_pb2.OFFLINE_POLICY_LEASE, True, False),
        (billing_pb2.OFFLINE_POLICY_OPEN, True, True),
        (billing_pb2.OFFLINE_POLICY_CLOSED, False, False),
    )

    @pytest.mark.parametrize(("policy", "with_lease", "without"), POLICIES)
    async def test_the_policy_of_the_account_decides(
        self, rig: Rig, policy: Any, with_lease: bool, without: bool
    ) -> None:
        rig.billing.lend = lend(COST * 100, lifetime_milliseconds=50)
        fresh = rig.billing.add_key(offline_policy=policy)
        rig.key = rig.billing.add_key(offline_policy=policy)
        # A call that is refused for its body makes the key known, and no lease.
        await refusal(rig.relay(b"{", credentials=[fresh]))
        await until_known(rig)
        await asyncio.sleep(0.06)  # the lease has expired, its grace has begun
        await rig.billing_server.stop()
        assert await self.is_served(rig, rig.key) == with_lease
        assert await self.is_served(rig, fresh) == without

    @staticmethod
    async def is_served(rig: Rig, key: str) -> bool:
        try:
            return (await rig.relay(credentials=[key])).head.status == 200
        except AccountingUnavailable as error:
            assert error.metadata["retry_after_seconds"] == "5"
            return False

    async def test_a_lease_serves_on_until_it_is_used_up(self, make_rig: MakeRig) -> None:
        rig = await make_rig(lease_nano_usd=COST * 10)
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        await until_known(rig)
        await rig.billing_server.stop()
        served = [await self.is_served(rig, rig.key) for _ in range(14)]
        assert served.count(True) >= 4
        assert served == sorted(served, reverse=True)
        assert served[-1] is False
        started = time.monotonic()
        await rig.billing_server.start()
        while not await self.is_served(rig, rig.key):
            assert time.monotonic() - started < 5
            await asyncio.sleep(0.01)

    async def test_a_billing_that_hangs_holds_nobody_up_for_long(
        self, monkeypatch: pytest.MonkeyPatch, make_rig: MakeRig
    ) -> None:
        monkeypatch.setattr(follow, "LOOKUP_SECONDS", 0.5)
        monkeypatch.setattr(leases, "HAND_BACK_SECONDS", 0.2)
        rig = await make_rig(lease_nano_usd=COST * 10)
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        rig.key = rig.billing.add_key(offline_policy=billing_pb2.OFFLINE_POLICY_OPEN)
        await until_known(rig)
        rig.billing.delay_seconds = 60
        started = time.monotonic()
        for _ in range(40):
            await rig.relay()
        assert time.monotonic() - started < 6


async def test_an_admin_token_is_no_key(rig: Rig) -> None:
    assert isinstance(await refusal(rig.relay(credentials=[ADMIN_TOKEN])), KeyInvalid)


async def test_the_intent_is_durable_before_the_provider_is_called(rig: Rig) -> None:
    states: list[int] = []

    async def script(exchange: Exchange) -> None:
        states.extend(state for state, _ in rig.rows().values())
        await plain(plain_answer(ANTHROPIC))(exchange)

    rig.upstream.script = script
    await rig.relay()
    assert states == [0]
    await until(lambda: all(state for state, _ in rig.rows().values()))
