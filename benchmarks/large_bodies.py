"""What others notice while many large request bodies come at once.

    python -m benchmarks.large_bodies [--bodies 20] [--megabytes 30] [--cases A,A-C,R-A:gzip]

Starts a whole mesh with one worker. A case is the client's dialect, with the
provider's behind a dash if that is another one, and a content coding: `A`,
`C-A`, `R:gzip`. Beside the bodies, small streams are asked for ten times a
second; their time to the first byte, alone and beside, is the figure that
counts. `late` is the worst lateness of the gateway's event loop, as a bucket
of its histogram. Bodies that the gateway has no room for are refused, and
are counted under their status.
"""

import argparse
import asyncio
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table
from tests.support.mesh import Mesh, free_ports

from benchmarks.load import PATHS

MIB = 1024 * 1024
MAX_BODIES = 100
MAX_MEGABYTES = 32
DEFAULT_CASES = "A,C,R,A-C,C-A,R-A,A-R,A:gzip,A-C:gzip"
DIALECTS = {"A": "anthropic", "C": "openai_chat", "R": "openai_responses"}
SMALL_MODEL = "fake-n3"
PROBE_SECONDS = 0.1
QUIET_PROBES = 50
ANSWER_SECONDS = 120.0
TURN = "The quick brown fox jumps over the lazy dog. " * 90
LATE = "lurus_edge_loop_late_seconds"


@dataclass(slots=True)
class Seen:
    """What came of one case."""

    case: str
    alone_seconds: list[float] = field(default_factory=list)
    beside_seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    late_seconds: float = 0.0
    rss_before: int = 0
    rss_worst: int = 0

    def row(self) -> dict[str, Any]:
        """The figures, times in milliseconds."""
        return {
            "case": self.case,
            "alone_p50_ms": part(self.alone_seconds, 0.5),
            "beside_p50_ms": part(self.beside_seconds, 0.5),
            "beside_p99_ms": part(self.beside_seconds, 0.99),
            "beside_max_ms": part(self.beside_seconds, 1.0),
            "probes": len(self.beside_seconds),
            "late_ms": round(self.late_seconds * 1000),
            "bodies": dict(self.statuses),
            "seconds": round(self.seconds, 1),
            "rss_before_mib": round(self.rss_before / MIB),
            "rss_worst_mib": round(self.rss_worst / MIB),
        }


def part(seconds: Sequence[float], share: float) -> float:
    """Returns a percentile in milliseconds; 0 of nothing."""
    ordered = sorted(seconds)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 1) if ordered else 0.0


def request(mesh: Mesh, client: str, model: str, megabytes: float, coding: str = "") -> bytes:
    """Returns a streaming request on the wire, with as large a body as asked for, in turns of 4 KB."""
    count = max(1, int(megabytes * 1_000_000 / (len(TURN) + 40)))
    turns = [{"role": ("user", "assistant")[number % 2], "content": TURN} for number in range(count)]
    fields: dict[str, object] = {"model": model, "stream": True}
    fields |= {"input": turns} if client == "R" else {"messages": turns, "max_tokens": 64}
    body = json.dumps(fields).encode()
    lines = [
        f"POST {PATHS[DIALECTS[client]]} HTTP/1.1",
        "host: gateway",
        "content-type: application/json",
        "anthropic-version: 2023-06-01",
        f"authorization: Bearer {mesh.key}",
        "connection: close",
    ]
    if coding:
        body = gzip.compress(body, 1)
        lines.append(f"content-encoding: {coding}")
    lines += [f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


async def ask(port: int, sent: bytes) -> tuple[str, float]:
    """Sends a request on a connection of its own; returns the status, and when the first byte came."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        async with asyncio.timeout(ANSWER_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
            first = time.monotonic() - began
            while await reader.read(1 << 16):
                pass
        return head.split(b" ", 2)[1].decode(), first
    finally:
        writer.close()


async def measure(mesh: Mesh, case: str, bodies: int, megabytes: float) -> Seen:
    """Runs one case."""
    dialects, _, coding = case.partition(":")
    client, _, provider = dialects.partition("-")
    port, seen = mesh.ports["EDGE"], Seen(case)
    large = request(mesh, client, f"large-{provider or client}-n3", megabytes, coding)
    small = request(mesh, "C", SMALL_MODEL, 0.001)
    seen.alone_seconds = await probes(port, small, asyncio.sleep(QUIET_PROBES * PROBE_SECONDS))
    worker, before = psutil.Process(mesh.pid("gateway")), late_counts(mesh)
    seen.rss_before = worker.memory_info().rss
    watching = asyncio.create_task(_watch_memory(worker, seen))
    began = time.monotonic()
    seen.beside_seconds = await probes(port, small, _send_all(port, large, bodies, seen))
    seen.seconds = time.monotonic() - began
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    seen.late_seconds = _worst(before, late_counts(mesh))
    return seen


async def probes(port: int, small: bytes, beside: Any) -> list[float]:
    """Returns the times to the first byte of small streams asked for while `beside` runs."""
    running = asyncio.ensure_future(beside)
    asked: list[asyncio.Task[tuple[str, float]]] = []
    while not running.done():
        asked.append(asyncio.create_task(ask(port, small)))
        await asyncio.sleep(PROBE_SECONDS)
    await running
    found = await asyncio.gather(*asked)
    wrong = Counter(status for status, _ in found if status != "200")
    if wrong:
        raise SystemExit(f"small requests failed: {dict(wrong)}")
    return [seconds for _, seconds in found]


async def _send_all(port: int, large: bytes, bodies: int, seen: Seen) -> None:
    async def send() -> None:
        try:
            status, _ = await ask(port, large)
        except (OSError, EOFError, TimeoutError) as error:
            status = type(error).__name__
        seen.statuses[status] += 1

    await asyncio.gather(*(send() for _ in range(bodies)))


async def _watch_memory(worker: psutil.Process, seen: Seen) -> None:
    while True:
        seen.rss_worst = max(seen.rss_worst, worker.memory_info().rss)
        await asyncio.sleep(0.02)


def late_counts(mesh: Mesh) -> dict[float, float]:
    """Returns how often the worker's event loop was late by at most so many seconds."""
    text = mesh.http.get("/metrics").text
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{LATE}_bucket"
    }


def _worst(before: dict[float, float], after: dict[float, float]) -> float:
    if not after:
        return 0.0
    total = after[float("inf")] - before.get(float("inf"), 0)
    return min(bound for bound, count in after.items() if count - before.get(bound, 0) >= total)


def register(mesh: Mesh, small_port: int, large_port: int) -> None:
    """Registers a provider for small calls, and one in each dialect for large ones."""
    rows = [("small", list(DIALECTS), small_port, SMALL_MODEL)]
    rows += [(f"large-{letter.lower()}", [letter], large_port, f"large-{letter}-n3") for letter in DIALECTS]
    for name, letters, port, model in rows:
        mesh.rest(
            "POST",
            "providers",
            json={
                "provider_id": name,
                "dialects": [f"DIALECT_{DIALECTS[letter].upper()}" for letter in letters],
                "base_url": f"http://127.0.0.1:{port}",
                "credentials": [{"secret": "any"}],
                "supported_models": [model],
            },
        )
        mesh.rest(
            "POST", "prices", json={"model": model, "input_nano_usd": "1000", "output_nano_usd": "2000"}
        )


def fake_provider(stack: ExitStack, port: int) -> None:
    """Starts a provider of its own process, which ends with the stack."""
    started = subprocess.Popen([sys.executable, "-m", "benchmarks.fake_provider", "--port", str(port)])
    stack.callback(started.wait, 10)
    stack.callback(started.terminate)


async def until_known(mesh: Mesh, models: Sequence[str]) -> None:
    """Waits until the gateway answers for all of these models."""
    for model in models:
        sent = request(mesh, "C", model, 0.001)
        async with asyncio.timeout(30):
            while (await ask(mesh.ports["EDGE"], sent))[0] != "200":  # nothing tells
                await asyncio.sleep(0.2)


async def _run(mesh: Mesh, given: argparse.Namespace) -> list[dict[str, Any]]:
    await until_known(mesh, [SMALL_MODEL, *(f"large-{letter}-n3" for letter in DIALECTS)])
    rows = []
    for case in given.cases.split(","):
        seen = await measure(mesh, case, min(given.bodies, MAX_BODIES), min(given.megabytes, MAX_MEGABYTES))
        rows.append(seen.row())
        Console(stderr=True).print(rows[-1], highlight=False)
    return rows


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title="time to the first byte of small streams, alone and beside large bodies (ms)")
    names = (
        "case",
        "alone p50",
        "p50",
        "p99",
        "max",
        "loop late",
        "bodies",
        "seconds",
        "MiB before",
        "MiB worst",
    )
    for name in names:
        table.add_column(name, justify="left" if name in ("case", "bodies") else "right")
    for row in rows:
        counted = " ".join(f"{status}:{count}" for status, count in sorted(row["bodies"].items()))
        cells = (*(row[f"beside_{name}_ms"] for name in ("p50", "p99", "max")), row["late_ms"], counted)
        sizes = (row["seconds"], row["rss_before_mib"], row["rss_worst_mib"])
        table.add_row(row["case"], *map(str, (row["alone_p50_ms"], *cells, *sizes)))
    Console(width=120).print(table)


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bodies", type=int, default=20, help=f"at once, at most {MAX_BODIES}")
    parser.add_argument("--megabytes", type=float, default=30, help=f"of each, at most {MAX_MEGABYTES}")
    parser.add_argument("--cases", default=DEFAULT_CASES)
    parser.add_argument("--json", dest="as_json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    with ExitStack() as stack:
        small_port, large_port = free_ports(2)
        fake_provider(stack, small_port)
        fake_provider(stack, large_port)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="large-bodies-")))
        mesh = stack.enter_context(Mesh(folder))
        register(mesh, small_port, large_port)
        rows = uvloop.run(_run(mesh, given))
    if given.as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        _print(rows)


if __name__ == "__main__":
    main()
