"""What streams cost that stand still: memory of a gateway worker, and what others notice.

    python -m benchmarks.many_streams [--idle 5000] [--unread 200] [--wire]

Starts a whole mesh with one worker. Idle streams have had their begin and get
heartbeats; the clients of unread ones take nothing while their provider
writes as fast as it can. Memory is the worker's own (USS); on the wire, that
of the edge's process and of the routing service's together.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psutil
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


async def used_bytes(pids: Sequence[int]) -> int:
    """What some processes have to themselves together, as soon as it stands still."""
    return sum([await steady_bytes(pid) for pid in pids])


async def idle(gateway: Gateway, pids: Sequence[int], count: int) -> dict[str, object]:
    """Holds idle streams and calls beside them."""
    provider = await gateway.add("A", script=say_nothing)
    ordinary = await gateway.add("A", script=stream(whole("A", "hello")))
    body = gateway.body("A", ordinary.model, None, is_streaming=True)
    alone = await first_byte_seconds(gateway, PATHS["A"], body, CALLS)
    before, begin = await used_bytes(pids), time.monotonic()
    async with silent_streams(gateway, provider, count) as clients:
        opened = time.monotonic() - begin
        beside = await first_byte_seconds(gateway, PATHS["A"], body, CALLS)
        during = await used_bytes(pids)
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
        "worker_mib_afterwards": round(await used_bytes(pids) / 2**20, 1),
    }


async def unread(gateway: Gateway, pids: Sequence[int], count: int) -> dict[str, object]:
    """Holds streams that nobody reads, and reads a fast one beside them."""
    flood = Flood()
    provider = await gateway.add("A", script=flood)
    fast = await gateway.add("A", script=stream(whole("A", *["quick "] * FAST_EVENTS)))
    alone = await _fast_seconds(gateway, fast.model)
    before = await used_bytes(pids)
    async with unread_streams(gateway, provider, count):
        await gateway.eventually(lambda: len(flood.exchanges) == count, BLOCKED_SECONDS)
        taken = await flood.until_blocked(BLOCKED_SECONDS)
        during = await used_bytes(pids)
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


async def measure(idle_count: int, unread_count: int, *, is_wire: bool) -> None:
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
            pids = [mesh.pid(WORKER)]
            with ExitStack() as stack:
                front = stack.enter_context(mesh.on_the_wire()) if is_wire else mesh
                if is_wire:
                    pids.append(_edge_pid())
                async with Gateway(front) as gateway:
                    gateway.port = urlsplit(front.base_url).port or 0
                    for measured, count in ((idle, idle_count), (unread, unread_count)):
                        if count:
                            found = {**await measured(gateway, pids, count), "is_wire": is_wire}
                            print(json.dumps(found), flush=True)


def _edge_pid() -> int:
    children = psutil.Process().children()
    return next(child.pid for child in children if child.cmdline()[-1:] == ["edge"])


def main() -> None:
    """Measures what the command line asks for."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--idle", type=int, default=5000, help=f"streams, at most {MAX_IDLE}")
    arguments.add_argument("--unread", type=int, default=200)
    arguments.add_argument("--wire", action="store_true", help="with gRPC between an edge and the router")
    given = arguments.parse_args()
    raise_descriptor_limit()
    asyncio.run(measure(min(given.idle, MAX_IDLE), given.unread, is_wire=given.wire))


if __name__ == "__main__":
    main()
