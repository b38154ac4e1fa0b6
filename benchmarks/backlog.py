"""How long it takes to catch up after an outage, and what calls notice of it.

    python -m benchmarks.backlog [--events 50000] [--out backlog.json]

A whole mesh with one worker gets an outbox full of events that the bus has not seen, as after hours without
it, and the worker is killed and starts again. Told is when the bus, the ledger and the request log had all of
them, and how long calls took to their first byte meanwhile, beside the same calls before. With --quiet nobody
calls meanwhile.
"""

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import nats
import psutil
from nats.js import JetStreamContext
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tests.conformance.rig import PATHS, UPSTREAM_MODEL, Gateway
from tests.conformance.streams import whole
from tests.support.drained import is_drained
from tests.support.held_streams import first_byte_seconds
from tests.support.mesh import Mesh
from tests.support.scripted_upstream import stream

from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common.ids import new_id

WORKER = "gateway"
CALLS_BEFORE = 100
CALLS_AT_ONCE = 5
PAUSE_SECONDS = 0.1
WAIT_SECONDS = 900.0
MAX_EVENTS = 500_000


class Backlog:
    """An outbox of a mesh, filled from outside."""

    def __init__(self, mesh: Mesh) -> None:
        self._path = next((mesh.data_dir / "outbox").glob("outbox-*.db"))

    def fill(self, count: int) -> None:
        """Adds copies of an event that was sent, each a request of its own."""
        with closing(sqlite3.connect(self._path, timeout=30)) as database:
            found = database.execute("SELECT subject, payload FROM usage WHERE state = 2 LIMIT 1").fetchone()
            subject, event = found[0], UsageEvent.FromString(found[1])
            rows = []
            for _ in range(count):
                event.request_id = new_id("req")
                rows.append((event.request_id, subject, event.SerializeToString()))
            database.executemany("INSERT INTO usage VALUES (?, 1, ?, ?, unixepoch())", rows)
            database.commit()

    def left(self) -> int:
        """How many events the bus does not have yet."""
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT count(*) FROM usage WHERE state = 1").fetchone()[0])


async def measure(
    gateway: Gateway, jetstream: JetStreamContext, count: int, is_quiet: bool, progress: Progress
) -> dict[str, object]:
    """Fills the outbox and waits until all books have it."""
    ordinary = await gateway.add("A", script=stream(whole("A", "hello")))
    body = gateway.body("A", ordinary.model, None, is_streaming=True)
    alone = await first_byte_seconds(gateway, PATHS["A"], body, CALLS_BEFORE)
    await _until(lambda: is_drained(jetstream, "billing"))
    backlog = Backlog(gateway.mesh)
    backlog.fill(count)
    old = gateway.mesh.kill(WORKER)
    await _until(lambda: _has_restarted(gateway.mesh, old))
    worker = psutil.Process(gateway.mesh.pid(WORKER))
    begin, cpu = time.monotonic(), _cpu_seconds(worker)
    ended: dict[str, float] = {}
    beside: list[float] = []
    task = progress.add_task("to the bus", total=count)

    async def books() -> None:
        await _until(lambda: _is_empty(backlog, progress, task, count))
        ended["bus"] = time.monotonic() - begin
        ended["worker_cpu"] = _cpu_seconds(worker) - cpu
        for name in ("billing", "log"):
            await _until(lambda name=name: is_drained(jetstream, name))  # type: ignore[misc]
            ended[name] = time.monotonic() - begin

    waiting = asyncio.create_task(books())
    while "bus" not in ended and not is_quiet:
        beside += await first_byte_seconds(gateway, PATHS["A"], body, CALLS_AT_ONCE)
        await asyncio.sleep(PAUSE_SECONDS)
    await waiting
    return {
        "events": count,
        "bus_seconds": round(ended["bus"], 1),
        "bus_per_second": round(count / ended["bus"]),
        "worker_cpu_us_per_event": round(ended["worker_cpu"] / count * 1e6),
        "ledger_seconds": round(ended["billing"], 1),
        "log_seconds": round(ended["log"], 1),
        "first_byte_ms_before": _percentiles(alone),
        "calls_beside": len(beside),
        **({} if is_quiet else _beside(alone, sorted(beside))),
        "load_average": os.getloadavg()[0],
    }


async def _is_empty(backlog: Backlog, progress: Progress, task: object, count: int) -> bool:
    left = await asyncio.to_thread(backlog.left)
    progress.update(task, completed=count - left)  # type: ignore[arg-type]
    return left == 0


async def _has_restarted(mesh: Mesh, old: int) -> bool:
    return mesh.answers() and mesh.pid(WORKER) != old


async def _until(check: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not await check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {WAIT_SECONDS:.0f} s")
        await asyncio.sleep(0.2)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _beside(alone: list[float], beside: list[float]) -> dict[str, object]:
    before, found = _percentiles(alone), _percentiles(beside)
    ratios = {name: round(found[name] / before[name], 2) for name in before}
    return {"first_byte_ms_beside": found, "first_byte_ratio": ratios}


def _print(found: dict[str, object]) -> None:
    table = Table("figure", "value")
    for name, value in found.items():
        shown = value if isinstance(value, dict) else {"": value}
        for part, number in shown.items():
            table.add_row(f"{name} {part}".strip(), str(number))
    Console(stderr=True).print(table)


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return {
        "p50": round(statistics.median(seconds) * 1000, 2),
        "p99": round(seconds[int(len(seconds) * 0.99) - 1] * 1000, 2),
    }


async def _measure_mesh(count: int, is_quiet: bool, progress: Progress) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="backlog-") as directory, Mesh(Path(directory)) as mesh:
        mesh.rest("POST", "prices", json={"model": UPSTREAM_MODEL, "price_id": "price_backlog"})
        client = await nats.connect(psutil.Process(mesh.pid("billing")).environ()["LURUS_NATS_URL"])
        try:
            async with Gateway(mesh) as gateway:
                return await measure(gateway, client.jetstream(), count, is_quiet, progress)
        finally:
            await client.close()


def main() -> int:
    """Measures and prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--events", type=int, default=50_000, help=f"at most {MAX_EVENTS}")
    parser.add_argument("--quiet", action="store_true", help="call nobody meanwhile")
    parser.add_argument("--out", type=Path, help="keep the figures in this file too")
    given = parser.parse_args()
    with Progress(console=Console(stderr=True)) as progress:
        found = asyncio.run(_measure_mesh(min(given.events, MAX_EVENTS), given.quiet, progress))
    _print(found)
    text = json.dumps(found)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
