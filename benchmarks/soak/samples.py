"""Looks at every process of a mesh: memory, descriptors, threads, connections, tasks, and the outbox."""

import re
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from tests.support.mesh import Mesh

MIB = 1024 * 1024
GATEWAY = "gateway"
# Ours, whose every figure has to come back; of stores, whose caches grow as they please, connections do.
OURS = (GATEWAY, "provider", "billing", "log", "supervisor")
FIGURES = ("rss_mib", "descriptors", "threads", "connections", "tasks")
SCRAPE_SECONDS = 2.0
FINAL = 1
_SCRAPED = {
    "tasks": re.compile(r"^lurus_tasks ([0-9.e+]+)", re.MULTILINE),
    "live": re.compile(r"^lurus_live_requests ([0-9.e+]+)", re.MULTILINE),
}


@dataclass(slots=True)
class Sample:
    """What was there at a moment: figures by process, `pid` among them."""

    seconds: float
    phase: str
    processes: dict[str, dict[str, float]] = field(default_factory=dict)
    live_requests: float = 0.0
    outbox_rows: int = 0
    outbox_unsent: int = 0
    clients: int = 0

    def figure(self, process: str, name: str) -> float | None:
        """Returns a figure; None if the process was away."""
        return self.processes.get(process, {}).get(name)


class Sampler:
    """Takes samples.

    Args:
        mesh: that runs.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._begin = time.monotonic()
        self._http = httpx.Client(timeout=SCRAPE_SECONDS)
        self.samples: list[Sample] = []

    def take(self, phase: str, clients: int) -> Sample:
        """Looks at everything once; what cannot be reached is left out."""
        sample = Sample(round(time.monotonic() - self._begin, 1), phase, clients=clients)
        run = self._mesh.run()
        rows: list[dict[str, Any]] = [
            *run.get("processes", ()),
            {"name": "supervisor", "pid": run.get("pid")},
        ]
        for row in rows:
            with suppress(psutil.Error, OSError):
                if row["pid"]:
                    sample.processes[row["name"]] = _looked_at(row["pid"], row["name"])
        for name, address in run.get("ops", {}).items():
            scraped = self._scrape(address)
            if name in sample.processes and "tasks" in scraped:
                sample.processes[name]["tasks"] = scraped["tasks"]
            sample.live_requests += scraped.get("live", 0.0)
        with suppress(sqlite3.Error):
            sample.outbox_rows, sample.outbox_unsent = outbox_counts(self._mesh.data_dir / "outbox")
        self.samples.append(sample)
        return sample

    def _scrape(self, address: str) -> dict[str, float]:
        try:
            text = self._http.get(f"http://{address}/metrics").text
        except httpx.HTTPError:
            return {}
        found = {name: pattern.search(text) for name, pattern in _SCRAPED.items()}
        return {name: float(match[1]) for name, match in found.items() if match}


def _looked_at(pid: int, name: str) -> dict[str, float]:
    leader = psutil.Process(pid)
    family = [leader] if name == "supervisor" else [leader, *leader.children(recursive=True)]
    found = dict.fromkeys(("rss_mib", "descriptors", "threads", "connections", "cpu_seconds"), 0.0)
    for process in family:
        with process.oneshot():
            found["rss_mib"] += process.memory_info().rss / MIB
            found["descriptors"] += process.num_fds()
            found["threads"] += process.num_threads()
            times = process.cpu_times()
            found["cpu_seconds"] += times.user + times.system
        connections = process.net_connections(kind="tcp")
        found["connections"] += sum(connection.status != psutil.CONN_LISTEN for connection in connections)
    return {"pid": pid, **{key: round(value, 2) for key, value in found.items()}}


def outbox_counts(directory: Path) -> tuple[int, int]:
    """Returns how many rows all outboxes have, and how many of them the bus does not have."""
    rows = unsent = 0
    for path in [*directory.glob("outbox-*.db"), *directory.glob("sent-*.db")]:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            query = f"SELECT count(*), coalesce(sum(state <= {FINAL}), 0) FROM usage"  # noqa: S608
            more, waiting = database.execute(query).fetchone()
            rows, unsent = rows + more, unsent + waiting
    return rows, unsent
