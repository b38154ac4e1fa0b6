"""What a gateway does with four times the load that it can carry.

    python -m benchmarks.overload [--times 4] [--seconds 8] [--rounds 3] [--model fake-n50-d20] [--json]

Starts a whole mesh with one worker, and a second gateway that refuses nobody for
being late. Both have a core of their own where there are two; the provider, the
stores and the load have the other. The capacity is the most whole streams a
second that closed loops of clients get of the second gateway, as long as the
first byte comes within a second; the number of clients that gets most is first
searched for. Each round measures the capacity, then offers the first gateway so
many times that in an open loop, in all three dialects in turn, then measures
the capacity again: goodput is what came whole of the open loop, divided by the
mean of both. A capacity at which the gateway did not use its core is none, and
said so. What a refusal costs is the processor time of the open loop less that
of its whole streams, for each refused call.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table
from tests.support.mesh import Mesh, free_ports
from tests.support.open_load import OpenLoad, Window

from benchmarks.large_bodies import MIB, fake_provider, part

DIALECTS = {"A": "DIALECT_ANTHROPIC", "C": "DIALECT_OPENAI_CHAT", "R": "DIALECT_OPENAI_RESPONSES"}
DEFAULT_MODEL = "fake-n50-d20"
DEFAULT_CLIENTS = "50,100,150,200,300,400"
WARMUP_SECONDS = 3.0
CALM_SECONDS = 2.0
MAX_TIMES = 20.0
# Of a core: less than this, and the gateway had time to spare.
BUSY_CORES = 0.8
LATE_TICK_SECONDS = 0.01
# Of the first byte, at the 99th percentile: later is not served, but waited for.
IN_TIME_MS = 1000.0
START_SECONDS = 60.0
STOP_SECONDS = 20.0


def register(mesh: Mesh, port: int, model: str) -> None:
    """Registers the provider for one model, in all dialects."""
    credentials = [{"secret": "any"}]
    provider = {"provider_id": "fake", "dialects": list(DIALECTS.values()), "supported_models": [model]}
    address = {"base_url": f"http://127.0.0.1:{port}", "credentials": credentials}
    mesh.rest("POST", "providers", json=provider | address)
    mesh.rest("POST", "prices", json={"model": model, "input_nano_usd": "1000", "output_nano_usd": "2000"})


class Gateway:
    """A gateway process, and where it listens."""

    def __init__(self, pid: int, port: int) -> None:
        self.process = psutil.Process(pid)
        self.port = port


def patient_gateway(stack: ExitStack, mesh: Mesh) -> Gateway:
    """Starts another gateway on the mesh, which refuses nobody for being late."""
    environment = psutil.Process(mesh.pid("gateway")).environ()
    ports = dict(zip(("EDGE", "ROUTING", "OPS"), free_ports(3), strict=True))
    own = {f"LURUS_{name}_PORT": str(port) for name, port in ports.items()}
    own |= {"LURUS_WORKER_ID": "patient", "LURUS_MAX_LOOP_LATE_SECONDS": "0"}
    kept = {name: value for name, value in environment.items() if not name.startswith("LISTEN_")}
    output = stack.enter_context((mesh.data_dir / "patient.out").open("wb"))
    command = [sys.executable, "-m", "lurus_switch.targets", "gateway"]
    started = subprocess.Popen(
        command, env=kept | own, stdin=subprocess.DEVNULL, stdout=output, stderr=output
    )
    stack.callback(started.wait, STOP_SECONDS)
    stack.callback(started.terminate)
    return Gateway(started.pid, ports["EDGE"])


def pin(gateways: Sequence[Gateway]) -> None:
    """Gives the gateways one core, and everything else of this measurement the others."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        _set_cores(process, cores[1:])
    for gateway in gateways:
        _set_cores(gateway.process, cores[:1])


def _set_cores(process: psutil.Process, cores: list[int]) -> None:
    """Moves all threads of a process: the call of the system moves one."""
    with suppress(psutil.NoSuchProcess):
        for thread in process.threads():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cores)


class Bench:
    """One gateway under load."""

    def __init__(self, gateway: Gateway, key: str, model: str, seconds: float) -> None:
        self.worker = gateway.process
        self._load = OpenLoad(gateway.port, key, dict.fromkeys(DIALECTS, model))
        self._seconds = seconds
        self._late_seconds: list[float] = []

    async def closed(self, clients: int) -> dict[str, Any]:
        """Measures closed loops of so many clients."""
        return await self._measured(f"{clients} clients", clients=clients)

    async def open(self, times: float, capacity: dict[str, Any]) -> dict[str, Any]:
        """Measures an open loop that offers so many times the capacity."""
        row = await self._measured(f"{times:g} times", per_second=capacity["whole_per_second"] * times)
        if row["refused"]:
            of_a_stream = capacity["cores"] / capacity["whole_per_second"]
            spent = row["cores"] - of_a_stream * row["whole_per_second"]
            row["cpu_us_per_refusal"] = round(spent * self._seconds / row["refused"] * 1e6)
        return row

    async def _measured(self, name: str, clients: int = 0, per_second: float = 0.0) -> dict[str, Any]:
        """Runs one load; the processor time is that of the window that counts."""
        rss = self.worker.memory_info().rss // MIB
        self._late_seconds.clear()
        late, spent = asyncio.create_task(self._watch_own_loop()), asyncio.create_task(self._cpu_seconds())
        if clients:
            window = await self._load.closed(clients, WARMUP_SECONDS, self._seconds)
        else:
            window = await self._load.open(per_second, WARMUP_SECONDS, self._seconds)
        late.cancel()
        row = told(name, window)
        row["cores"] = round(await spent / self._seconds, 3)
        row["whole_per_core_second"] = round(window.per_second / row["cores"], 1) if row["cores"] else 0.0
        row["own_late_p99_ms"] = part(self._late_seconds, 0.99)
        row["rss_before_mib"], row["rss_after_mib"] = rss, self.worker.memory_info().rss // MIB
        await asyncio.sleep(CALM_SECONDS)
        return row

    async def _cpu_seconds(self) -> float:
        await asyncio.sleep(WARMUP_SECONDS)
        before = sum(self.worker.cpu_times()[:2])
        await asyncio.sleep(self._seconds)
        return float(sum(self.worker.cpu_times()[:2]) - before)

    async def _watch_own_loop(self) -> None:
        """Notes by how much the load itself was late: a part of the times of its answers."""
        while True:
            due = time.monotonic() + LATE_TICK_SECONDS
            await asyncio.sleep(LATE_TICK_SECONDS)
            self._late_seconds.append(max(0.0, time.monotonic() - due))


def told(name: str, window: Window) -> dict[str, Any]:
    """The figures of a window, times in milliseconds."""
    return {
        "load": name,
        "offered_per_second": round(window.offered_count / window.seconds, 1),
        "whole_per_second": round(window.per_second, 1),
        "first_byte_p50_ms": part(window.first_seconds, 0.5),
        "first_byte_p99_ms": part(window.first_seconds, 0.99),
        "refused": len(window.refused_seconds),
        "refused_p50_ms": part(window.refused_seconds, 0.5),
        "refused_p99_ms": part(window.refused_seconds, 0.99),
        "formed_part": round(window.formed_part, 4),
        "wrong": dict(window.wrong),
    }


def shed(mesh: Mesh) -> dict[str, float]:
    """Returns how many requests were refused, by cause."""
    families = text_string_to_metric_families(mesh.http.get("/metrics").text)
    return {
        sample.labels["cause"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "lurus_edge_shed_total"
    }


async def _run(
    mesh: Mesh, tried: Gateway, patient: Gateway, given: argparse.Namespace
) -> list[dict[str, Any]]:
    for gateway in (tried, patient):
        await until_served(mesh, gateway, given.model)
    pin((tried, patient))
    measured, reference = (
        Bench(gateway, mesh.key, given.model, given.seconds) for gateway in (tried, patient)
    )
    rows: list[dict[str, Any]] = []

    def noted(row: dict[str, Any]) -> dict[str, Any]:
        rows.append(row)
        Console(stderr=True).print(row, highlight=False)
        return row

    best, most = 0, 0.0
    for count in (int(count) for count in given.clients.split(",")):
        row = noted(await reference.closed(count))
        is_in_time = row["first_byte_p99_ms"] <= IN_TIME_MS or not best
        if row["whole_per_second"] > most and is_in_time:
            best, most = count, row["whole_per_second"]
    capacity = noted(await reference.closed(best))
    for _ in range(given.rounds):
        row = await measured.open(min(given.times, MAX_TIMES), capacity)
        after = await reference.closed(best)
        mean = (capacity["whole_per_second"] + after["whole_per_second"]) / 2
        noted(row | {"goodput_of_capacity": round(row["whole_per_second"] / mean, 3)})
        capacity = noted(after)
    rows.append({"load": "shed", "shed": shed(mesh)})
    return rows


async def until_served(mesh: Mesh, gateway: Gateway, model: str) -> None:
    """Waits until a gateway answers for the model."""
    load = OpenLoad(gateway.port, mesh.key, dict.fromkeys(DIALECTS, model))
    async with asyncio.timeout(START_SECONDS):
        while True:
            window = await load.closed(1, 0, 0.2)
            if window.first_seconds and not window.wrong:
                return


def _print(rows: Sequence[dict[str, Any]]) -> None:
    columns = {
        "load": "load",
        "offered_per_second": "offered/s",
        "whole_per_second": "whole/s",
        "goodput_of_capacity": "of capacity",
        "first_byte_p50_ms": "first p50",
        "first_byte_p99_ms": "first p99",
        "refused": "refused",
        "refused_p50_ms": "p50 ms",
        "refused_p99_ms": "p99 ms",
        "formed_part": "well-formed",
        "cpu_us_per_refusal": "µs each",
        "cores": "cores",
        "own_late_p99_ms": "load late",
        "rss_before_mib": "MiB before",
        "rss_after_mib": "after",
    }
    table = Table(title="capacity, and what comes of more (milliseconds)")
    for title in columns.values():
        table.add_column(title, justify="right")
    loads = [row for row in rows if "cores" in row]
    for row in loads:
        table.add_row(*(str(row.get(name, "")) for name in columns))
    console = Console(width=150)
    console.print(table)
    found = [row for row in loads if "goodput_of_capacity" in row]
    if found:
        console.print(
            f"goodput: {statistics.median(row['goodput_of_capacity'] for row in found):.3f} of capacity"
        )
    if best := [row for row in loads if "goodput_of_capacity" not in row and row["cores"] < BUSY_CORES]:
        console.print(f"not saturated, so no capacity: {', '.join(row['load'] for row in best)}")
    for row in loads:
        if row["wrong"]:
            console.print(f"wrong with {row['load']}: {row['wrong']}")
    console.print(f"refused by the gateway, by cause: {rows[-1]['shed']}")


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--times", type=float, default=4, help=f"the capacity; at most {MAX_TIMES:g}")
    parser.add_argument("--seconds", type=float, default=8, help="of each load, behind a warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="of benchmarks.fake_provider")
    parser.add_argument("--clients", default=DEFAULT_CLIENTS, help="of the closed loops")
    parser.add_argument(
        "--late", default="", help="seconds of lateness before new chats are refused; 0: never"
    )
    parser.add_argument("--json", dest="as_json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    settings = {"max_loop_late_seconds": given.late} if given.late else {}
    with ExitStack() as stack:
        (port,) = free_ports(1)
        fake_provider(stack, port)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overload-")))
        mesh = stack.enter_context(Mesh(folder, **settings))
        register(mesh, port, given.model)
        tried = Gateway(mesh.pid("gateway"), mesh.ports["EDGE"])
        rows = uvloop.run(_run(mesh, tried, patient_gateway(stack, mesh), given))
    if given.as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        _print(rows)


if __name__ == "__main__":
    main()
