"""Limits of keys and accounts: refusals, slots given back, workers that share through a real Valkey."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from lurus.billing.v1 import billing_pb2
from lurus.billing.v1.billing_pb2 import KeyGrant, RateLimits
from lurus_common.errors import BalanceTooLow, LurusError, RateLimited
from lurus_common.settings import Settings
from lurus_dialects.dialect import Dialect
from lurus_dialects.errors import http_error
from lurus_routing import limit_exchange
from lurus_routing.limit_exchange import shared_limits
from lurus_routing.rate_limiter import Admission, RateLimiter
from lurus_switch.embedded import EmbeddedBackends
from tests.support.scripted_upstream import Exchange, hang_up, plain, stream

from .rig import (
    ALL_DIALECTS,
    ANTHROPIC,
    CHAT,
    RESPONSES,
    DialectValue,
    MakeRig,
    Rig,
    begin_events,
    end_events,
    in_process_only,
    lend_all,
    plain_answer,
    plain_request,
    refusal,
    stream_request,
    text_event,
    until,
)

pytestmark = pytest.mark.anyio
SHOWN = {ANTHROPIC: Dialect.ANTHROPIC, CHAT: Dialect.OPENAI_CHAT, RESPONSES: Dialect.OPENAI_RESPONSES}


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackends]:
    """A Valkey of these tests' own, since they stop it."""
    with EmbeddedBackends.running(tmp_path_factory.mktemp("valkey"), ("valkey",)) as running:
        yield running


@pytest.fixture
def redis_url(backends: EmbeddedBackends) -> str:
    return backends.urls.redis_url


@asynccontextmanager
async def worker_on(settings: Settings, redis_url: str, workers: int = 2) -> AsyncIterator[RateLimiter]:
    settings = msgspec.structs.replace(settings, redis_url=redis_url, limit_exchange_seconds=0.05)
    limiter = RateLimiter(workers, bool(redis_url))
    async with shared_limits(settings, limiter):
        yield limiter


def grant_of(name: str, **limits: int) -> KeyGrant:
    return KeyGrant(key_id=name, account_id="acct_1", rate_limits=RateLimits(**limits))


async def pass_all(limiter: RateLimiter, grant: KeyGrant, wanted: int = 200) -> list[Admission]:
    """What a worker lets pass of many requests that come at once."""
    admissions = []

    async def one() -> None:
        with contextlib.suppress(RateLimited):
            admissions.append(await limiter.admit(grant, 0))

    await asyncio.gather(*(one() for _ in range(wanted)))
    return [admission for admission in admissions if admission]


async def until_settled(limiter: RateLimiter) -> None:
    """Waits until the other workers know everything."""
    await until(lambda: not limiter.touched)
    await asyncio.sleep(0.1)


@in_process_only
class TestRefusals:
    @pytest.mark.parametrize("dialect", ALL_DIALECTS, ids=["A", "C", "R"])
    async def test_a_key_above_its_limit_is_told_when_to_come_back(
        self, make_rig: MakeRig, dialect: DialectValue
    ) -> None:
        rig = await make_rig()
        rig.upstream.script = plain(plain_answer(dialect))
        rig.key = rig.billing.add_key(rate_limits=RateLimits(requests_per_minute=2, tokens_per_minute=5000))
        first = {
            header.name: header.value.decode() for header in (await rig.relay(None, dialect)).head.headers
        }
        await rig.relay(None, dialect)
        error = await refusal(rig.relay(None, dialect))
        assert isinstance(error, RateLimited)
        assert (error.metadata["limit"], error.metadata["scope"]) == ("requests_per_minute", "key")
        assert len(rig.upstream.requests) == 2
        assert len(rig.billing.lease_requests) <= 1
        names = ("anthropic-ratelimit-requests-{}",) if dialect == ANTHROPIC else ("x-ratelimit-{}-requests",)
        stated = [first[name.format(what)] for name in names for what in ("limit", "remaining")]
        assert stated == ["2", "1"]
        assert any("tokens" in name for name in first)
        answer = http_error(SHOWN[dialect], error.reason, error.message, error.metadata, "req_1")
        headers = dict(answer.headers)
        assert answer.status == 429
        assert 1 <= int(headers["retry-after"]) <= 60
        assert 1000 <= int(headers["retry-after-ms"]) <= 60_000
        assert "x-should-retry" not in headers
        body = msgspec.json.decode(answer.body)["error"]
        if dialect == ANTHROPIC:
            assert body["type"] == "rate_limit_error"
        else:
            assert body["code"] == "rate_limit_exceeded"
            assert "try again in " in body["message"]

    async def test_the_account_limits_all_its_keys_together(self, make_rig: MakeRig) -> None:
        rig = await make_rig()
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        limits = RateLimits(requests_per_minute=3)
        outcomes = []
        for _ in range(4):
            rig.key = rig.billing.add_key(account_id="acct_all", account_rate_limits=limits)
            try:
                outcomes.append((await rig.relay()).head.status)
            except LurusError as error:
                outcomes.append(error.metadata["scope"])
        assert outcomes == [200, 200, 200, "account"]

    async def test_tokens_are_corrected_when_the_request_ends(self, make_rig: MakeRig) -> None:
        rig = await make_rig()
        rig.upstream.script = plain(plain_answer(ANTHROPIC))  # 1160 tokens
        rig.key = rig.billing.add_key(rate_limits=RateLimits(tokens_per_minute=1000))
        await rig.relay()
        error = await refusal(rig.relay())
        assert error.metadata["limit"] == "tokens_per_minute"

    async def test_counts_have_their_own_bucket(self, make_rig: MakeRig) -> None:
        rig = await make_rig()
        rig.upstream.script = plain({"input_tokens": 5})
        limits = RateLimits(requests_per_minute=1, concurrent_requests=1)
        rig.key = rig.billing.add_key(rate_limits=limits)
        path = "/v1/messages/count_tokens"
        body = plain_request(ANTHROPIC)
        del body["max_tokens"]
        answers = await asyncio.gather(*(rig.relay(body, path=path) for _ in range(26)))
        assert {answer.head.status for answer in answers} == {200}
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        assert (await rig.relay()).head.status == 200
        assert isinstance(await refusal(rig.relay()), RateLimited)

    async def test_changed_limits_hold_at_once(self, make_rig: MakeRig) -> None:
        rig = await make_rig()
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        for _ in range(3):
            await rig.relay()
        grant = rig.billing.grant_of(rig.key)
        grant.rate_limits.requests_per_minute = 1
        rig.billing.change_key(rig.key)
        error = await until_refused(rig)
        assert error.metadata["maximum"] == "1"
        grant.ClearField("rate_limits")
        rig.billing.change_key(rig.key)
        await until_served(rig)


async def until_refused(rig: Rig) -> LurusError:
    for _ in range(1000):
        try:
            await rig.relay()
        except LurusError as error:
            return error
        await asyncio.sleep(0.005)
    raise AssertionError("never refused")


async def until_served(rig: Rig) -> None:
    for _ in range(1000):
        with contextlib.suppress(RateLimited):
            await rig.relay()
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never served")


class _Held:
    """An upstream that answers when it is told to."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.count = 0

    async def __call__(self, exchange: Exchange) -> None:
        self.count += 1
        await self.is_open.wait()
        await plain(plain_answer(ANTHROPIC))(exchange)


class TestSlots:
    @pytest.mark.parametrize("way", ["answered", "left", "failed", "refused by the balance", "bad body"])
    async def test_a_slot_is_given_back_whatever_happens(self, make_rig: MakeRig, way: str) -> None:
        rig = await make_rig()
        rig.key = rig.billing.add_key(rate_limits=RateLimits(concurrent_requests=1))
        held = _Held()
        rig.upstream.script = held
        call = rig.start(rig.request())
        reading = asyncio.ensure_future(call.read())
        await until(lambda: held.count)
        assert (await refusal(rig.relay())).metadata["limit"] == "concurrent_requests"
        if way == "left":
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
        else:
            held.is_open.set()
            await reading
            call.cancel()
        if way == "failed":
            rig.upstream.script = hang_up
            await until_other(rig)
        elif way == "bad body":
            await until_other(rig, b"{")
        elif way == "refused by the balance":
            # Of an account that has no lease yet.
            rig.key = rig.billing.add_key(rate_limits=RateLimits(concurrent_requests=1))
            rig.billing.lend = _lend_nothing
            await until_other(rig)
        rig.billing.lend = lend_all
        rig.upstream.script = stream([b"".join(_events())])
        await until_streamed(rig)
        await until_streamed(rig)


def _events() -> list[bytes]:
    return [*begin_events(ANTHROPIC), text_event(ANTHROPIC, "hi"), *end_events(ANTHROPIC)]


def _lend_nothing(request: Any) -> billing_pb2.LeaseQuotaResponse:
    return billing_pb2.LeaseQuotaResponse(refusal_reason="BALANCE_TOO_LOW")


async def until_other(rig: Rig, body: Any = None) -> None:
    """Waits until a request is refused for another reason than the limit."""
    for _ in range(2000):
        error = await refusal(rig.relay(body))
        if not isinstance(error, RateLimited):
            return
        await asyncio.sleep(0.005)
    raise AssertionError("its slot is still taken")


async def until_streamed(rig: Rig) -> None:
    for _ in range(2000):
        with contextlib.suppress(RateLimited, BalanceTooLow):  # a refusal by billing is believed for a while
            await rig.relay(stream_request(ANTHROPIC))
            return
        await asyncio.sleep(0.005)
    raise AssertionError("its slot is still taken")


class TestSharing:
    async def test_two_workers_share_one_limit(self, settings: Settings, redis_url: str) -> None:
        grant = grant_of("key_two", requests_per_minute=60)
        async with worker_on(settings, redis_url) as one, worker_on(settings, redis_url) as two:
            passed = await asyncio.gather(pass_all(one, grant), pass_all(two, grant))
            assert 60 <= sum(map(len, passed)) <= 60 + 30 + 2 + 10  # the stated bound, and 10 s that fill up
            await until_settled(one)
            await until_settled(two)
            again = await asyncio.gather(pass_all(one, grant, 30), pass_all(two, grant, 30))
            assert sum(map(len, again)) <= 12

    async def test_one_worker_may_use_the_whole_limit(self, settings: Settings, redis_url: str) -> None:
        grant = grant_of("key_whole", requests_per_minute=60)
        async with worker_on(settings, redis_url) as one, worker_on(settings, redis_url) as two:
            await pass_all(two, grant_of("key_other", requests_per_minute=60), 1)
            assert 60 <= len(await pass_all(one, grant)) <= 70

    async def test_slots_are_shared_and_those_of_a_killed_worker_end(
        self, settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limit_exchange, "BELIEVE_MILLISECONDS", 1500)
        monkeypatch.setattr(limit_exchange, "REPEAT_SECONDS", 0.3)
        grant = grant_of("key_slots", concurrent_requests=6)
        async with worker_on(settings, redis_url) as one:
            async with AsyncExitStack() as killed:
                two = await killed.enter_async_context(worker_on(settings, redis_url))
                assert len(await pass_all(two, grant)) == 6
                await until_settled(two)
                for _ in range(10):  # longer than a worker is believed without repeating it
                    assert await pass_all(one, grant, 3) == []
                    await asyncio.sleep(0.2)
            # Left without giving anything back.
            for _ in range(200):
                if admissions := await pass_all(one, grant, 1):
                    break
                await asyncio.sleep(0.1)
            assert len(admissions) == 1
            one.end(admissions[0], 0)

    async def test_without_valkey_each_has_its_part_and_with_it_again_they_share(
        self, settings: Settings, backends: EmbeddedBackends, redis_url: str
    ) -> None:
        async with worker_on(settings, redis_url) as one, worker_on(settings, redis_url) as two:
            await asyncio.gather(
                *(pass_all(each, grant_of("key_a", requests_per_minute=60), 1) for each in (one, two))
            )
            backends.supervisor.signal("valkey", signal.SIGSTOP)
            try:
                for each in (one, two):  # which ends with the notice that nobody answers
                    await pass_all(each, grant_of("key_b", concurrent_requests=1), 1)
                    await until(lambda each=each: each._is_away)
                grant = grant_of("key_c", requests_per_minute=60)
                passed = await asyncio.gather(pass_all(one, grant), pass_all(two, grant))
                assert [30 <= len(each) <= 40 for each in passed] == [True, True]
            finally:
                backends.supervisor.signal("valkey", signal.SIGCONT)
            await until(lambda: not one._is_away and not two._is_away)
            await until_settled(one)
            await until_settled(two)
            grant = grant_of("key_d", requests_per_minute=60)
            assert len(await pass_all(one, grant)) >= 60

    async def test_a_killed_valkey_stops_nobody(
        self, settings: Settings, backends: EmbeddedBackends, redis_url: str
    ) -> None:
        grant = grant_of("key_killed", requests_per_minute=1000)
        async with worker_on(settings, redis_url) as one, worker_on(settings, redis_url) as two:
            served = 0
            for step in range(30):
                if step == 10:
                    backends.supervisor.signal("valkey", signal.SIGKILL)
                served += sum(
                    map(len, await asyncio.gather(pass_all(one, grant, 5), pass_all(two, grant, 5)))
                )
                await asyncio.sleep(0.02)
            assert served == 300
            await until(lambda: not one._is_away and not two._is_away, 30)

    @pytest.mark.parametrize("kind", ["wiped", "a string", "junk", "the future"])
    async def test_a_valkey_that_forgets_or_lies_lets_nothing_break(
        self, settings: Settings, redis_url: str, kind: str
    ) -> None:
        name = "key_" + kind.replace(" ", "_")
        grant = grant_of(name, requests_per_minute=60)
        async with worker_on(settings, redis_url) as one, Redis.from_url(redis_url) as redis:
            await pass_all(one, grant, 10)
            await until_settled(one)
            (kept,) = [found async for found in redis.scan_iter(match=f"*{name}")]
            if kind == "a string":
                await redis.set(kept, b"\xff\x00")
            elif kind == "junk":
                await redis.hset(kept, mapping={"requests": "nan", "at": "x", "w:x": "9 9 9", "tokens": "-5"})
            elif kind == "the future":
                await redis.hset(kept, mapping={"at": str(10**18), "requests": "1e308", "w:y": f"5 {10**17}"})
            else:
                await redis.flushall()
            passed = len(await pass_all(one, grant))
            await until_settled(one)
            assert passed <= 70
            assert await redis.type(kept) == b"hash"

    async def test_no_limits_no_redis(self, settings: Settings) -> None:
        async with worker_on(settings, "redis://127.0.0.1:1/0") as one:
            for _ in range(100):
                assert await one.admit(KeyGrant(key_id="key_1", account_id="acct_1"), 10) is None
            assert not one._is_away
