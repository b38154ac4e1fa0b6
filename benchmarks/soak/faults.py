"""Kills and freezes what is behind the gateway, in turns; never the gateway, whose growth is watched."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import psutil
from tests.support.mesh import Mesh

STORES = ("nats", "valkey", "postgres", "clickhouse")
SERVICES = ("provider", "billing", "log")
FROZEN_SECONDS = (2.0, 6.0)
SPREAD = (0.6, 1.4)
# What is being started, or was restarted a moment ago, has no pid.
_AWAY = (AssertionError, KeyError, IndexError, ProcessLookupError, psutil.NoSuchProcess)


class Faults:
    """Faults at random times.

    Args:
        mesh: whose processes they are.
        seed: of what happens when.
        pause_seconds: between two, on average.
    """

    def __init__(self, mesh: Mesh, seed: int, pause_seconds: float) -> None:
        self._mesh = mesh
        self._random = random.Random(seed)
        self._pause_seconds = pause_seconds
        self._bag: list[tuple[str, str]] = []
        self.done: Counter[str] = Counter()

    async def run(self, is_over: Callable[[], bool], spares_services: Callable[[], bool]) -> None:
        """Makes faults until it is over; after a time none to services, so that they can be watched."""
        while True:
            await asyncio.sleep(self._pause_seconds * self._random.uniform(*SPREAD))
            if is_over():
                return
            how, name = self._next(spares_services())
            with suppress(*_AWAY):
                if how == "kill":
                    self._mesh.kill(name)
                else:
                    await self._freeze(name)
                self.done[f"{name} {how}"] += 1

    def _next(self, spares_services: bool) -> tuple[str, str]:
        while True:
            if not self._bag:
                self._bag = [("kill", name) for name in (*STORES, *SERVICES)]
                self._bag += [("freeze", name) for name in STORES[:3]]
                self._random.shuffle(self._bag)
            how, name = self._bag.pop()
            if name not in SERVICES or not spares_services:
                return how, name

    async def _freeze(self, name: str) -> None:
        leader = psutil.Process(self._mesh.pid(name))
        family = [leader.pid, *(child.pid for child in leader.children(recursive=True))]
        try:
            for pid in family:
                os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(self._random.uniform(*FROZEN_SECONDS))
        finally:
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
