"""Ends processes of one mesh with SIGKILL, at random, and never anybody else's."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

from tests.support.mesh import Mesh

# What may be killed, each as often: two gateways and two consumers among four stores (reliability §11.2).
# With it what must stand in the command line; else the pid is somebody else's by now.
COMMANDS = {
    "gateway-0": "lurus_switch.targets gateway",
    "gateway-1": "lurus_switch.targets gateway",
    "billing": "lurus_switch.targets billing",
    "log": "lurus_switch.targets log",
    "nats": "nats-server",
    "postgres": "postgres",
    "clickhouse": "lurus_switch.embedded.clickhouse_http",
    "valkey": "valkey-server",
}
# Between two kills, as a share of the mean.
SPREAD = (0.4, 1.6)


class Killer:
    """Kills what runs, again and again.

    Args:
        seed: of who, and when.
        pause_seconds: between two kills, on average.
    """

    def __init__(self, mesh: Mesh, seed: int, pause_seconds: float) -> None:
        self._mesh = mesh
        self._random = random.Random(seed)
        self._pause_seconds = pause_seconds
        self._bag: list[str] = []
        self.kills: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """How many were killed."""
        return self.kills.total()

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Kills until it is over."""
        while True:
            await asyncio.sleep(self._pause_seconds * self._random.uniform(*SPREAD))
            if is_over():
                return
            self.kill(self.next())

    def next(self) -> str:
        """Returns who is killed next: all of them in a random order, then all again in another one."""
        if not self._bag:
            self._bag = self._random.sample(list(COMMANDS), len(COMMANDS))
        return self._bag.pop()

    def kill(self, name: str) -> bool:
        """Kills a process by its name, unless it is away already."""
        row: dict[str, Any] = next(
            (row for row in self._mesh.run().get("processes", ()) if row["name"] == name), {}
        )
        is_done = (
            bool(row.get("pid")) and row["state"] in ("ready", "running") and self._kill(name, row["pid"])
        )
        (self.kills if is_done else self.misses)[name] += 1
        return is_done

    def _kill(self, name: str, pid: int) -> bool:
        """Kills through a descriptor that was opened before the look: a pid may be another's meanwhile."""
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            descriptor = os.pidfd_open(pid)
            try:
                if not self._is_ours(name, psutil.Process(pid)):
                    return False
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)
            return True
        return False

    def _is_ours(self, name: str, process: psutil.Process) -> bool:
        supervisor = self._mesh.process
        ancestors = {parent.pid for parent in process.parents()}
        command = " ".join(process.cmdline())
        return supervisor is not None and supervisor.pid in ancestors and COMMANDS[name] in command
