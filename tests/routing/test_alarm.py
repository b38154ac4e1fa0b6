"""Waits end in time, one after the other, on the loop that the gateway runs on."""

import asyncio
import time

import pytest

from lurus_routing import alarm as alarm_module
from lurus_routing.alarm import Alarm

pytestmark = pytest.mark.anyio


async def test_a_wait_may_follow_one_whose_time_had_come() -> None:
    alarm = Alarm()
    with alarm.by(time.monotonic() - 1):
        pass  # It had not to wait at all, so its alarm is still to ring.
    with alarm.by(time.monotonic() + 60):
        await asyncio.sleep(0.01)
    alarm.close()


async def test_a_wait_that_lasts_too_long_is_ended_and_the_next_is_not() -> None:
    alarm = Alarm()
    with pytest.raises(TimeoutError), alarm.by(time.monotonic() + 0.02):
        await asyncio.Event().wait()
    with alarm.by(time.monotonic() + 60):
        await asyncio.sleep(0.05)
    alarm.close()


async def test_an_earlier_time_replaces_a_later_one() -> None:
    alarm = Alarm()
    with alarm.by(time.monotonic() + 60):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError), alarm.by(time.monotonic() + 0.02):
        await asyncio.Event().wait()
    alarm.close()


async def test_a_wait_longer_than_a_timer_is_set_ahead_ends_at_its_own_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alarm_module, "AHEAD_SECONDS", 0.01)
    alarm = Alarm()
    begin = time.monotonic()
    with pytest.raises(TimeoutError), alarm.by(begin + 0.1):
        await asyncio.Event().wait()
    assert time.monotonic() - begin >= 0.1
    alarm.close()
