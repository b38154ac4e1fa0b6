"""An edge in a process of its own in front of a service that works hard at each event; prints its port.

A stream takes about a fiftieth of a second of one processor, so 50 of them a
second are as much as there can be.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator

import uvloop
from tests.edge.conftest import END, Script, data, head, running_edge
from tests.edge.conftest import _in_process as in_process
from tests.support.open_load import ENDS, PATHS

from lurus.routing.v1 import routing_pb2 as pb

EVENTS, EVENT_SECONDS = 5, 0.004
PER_SECOND = 1 / (EVENTS * EVENT_SECONDS)
PAUSE_SECONDS = 0.005
# So many are never refused.
FLOOR = 8


def working(event_seconds: float) -> Script:
    """Answers with events that cost so much processor time each."""

    async def script(request: pb.RelayRequest) -> AsyncIterator[pb.RelayResponse]:
        yield head(is_streaming=True)
        for _ in range(EVENTS):
            until = time.thread_time() + event_seconds
            while time.thread_time() < until:
                pass
            yield data(b"data: 1\n\n")[0]
            await asyncio.sleep(PAUSE_SECONDS)
        letter = next(letter for letter, path in PATHS.items() if path == request.path)
        yield data(b"data: " + ENDS[letter] + b"\n\n")[0]
        yield END

    return script


async def main(event_seconds: float) -> None:
    async with running_edge(in_process, min_live_requests=FLOOR, drain_seconds=1) as edge:
        edge.routing.script = working(event_seconds)
        print(edge.server.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1]) if sys.argv[1:] else EVENT_SECONDS))
