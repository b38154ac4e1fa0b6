"""Refuses new requests before memory or time run out, so that those being served are not lost.

A background task looks at the memory of this process and at its event loop; no request does.
"""

import asyncio
import contextlib
import ctypes
import logging
import math
import os
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram

from lurus_common.errors import Overloaded
from lurus_common.settings import Settings
from lurus_edge.idle_time import IdleTime
from lurus_edge.lateness import LatenessLimit

log = logging.getLogger(__name__)

# Parts of the memory limit: from the first on new requests are refused, from the second on idle
# connections are closed too.
SOFT = 0.80
HARD = 0.90
LOOK_SECONDS = 0.1
# At the event loop, while it has much to do.
CLOSE_LOOK_SECONDS = 0.01
# Between two attempts to have the allocator give back what is free: it keeps pages otherwise.
TRIM_SECONDS = 5.0
# A tenth of the slots is kept for requests that are not larger.
SMALL_BYTES = 64 * 1024
RESERVED_PART = 10
LATE_MESSAGE = "the gateway has as much to do as it can"
MIN_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 5.0
# A limit above this is none.
MAX_LIMIT_BYTES = 1 << 50
_CGROUP_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_STATM = Path("/proc/self/statm")

SHED = Counter("lurus_edge_shed_total", "Requests refused since the edge is full, by what is.", ["cause"])
MEMORY = Gauge("lurus_edge_memory_ratio", "Memory of the process as a part of its limit; 0 without a limit.")
LAG = Gauge("lurus_edge_loop_lag_seconds", "By how much the event loop was late, the last time it was asked.")
LIMIT = Gauge(
    "lurus_edge_live_limit_requests",
    "So many requests may be live since the event loop is late; 0 while it is not, and any number may.",
)
LATE = Histogram(
    "lurus_edge_loop_late_seconds",
    "By how much the event loop was late, each time it was asked.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0),
)


class Served(Protocol):
    """What is looked after: a server and its connections."""

    def close_idle(self) -> None:
        """Closes connections that wait for another request."""

    def live_count(self) -> int:
        """Returns how many requests are being answered."""
        ...

    def take_waiting(self) -> int:
        """Accepts connections that wait; returns how many."""
        ...


class Shedder:
    """What is left of the slots and of the memory of one edge.

    Args:
        max_live_requests: slots.
        memory_limit_bytes: of this process; 0 for none.
        lateness: sets a limit by how late the event loop is; None for no such limit.
    """

    def __init__(
        self, max_live_requests: int, memory_limit_bytes: int = 0, lateness: LatenessLimit | None = None
    ) -> None:
        self._slots = max_live_requests
        self._slots_of_large = max_live_requests - max_live_requests // RESERVED_PART
        self._limit_bytes = memory_limit_bytes
        self.lateness = lateness or LatenessLimit(0, 0)
        self.is_soft = False
        self.is_hard = False

    def check(self, live_count: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Lets a request begin, which is one of `live_count` already.

        Raises:
            Overloaded: there is no room for it.
        """
        if self.is_soft:
            raise overloaded("memory", "the gateway is short of memory")
        if live_count > self._slots or (live_count > self._slots_of_large and not _is_small(headers)):
            raise overloaded("slots", "the gateway serves as many requests as it can")
        if live_count > self.lateness.value:
            raise overloaded("late", LATE_MESSAGE)

    async def run(self, server: Served) -> None:
        """Looks at the memory and at the event loop until cancelled."""
        memory_due = trim_due = 0.0
        with IdleTime() as idle:
            while True:
                await self._look_at_loop(idle, server)
                now = time.monotonic()
                if not self._limit_bytes or now < memory_due:
                    continue
                memory_due = now + LOOK_SECONDS / 2
                self._look_at_memory()
                if self.is_hard:
                    server.close_idle()
                if self.is_soft and now >= trim_due:
                    trim_due = now + TRIM_SECONDS
                    await asyncio.to_thread(_give_back)

    async def _look_at_loop(self, idle: IdleTime, server: Served) -> None:
        """Takes one look, after a pause that is short only if there is much to do."""
        lateness = self.lateness
        was_limited = lateness.value < math.inf
        has_taken = server.take_waiting() > 0
        is_busy = lateness.is_on and (was_limited or has_taken or server.live_count() > lateness.floor)
        pause_seconds = CLOSE_LOOK_SECONDS if is_busy else LOOK_SECONDS
        due = time.monotonic() + pause_seconds
        await asyncio.sleep(pause_seconds)
        now = time.monotonic()
        late_seconds = max(0.0, now - due)
        LAG.set(late_seconds)
        LATE.observe(late_seconds)
        lateness.look(now, late_seconds, idle.seconds(), server.live_count())
        is_limited = lateness.value < math.inf
        if is_limited or was_limited:
            LIMIT.set(lateness.value if is_limited else 0)
        if is_limited and not was_limited:
            log.warning("new requests are refused: the event loop is late by %.3f s", late_seconds)

    def _look_at_memory(self) -> None:
        ratio = resident_bytes() / self._limit_bytes
        MEMORY.set(ratio)
        was_soft = self.is_soft
        self.is_soft, self.is_hard = ratio >= SOFT, ratio >= HARD
        if self.is_soft and not was_soft:
            log.warning("new requests are refused: memory is at %.0f %% of its limit", ratio * 100)


def overloaded(cause: str, message: str) -> Overloaded:
    """Returns a counted refusal; those who are refused together come back at different times."""
    SHED.labels(cause).inc()
    wait = random.uniform(MIN_RETRY_SECONDS, MAX_RETRY_SECONDS)  # noqa: S311  # nothing secret
    return Overloaded(message, retry_after_seconds=f"{wait:.2f}")


def memory_limit(settings: Settings) -> int:
    """Returns how much memory this process may have: as set, else its part of the cgroup's; 0 for any."""
    if settings.memory_limit_bytes:
        return settings.memory_limit_bytes
    for path in _CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):
            limit = int(path.read_text())
            return limit // settings.gateway_workers if limit < MAX_LIMIT_BYTES else 0
    return 0


def resident_bytes() -> int:
    """Returns the memory of this process; 0 where the system does not say."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _is_small(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    length = next((value for name, value in headers if name == b"content-length"), b"")
    return length.isdigit() and int(length) <= SMALL_BYTES


def _give_back() -> None:
    with contextlib.suppress(AttributeError, OSError):  # an allocator of another system
        ctypes.CDLL(None).malloc_trim(0)
