"""How well an edge holds its limit when it is offered too much, whatever else the machine does.

    python -m benchmarks.overload_control [--times 4] [--seconds 4] [--rounds 3] [--event-seconds 0.0008]

The edge of the tests in a process of its own, in front of a service that works for a known time at each
event, so that nothing becomes cheaper by waiting. In turns: closed loops of fewer clients than are ever
refused, then so many times as much in an open loop, then the closed loops again. Goodput is compared by
the second, and by the second of a core that the edge got: the latter also holds beside busy neighbours.
`benchmarks.overload` measures a whole mesh.
"""

import argparse
import asyncio
import json
import sys
import time
from typing import Any

import psutil
import uvloop
from rich.console import Console
from rich.table import Table
from tests.edge.busy_edge import FLOOR
from tests.support.open_load import PATHS, OpenLoad, Window

from benchmarks.large_bodies import MIB, part

WARMUP_SECONDS = 2.0
MAX_TIMES = 20.0
COLUMNS = (
    "load",
    "offered",
    "whole",
    "cores",
    "whole_per_core",
    "refused",
    "p50_ms",
    "p99_ms",
    "formed",
    "mib",
)


async def _cores(edge: psutil.Process, seconds: float) -> float:
    """Returns how much of a core the edge gets in the window behind the warm-up."""
    await asyncio.sleep(WARMUP_SECONDS)
    before, began = sum(edge.cpu_times()[:2]), time.monotonic()
    await asyncio.sleep(seconds)
    return float((sum(edge.cpu_times()[:2]) - before) / (time.monotonic() - began))


def _row(name: str, window: Window, cores: float, edge: psutil.Process) -> dict[str, Any]:
    return {
        "load": name,
        "offered": round(window.offered_count / window.seconds, 1),
        "whole": round(window.per_second, 1),
        "cores": round(cores, 2),
        "whole_per_core": round(window.per_second / cores, 1) if cores else 0.0,
        "refused": len(window.refused_seconds),
        "p50_ms": part(window.refused_seconds, 0.5),
        "p99_ms": part(window.refused_seconds, 0.99),
        "formed": round(window.formed_part, 4),
        "mib": edge.memory_info().rss // MIB,
    }


async def _measure(port: int, edge: psutil.Process, given: argparse.Namespace) -> list[dict[str, Any]]:
    load, rows = OpenLoad(port, "key", dict.fromkeys(PATHS, "m")), []

    async def closed() -> dict[str, Any]:
        watching = asyncio.create_task(_cores(edge, given.seconds))
        window = await load.closed(FLOOR - 1, WARMUP_SECONDS, given.seconds)
        rows.append(_row("capacity", window, await watching, edge))
        return rows[-1]

    before = await closed()
    for _ in range(given.rounds):
        watching = asyncio.create_task(_cores(edge, given.seconds))
        rate = before["whole"] * min(given.times, MAX_TIMES)
        window = await load.open(rate, WARMUP_SECONDS, given.seconds)
        row = _row(f"{given.times:g} times", window, await watching, edge)
        rows.append(row)
        after = await closed()
        for name in ("whole", "whole_per_core"):
            row[f"{name}_part"] = round(2 * row[name] / max(before[name] + after[name], 1e-9), 3)
        before = after
    return rows


async def _run(given: argparse.Namespace) -> list[dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.edge.busy_edge", str(given.event_seconds)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        return await _measure(int(await process.stdout.readline()), psutil.Process(process.pid), given)
    finally:
        process.stdin.close()
        await process.wait()


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(title="an edge at its capacity, and at more")
    columns = (*COLUMNS, "whole_part", "whole_per_core_part")
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in columns))
    Console(width=130).print(table)


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--times", type=float, default=4, help=f"the capacity; at most {MAX_TIMES:g}")
    parser.add_argument("--seconds", type=float, default=4, help="of each load, behind a warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--event-seconds", type=float, default=0.0008, help="of work at each of five events")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    rows = uvloop.run(_run(given))
    if given.as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        _print(rows)


if __name__ == "__main__":
    main()
