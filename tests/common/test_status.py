"""What a process tells of the things that it depends on."""

import asyncio
from collections.abc import Callable

import pytest

from lurus.routing.v1 import routing_pb2 as pb
from lurus_common import status
from lurus_common.status import Dependency, Status, keep_asking

pytestmark = pytest.mark.anyio


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.01)


async def test_who_is_asked_regularly_is_online_while_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(status, "ANSWER_SECONDS", 0.05)
    row, how = Dependency("redis"), "refuses"

    async def ask() -> None:
        if how == "refuses":
            raise ConnectionRefusedError("a secret may stand here")
        if how == "hangs":
            await asyncio.Event().wait()

    assert row.mode == pb.MODE_OFFLINE
    asking = asyncio.create_task(keep_asking(row, ask))
    try:
        await until(lambda: row.problem == "it does not answer (ConnectionRefusedError)")
        how = "answers"
        await until(lambda: row.mode == pb.MODE_ONLINE)
        how = "hangs"
        await until(lambda: row.problem == "it does not answer (TimeoutError)")
        assert row.message().success_time.seconds
    finally:
        asking.cancel()


def test_a_process_is_degraded_when_something_is_away_or_warns() -> None:
    process = Status("billing")
    postgresql, nats = process.add("postgresql"), process.add("nats")
    postgresql.succeed()
    assert process.message().mode == pb.MODE_DEGRADED
    nats.succeed()
    assert process.message().mode == pb.MODE_ONLINE
    nats.warning = "events wait for 40 s"
    assert process.message().mode == pb.MODE_DEGRADED
    assert process.message().dependencies[1].problem == "events wait for 40 s"
