"""Streams that are read on after their clients have left, so that what was used is known exactly.

Only of providers that are configured so (wire-contract U5), and for accounts
whose policy says so. Each has a task of its own, owned by the server: they are
few, they end soon, and the server ends them when it stops.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from lurus_common.errors import LurusError
from lurus_routing.call import Call
from lurus_routing.release import Release

log = logging.getLogger(__name__)

MAX_DRAINS: Final = 100
MAX_DRAIN_SECONDS: Final = 30.0


class Drains:
    """The streams of one worker that nobody waits for."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, call: Call, release: Release, close: Callable[[Call], None]) -> bool:
        """Reads a call's stream on and then closes the call; False if it is to be closed at once."""
        seconds = _wanted_seconds(call)
        if not seconds or call.settled is not None or len(self._tasks) >= MAX_DRAINS:
            return False
        task = asyncio.get_running_loop().create_task(_drain(call, release, seconds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # However it ends, be it before it has begun.
        task.add_done_callback(lambda _: close(call))
        return True

    async def stop(self) -> None:
        """Ends all of them; their calls are settled by what is known."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _wanted_seconds(call: Call) -> float:
    """How long the provider's operator, or the policy of who pays, wants to read on."""
    if call.candidate is not None and call.candidate.is_drained:
        return MAX_DRAIN_SECONDS
    return call.grant.settlement_policy.client_gone_drain_milliseconds / 1000


async def _drain(call: Call, release: Release, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await release.read_on()
    except (TimeoutError, LurusError):
        pass
    except Exception:
        log.exception("reading on the answer to %s failed", call.request_id)
