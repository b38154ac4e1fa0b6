"""What every process has: how loops that run beside it are ended."""

import asyncio

import pytest

from lurus_common import serving
from lurus_common.serving import end_tasks

pytestmark = pytest.mark.anyio


async def test_a_task_that_loses_its_cancellation_is_ended_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "CANCEL_SECONDS", 0.05)
    count = 0

    async def loses_two() -> None:
        nonlocal count
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                count += 1
                if count > 2:
                    raise

    tasks = [asyncio.create_task(loses_two()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    await asyncio.wait_for(end_tasks(tasks), 15)
    assert count == 3 and all(task.cancelled() for task in tasks)


async def test_with_nothing_to_end_it_ends() -> None:
    done = asyncio.create_task(asyncio.sleep(0))
    await done
    await end_tasks([done])
