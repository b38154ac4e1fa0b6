"""Who holds an answer and where a session has moved to is known to every worker, with Redis or without."""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lurus_routing import breaker, shared
from lurus_switch.embedded import EmbeddedBackends
from tests.support.scripted_upstream import Exchange, plain

from .rig import ANTHROPIC, RESPONSES, plain_answer, plain_request
from .test_failover import error_body
from .workers import Told, Worker, Workers

pytestmark = pytest.mark.anyio

SESSION = "11111111-2222-3333-4444-555555555555"
THREE = {"credentials": ("a", "b", "c")}
WAIT_SECONDS = 20.0


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Waits until `check` says yes."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not await check():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.02)


def numbered_answers(workers: Workers) -> None:
    """Every answer has an id of its own."""
    numbers = iter(range(1_000_000))

    async def script(exchange: Exchange) -> None:
        body = {**json.loads(plain_answer(RESPONSES)), "id": f"resp_{next(numbers)}"}
        await plain(body)(exchange)

    workers.rig.upstream.script = script


class TestSessions:
    async def turn(self, worker: Worker, number: int, history: list[Any]) -> Told:
        """One turn as Claude Code makes it: the whole history each time."""
        history.append({"role": "user", "content": f"turn {number}"})
        body = {
            "model": "m-1",
            "max_tokens": 100,
            "system": [
                {"type": "text", "text": f"attribution {number}"},
                {"type": "text", "text": "be kind"},
            ],
            "messages": history,
        }
        told = await worker.post("/v1/messages?beta=true", body, x_claude_code_session_id=SESSION)
        history.append({"role": "assistant", "content": f"answer {number}"})
        assert told.status == 200
        return told

    async def test_a_session_of_50_turns_moves_once_and_stays_in_all_workers(
        self, workers: Workers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(breaker, "OPEN_SECONDS", 0.05)
        dead: set[str] = set()
        answered: list[str] = []

        async def script(exchange: Exchange) -> None:
            credential = exchange.request.header("x-api-key").rpartition("-")[2]
            if credential in dead:
                await plain(error_body("api_error"), 500)(exchange)
            else:
                answered.append(credential)
                await plain(plain_answer(ANTHROPIC))(exchange)

        workers.rig.use(one=THREE)
        workers.rig.upstream.script = script
        first, second = await workers.start("w1"), await workers.start("w2")
        history: list[Any] = []
        for number in range(15):
            await self.turn((first, second)[number % 2], number, history)
        home = answered[0]
        dead.add(home)
        for number in range(15, 25):
            await self.turn(first, number, history)
        refuge = answered[-1]
        dead.clear()
        await asyncio.sleep(0.06)
        await eventually(lambda: is_first(second, refuge))
        for number in range(25, 40):
            await self.turn((first, second)[number % 2], number, history)
        # One that starts only now has not seen any of it.
        third = await workers.start("w3")
        await eventually(lambda: is_first(third, refuge))
        for number in range(40, 50):
            await self.turn(third, number, history)
        assert refuge != home
        assert answered == [home] * 15 + [refuge] * 35

    async def test_without_a_failure_nothing_moves_and_nothing_is_written(
        self, workers: Workers, redis_server: EmbeddedBackends
    ) -> None:
        workers.rig.use(one=THREE)
        workers.rig.upstream.script = plain(plain_answer(ANTHROPIC))
        first = await workers.start("w1")
        for number in range(30):
            body = plain_request(ANTHROPIC)
            await first.post("/v1/messages", body, x_claude_code_session_id=f"session-{number}")
        assert len(Counter(workers.credentials_asked())) == 3
        assert await workers.keys() == []


async def is_first(worker: Worker, credential: str) -> bool:
    return await worker.first_choice(SESSION) == credential


class TestHolders:
    async def make(self, workers: Workers, worker: Worker, **fields: Any) -> tuple[str, str]:
        """Makes an answer; returns its id and the credential that holds it."""
        told = await worker.post("/v1/responses", plain_request(RESPONSES, **fields))
        assert told.status == 200
        return told.json["id"], workers.credentials_asked()[-1]

    async def assert_continues(
        self, workers: Workers, worker: Worker, holders: dict[str, str], **fields: Any
    ) -> None:
        for name, credential in holders.items():
            body = plain_request(RESPONSES, previous_response_id=name, prompt_cache_key=f"k{name}")
            told = await worker.post("/v1/responses", body)
            assert (told.status, workers.credentials_asked()[-1]) == (200, credential)

    async def test_another_worker_and_a_restarted_one_find_the_holder(self, workers: Workers) -> None:
        workers.rig.use(one=THREE)
        numbered_answers(workers)
        first, second = await workers.start("w1"), await workers.start("w2")
        made = [await self.make(workers, first, prompt_cache_key=f"s{number}") for number in range(9)]
        assert len({credential for _, credential in made}) > 1
        await eventually(lambda: workers.has_keys(2 * len(made)))
        await self.assert_continues(workers, second, dict(made))
        await first.stop()
        await self.assert_continues(workers, await workers.start("w1"), dict(made))

    async def test_another_accounts_answer_is_known_to_be_so_in_all_workers(self, workers: Workers) -> None:
        workers.rig.use(one=THREE)
        numbered_answers(workers)
        first, second = await workers.start("w1"), await workers.start("w2")
        name, _ = await self.make(workers, first)
        await eventually(lambda: workers.has_keys(2))
        workers.rig.key = workers.rig.billing.add_key()
        await second.until_known()
        count = len(workers.rig.upstream.requests)
        told = await second.post("/v1/responses", plain_request(RESPONSES, previous_response_id=name))
        assert (told.status, told.json["error"]["code"]) == (400, "previous_response_not_found")
        assert len(workers.rig.upstream.requests) == count

    @pytest.mark.parametrize("form", ["conv_1", {"id": "conv_1"}], ids=["id", "object"])
    async def test_a_conversation_stays_with_its_holder(self, workers: Workers, form: Any) -> None:
        workers.rig.use(one=THREE)
        numbered_answers(workers)
        first, second = await workers.start("w1"), await workers.start("w2")
        _, credential = await self.make(workers, first, conversation=form)
        await eventually(lambda: workers.has_keys(4))
        for number in range(6):
            for worker in (first, second):
                _, asked = await self.make(
                    workers, worker, conversation="conv_1", prompt_cache_key=f"k{number}"
                )
                assert asked == credential

    async def test_a_thread_of_anthropic_stays_with_its_holder(self, workers: Workers) -> None:
        workers.rig.use(one=THREE)
        workers.rig.upstream.script = plain(plain_answer(ANTHROPIC))
        first, second = await workers.start("w1"), await workers.start("w2")
        await first.post("/v1/messages", plain_request(ANTHROPIC, thread={"type": "create"}))
        await eventually(lambda: workers.has_keys(2))
        thread = {"type": "continue", "previous_message_id": "msg_1"}
        for number in range(6):
            body = plain_request(ANTHROPIC, thread=thread, system=f"be {number}")
            assert (await second.post("/v1/messages", body)).status == 200
        assert len(set(workers.credentials_asked())) == 1


class TestRedisAway:
    """Stopped is worse than gone: nothing answers, and nothing refuses."""

    async def test_requests_go_on_and_a_dead_redis_costs_only_the_first(
        self, workers: Workers, redis_server: EmbeddedBackends
    ) -> None:
        workers.rig.use(one=THREE)
        numbered_answers(workers)
        first, second = await workers.start("w1"), await workers.start("w2")
        reads: list[str] = []
        told = await first.post("/v1/responses", plain_request(RESPONSES))
        before = told.json["id"]
        await eventually(lambda: workers.has_keys(2))
        redis_server.supervisor.signal("valkey", signal.SIGSTOP)
        try:
            for number in range(20):
                body = plain_request(RESPONSES, prompt_cache_key=f"away {number}")
                told = await first.post("/v1/responses", body)
                assert told.status == 200
                reads.append(told.json["id"])
            # Memory serves what this worker has made, before and meanwhile.
            for name in (before, *reads):
                assert (await first.get(f"/v1/responses/{name}")).status == 200
            start = time.monotonic()
            for name in ("resp_x", "resp_y", "resp_z", *reads):
                assert (await second.get(f"/v1/responses/{name}")).status == 404
            # 23 reads that each waited for Redis would take more than this.
            assert time.monotonic() - start < 23 * shared.READ_SECONDS
        finally:
            redis_server.supervisor.signal("valkey", signal.SIGCONT)
        # What was made meanwhile has waited for it.
        await eventually(lambda: workers.has_keys(2 * 21))
        await eventually(lambda: is_held(second, reads[-1]))
        assert all([await is_held(second, name) for name in reads])

    async def test_a_killed_redis_loses_nothing_that_a_living_worker_has_made(
        self, workers: Workers, redis_server: EmbeddedBackends
    ) -> None:
        workers.rig.use(one=THREE)
        numbered_answers(workers)
        first, second = await workers.start("w1"), await workers.start("w2")
        made = (await first.post("/v1/responses", plain_request(RESPONSES))).json["id"]
        await eventually(lambda: is_held(second, made))
        pid = redis_server.supervisor.status_of("valkey").pid
        redis_server.supervisor.signal("valkey", signal.SIGKILL)
        for worker in (first, second):
            assert (await worker.get(f"/v1/responses/{made}")).status == 200
            assert (await worker.post("/v1/responses", plain_request(RESPONSES))).status == 200
        later = (await first.post("/v1/responses", plain_request(RESPONSES))).json["id"]
        await redis_server.supervisor.wait_ready("valkey", other_than_pid=pid)
        await eventually(lambda: is_held(second, later))


async def is_held(worker: Worker, name: str) -> bool:
    return (await worker.get(f"/v1/responses/{name}")).status == 200
