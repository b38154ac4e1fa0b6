"""The end of a provider service."""

import asyncio

import pytest
from tests.provider.rig import served

from lurus_common.settings import Settings

pytestmark = pytest.mark.anyio
# A stop meets a driver in all its moments; one of some three of these did not end.
STOPS = 12
STOP_SECONDS = 30


@pytest.mark.timeout(STOPS * STOP_SECONDS)
async def test_a_stop_ends_whatever_a_driver_makes_of_a_cancellation(settings: Settings) -> None:
    for _ in range(STOPS):
        async with served(settings):
            await asyncio.sleep(0)
