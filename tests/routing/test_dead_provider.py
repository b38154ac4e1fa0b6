"""A dead provider under load: no client notices, few calls touch it, and it is asked again in time."""

import asyncio
import statistics
import time

import msgspec
import pytest

from lurus_common.settings import Settings
from lurus_routing import breaker, retry
from tests.support.scripted_upstream import Exchange, hang_up, plain, stream

from .rig import (
    ANTHROPIC,
    Answer,
    MakeRig,
    Rig,
    events_of,
    in_process_only,
    plain_answer,
    stream_request,
    until,
)

pytestmark = [pytest.mark.anyio, in_process_only]

CALLERS = 200
THREE = {"one": {"level": 1}, "two": {"level": 2}}
BUSY = {"type": "error", "error": {"type": "api_error", "message": "busy"}}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Time for two hundred connections at once, whose both ends and the gateway share a busy processor."""
    return msgspec.structs.replace(settings, upstream_connect_seconds=30, upstream_first_event_seconds=60)


async def burst(rig: Rig, count: int = CALLERS) -> list[Answer]:
    return list(await asyncio.gather(*(rig.relay(stream_request(ANTHROPIC)) for _ in range(count))))


async def first_event_seconds(rig: Rig) -> float:
    started = time.monotonic()
    async for response in rig.start(rig.request(stream_request(ANTHROPIC))):
        if response.data:
            return time.monotonic() - started
    raise AssertionError("there was no event")


class TestUnderLoad:
    @pytest.mark.parametrize("how", [hang_up, plain(BUSY, 500)], ids=["hangs up", "500"])
    async def test_no_client_sees_an_error_and_five_calls_touch_it(
        self, make_rig: MakeRig, how: object
    ) -> None:
        rig = await make_rig(THREE)
        rig.upstream.script = how  # type: ignore[assignment]
        rig.other.script = stream(events_of(ANTHROPIC))
        answers = await burst(rig)
        assert {answer.end.provider_id for answer in answers} == {"two"}
        assert all(answer.body == b"".join(events_of(ANTHROPIC)) for answer in answers)
        assert len(rig.upstream.requests) == breaker.FAILURES_IN_A_ROW
        assert len(rig.other.requests) == CALLERS

    async def test_one_that_dies_in_use_is_touched_by_those_in_flight_and_no_others(
        self, make_rig: MakeRig
    ) -> None:
        rig = await make_rig(THREE)
        for upstream in (rig.upstream, rig.other):
            upstream.script = stream(events_of(ANTHROPIC))
        await rig.relay(stream_request(ANTHROPIC))
        dies = asyncio.Event()

        async def dying(exchange: Exchange) -> None:
            await dies.wait()
            exchange.close()

        rig.upstream.script = dying
        flying = [asyncio.create_task(rig.relay(stream_request(ANTHROPIC))) for _ in range(CALLERS // 2)]
        await rig.upstream.until_requests(1 + len(flying))
        dies.set()
        answers = [*await asyncio.gather(*flying), *await burst(rig, CALLERS // 2)]
        assert {answer.end.provider_id for answer in answers} == {"two"}
        assert len(rig.upstream.requests) == 1 + len(flying)

    async def test_once_the_breaker_is_open_it_costs_no_time(
        self, make_rig: MakeRig, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rig = await make_rig(THREE)
        rig.other.script = stream(events_of(ANTHROPIC))
        rig.upstream.script = plain(BUSY, 500)
        await burst(rig, 20)
        dead = [await first_event_seconds(rig) for _ in range(40)]
        assert len(rig.upstream.requests) == breaker.FAILURES_IN_A_ROW
        rig.upstream.script = stream(events_of(ANTHROPIC))
        alone = await make_rig({"two": {}}, worker_id="worker-1")
        alone.other.script = stream(events_of(ANTHROPIC))
        await burst(alone, 20)
        healthy = [await first_event_seconds(alone) for _ in range(40)]
        medians = statistics.median(dead), statistics.median(healthy)
        with capsys.disabled():
            with_dead, alone_ = (f"{median * 1e3:.2f} ms" for median in medians)
            print(f"\n  first byte p50: {with_dead} with a dead one, {alone_} without")
        assert medians[0] < 5 * medians[1]

    async def test_a_cold_provider_answers_all_who_have_no_other(self, rig: Rig) -> None:
        rig.upstream.script = stream(events_of(ANTHROPIC))
        assert {answer.head.status for answer in await burst(rig)} == {200}

    async def test_one_on_trial_is_asked_if_the_other_one_fails(self, make_rig: MakeRig) -> None:
        rig = await make_rig(THREE)
        rig.upstream.script = stream([0.2, *events_of(ANTHROPIC)])
        rig.other.script = plain(BUSY, 500)
        answers = await burst(rig, 20)
        assert {answer.end.provider_id for answer in answers} == {"one"}


class TestHalfOpen:
    async def test_with_another_to_ask_one_of_a_hundred_probes(
        self, make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(breaker, "OPEN_SECONDS", 0.05)
        rig = await make_rig(THREE)
        rig.upstream.script = plain(BUSY, 500)
        rig.other.script = stream(events_of(ANTHROPIC))
        await burst(rig, 20)
        await asyncio.sleep(0.06)
        may_answer = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            await may_answer.wait()
            await stream(events_of(ANTHROPIC))(exchange)

        rig.upstream.script = script
        seen = len(rig.upstream.requests)
        calls = [asyncio.create_task(rig.relay(stream_request(ANTHROPIC))) for _ in range(100)]
        await until(lambda: sum(call.done() for call in calls) == 99)
        await rig.upstream.until_requests(seen + 1)
        assert len(rig.upstream.requests) == seen + 1
        may_answer.set()
        answers = await asyncio.gather(*calls)
        assert sorted(answer.end.provider_id for answer in answers)[:2] == ["one", "two"]
        assert (await rig.relay(stream_request(ANTHROPIC))).end.provider_id == "one"


class TestFlapping:
    async def test_a_provider_that_fails_half_the_time_harms_nobody(self, make_rig: MakeRig) -> None:
        rig = await make_rig(THREE)
        rig.upstream.scripts = [
            plain(BUSY, 500) if n % 2 else stream(events_of(ANTHROPIC)) for n in range(400)
        ]
        rig.other.script = stream(events_of(ANTHROPIC))
        answers: list[Answer] = []
        for _ in range(10):
            answers += await burst(rig, 30)
        assert {answer.head.status for answer in answers} == {200}
        failovers = sum(answer.end.attempt_count - 1 for answer in answers)
        assert failovers <= 0.2 * len(answers)


class TestBothDead:
    async def test_half_of_a_models_providers_stay_to_be_asked(self, make_rig: MakeRig) -> None:
        """And the one that is back answers at once, without waiting for a probe's time."""
        rig = await make_rig(THREE)
        for upstream in (rig.upstream, rig.other):
            upstream.script = plain(BUSY, 500)
        for _ in range(6):
            assert {answer.head.status for answer in await burst(rig, 5)} <= {500}
        seen = len(rig.upstream.requests), len(rig.other.requests)
        assert (await rig.relay(stream_request(ANTHROPIC))).head.status == 500
        assert 1 <= len(rig.upstream.requests) + len(rig.other.requests) - sum(seen) <= 2
        for upstream in (rig.upstream, rig.other):
            upstream.script = stream(events_of(ANTHROPIC))
        assert {answer.head.status for answer in await burst(rig, 5)} == {200}


class TestRetries:
    async def test_the_only_one_is_asked_once_more(self, rig: Rig) -> None:
        rig.upstream.scripts = [plain(BUSY, 500)]
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        answer = await rig.relay()
        assert (answer.head.status, answer.end.attempt_count) == (200, 2)

    @pytest.mark.parametrize(("seconds", "attempt_count"), [("1", 2), ("30", 1)])
    async def test_it_is_waited_for_as_long_as_it_asks_if_that_is_short(
        self, rig: Rig, seconds: str, attempt_count: int
    ) -> None:
        rig.upstream.scripts = [plain(BUSY, 429, {"retry-after": seconds})]
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        started = time.monotonic()
        answer = await rig.relay()
        assert answer.end.attempt_count == attempt_count
        assert attempt_count == 1 or time.monotonic() - started >= float(seconds)

    @pytest.mark.parametrize("status", [400, 401, 404, 422])
    async def test_others_are_not_repeated(self, rig: Rig, status: int) -> None:
        rig.upstream.script = plain(BUSY, status)
        await rig.relay()
        assert len(rig.upstream.requests) == 1

    async def test_so_many_at_once_and_no_more(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(breaker, "FAILURES_IN_A_ROW", 10_000)
        monkeypatch.setattr(breaker, "WINDOW_MINIMUM", 10_000)
        monkeypatch.setattr(retry, "MAX_JITTER_SECONDS", 3.0)
        all_are_here = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            if len(rig.upstream.requests) >= CALLERS:
                all_are_here.set()
            await all_are_here.wait()
            await plain(BUSY, 500)(exchange)

        rig.upstream.script = script
        await asyncio.gather(*(rig.relay() for _ in range(CALLERS)))
        # 20 % of those that run, and what the first ones made room for.
        assert CALLERS < len(rig.upstream.requests) <= CALLERS * (1 + retry.BUDGET_SHARE)
