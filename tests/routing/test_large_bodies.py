"""Large request bodies hold up nobody else (F22). `python -m benchmarks.large_bodies` is the long form."""

import asyncio
import time

import pytest

from tests.support.scripted_upstream import plain

from .rig import ANTHROPIC, CHAT, MakeRig, in_process_only, plain_answer, plain_request

pytestmark = pytest.mark.anyio

BODIES, BODY_BYTES = 6, 10_000_000
TURN = {"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 90}


@in_process_only
@pytest.mark.row("F22")
async def test_the_loop_has_its_turn_while_large_bodies_are_translated(make_rig: MakeRig) -> None:
    rig = await make_rig(
        {"one": {"dialects": [CHAT]}},
        upstream_first_event_seconds=60,
        unary_total_seconds=60,
        upstream_connect_seconds=30,
    )
    rig.upstream.script = plain(plain_answer(CHAT))
    turns = [TURN] * (BODY_BYTES // len(TURN["content"]))
    request = rig.request(plain_request(ANTHROPIC, messages=turns), ANTHROPIC)
    small_count, longest = 0, 0.0
    # Seconds of this process on a processor: a machine that is busy otherwise makes them no longer.
    began = last = time.process_time()

    async def send_large() -> None:
        call = rig.stub.Relay(request)
        assert [answer async for answer in call]

    async def send_small() -> None:
        nonlocal small_count
        while True:
            assert (await rig.relay()).head.status == 200
            small_count += 1

    others = asyncio.create_task(send_small())
    sending = [asyncio.create_task(send_large()) for _ in range(BODIES)]
    while not all(task.done() for task in sending):
        await asyncio.sleep(0)
        now = time.process_time()
        longest, last = max(longest, now - last), now
    for task in sending:
        task.result()
    others.cancel()
    await asyncio.gather(others, return_exceptions=True)
    total = last - began
    # Worked on by the loop itself, the bodies would be most of the time at a stretch; else a tenth.
    assert small_count and longest < total / 3, (small_count, longest, total)
