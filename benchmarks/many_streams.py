"""What streams cost that stand still: memory of a gateway worker, and what others notice.

    python -m benchmarks.many_streams [--idle 5000] [--unread 200]

Starts a whole mesh with one worker. Idle streams have had their begin and get
heartbeats; the clients of unread ones take nothing while their provider
writes as fast as it can. Memory is the worker's own (USS).
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from tests.conformance.rig import PATHS, UPSTREAM_MODEL, Gateway
from tests.conformance.streams import whole
from tests.support.held_streams import (
    Flood,
    first_byte_seconds,
    say_nothing,
    silent_streams,
    steady_bytes,
    unread_streams,
)
from tests.support.mesh import Mesh
from tests.support.scripted_upstream import stream

from lurus_common.listening import raise_descriptor_limit

HEARTBEAT_SECONDS = 15.0
CALLS = 200
FAST_EVENTS = 20_000
BLOCKED_SECONDS = 120.0
MAX_IDLE = 9_000
WORKER = "gateway"


async def idle(gateway: Gateway, count: int) -> dict[str, object]:
    """Holds idle streams and calls beside them."""
    pid = gateway.mesh.pid(WORKER)
    provider = await gateway.add("A", script=say_nothing)
    ordinary = await gateway.add("A", script=stream(whole("A", "hello")))
    body = gateway.body("A", ordinary.model, None, is_streaming=True)
    alone = await first_byte_seconds(gateway, PATHS["A"], body, CALLS)
    before, begin = await steady_bytes(pid), time.monotonic()
    async with silent_streams(gateway, provider, count) as clients:
        opened = time.monotonic() - begin
        beside = await first_byte_seconds(gateway, PATHS["A"], body, CALLS)
        during = await steady_bytes(pid)
        beats = await asyncio.gather(
            *(
                client.read_until(
                    lambda answer: answer.body.count(b"event: ping") >= 2, 4 * HEARTBEAT_SECONDS
                )
                for client in clients
            )
        )
        beside_beats = await first_byte_seconds(gateway, PATHS["A"], body, CALLS)
    return {
        "idle_streams": count,
        "opened_seconds": round(opened, 1),
        "kib_per_stream": round((during - before) / count / 1024, 1),
        "worker_mib": round(during / 2**20, 1),
        "streams_with_two_heartbeats": sum(answer.body.count(b"event: ping") >= 2 for answer in beats),
        "first_byte_ms_alone": _percentiles(alone),
        "first_byte_ms_beside": _percentiles(beside),
        "first_byte_ms_beside_heartbeats": _percentiles(beside_beats),
        "worker_mib_afterwards": round(await steady_bytes(pid) / 2**20, 1),
    }


async def unread(gateway: Gateway, count: int) -> dict[str, object]:
    """Holds streams that nobody reads, and reads a fast one beside them."""
    pid = gateway.mesh.pid(WORKER)
    flood = Flood()
    provider = await gateway.add("A", script=flood)
    fast = await gateway.add("A", script=stream(whole("A", *["quick "] * FAST_EVENTS)))
    alone = await _fast_seconds(gateway, fast.model)
    before = await steady_bytes(pid)
    async with unread_streams(gateway, provider, count):
        await gateway.eventually(lambda: len(flood.exchanges) == count, BLOCKED_SECONDS)
        taken = await flood.until_blocked(BLOCKED_SECONDS)
        during = await steady_bytes(pid)
        beside = await _fast_seconds(gateway, fast.model)
    return {
        "unread_streams": count,
        "kib_per_stream": round((during - before) / count / 1024, 1),
        "mib_taken_per_stream_kernels_included": round(max(taken) / 2**20, 2),
        "fast_stream_seconds_alone": round(alone, 2),
        "fast_stream_seconds_beside": round(beside, 2),
    }


async def _fast_seconds(gateway: Gateway, model: str) -> float:
    """The best of three, since others use this machine."""
    found = []
    for _ in range(3):
        begin = time.monotonic()
        provider = next(row for row in gateway.providers if row.model == model)
        told = await gateway.ask("A", provider, is_streaming=True, seconds=BLOCKED_SECONDS)
        assert told.answer.is_complete
        found.append(time.monotonic() - begin)
    return min(found)


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return {
        "p50": round(statistics.median(seconds) * 1000, 2),
        "p99": round(seconds[int(len(seconds) * 0.99) - 1] * 1000, 2),
    }


async def measure(idle_count: int, unread_count: int) -> None:
    """Starts a mesh and prints one JSON object for each kind."""
    with tempfile.TemporaryDirectory(prefix="many-streams-") as directory:
        settings = {
            "heartbeat_seconds": str(HEARTBEAT_SECONDS),
            "max_live_requests": str(MAX_IDLE + 1000),
            "upstream_idle_seconds": "600",
            "client_stall_seconds": "600",
        }
        with Mesh(Path(directory), **settings) as mesh:
            mesh.rest("POST", "prices", json={"model": UPSTREAM_MODEL, "price_id": "price_many"})
            async with Gateway(mesh) as gateway:
                if idle_count:
                    print(json.dumps(await idle(gateway, idle_count)), flush=True)
                if unread_count:
                    print(json.dumps(await unread(gateway, unread_count)), flush=True)


def main() -> None:
    """Measures what the command line asks for."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--idle", type=int, default=5000, help=f"streams, at most {MAX_IDLE}")
    arguments.add_argument("--unread", type=int, default=200)
    given = arguments.parse_args()
    raise_descriptor_limit()
    asyncio.run(measure(min(given.idle, MAX_IDLE), given.unread))


if __name__ == "__main__":
    main()
