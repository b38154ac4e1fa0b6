"""How this process is, and what it depends on: noted where calls succeed or fail, read by whoever asks."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToJson

from lurus.routing.v1 import routing_pb2 as pb

NANOSECONDS = 1_000_000_000
# How often a dependency is asked whether it answers, and how long it may take.
ASK_SECONDS = 2.0
ANSWER_SECONDS = 2.0
Mode: TypeAlias = "pb.Mode.ValueType"
ONLINE, DEGRADED, OFFLINE = pb.MODE_ONLINE, pb.MODE_DEGRADED, pb.MODE_OFFLINE


class Dependency:
    """One thing that this process depends on.

    Args:
        name: as in the contract of `DependencyStatus`.
        look: called before somebody reads it, to bring backlog, lag and warning up to date.
    """

    def __init__(self, name: str, look: "Callable[[Dependency], None] | None" = None) -> None:
        self.name = name
        self.success_ns = 0
        self.problem = "it has not answered yet"
        # What somebody should look at although it works; empty if nothing.
        self.warning = ""
        self.backlog_count = 0
        self.lag_seconds: float | None = None
        self._look = look

    def succeed(self, at_ns: int = 0) -> None:
        """Notes that it has answered, now or at a moment given."""
        self.success_ns = at_ns or time.time_ns()
        self.problem = ""

    def fail(self, problem: str) -> None:
        """Notes that it did not answer, and why."""
        self.problem = problem or "it does not answer"

    @property
    def mode(self) -> Mode:
        """How it is."""
        if self.problem:
            return OFFLINE
        return DEGRADED if self.warning else ONLINE

    def message(self) -> pb.DependencyStatus:
        """Returns all of it."""
        if self._look is not None:
            self._look(self)
        found = pb.DependencyStatus(
            name=self.name,
            mode=self.mode,
            backlog_count=self.backlog_count,
            problem=self.problem or self.warning,
        )
        if self.success_ns:
            found.success_time.FromNanoseconds(self.success_ns)
            found.age.CopyFrom(_duration((time.time_ns() - self.success_ns) / NANOSECONDS))
        if self.lag_seconds is not None:
            found.lag.CopyFrom(_duration(self.lag_seconds))
        return found


class Status:
    """What a process depends on, in a fixed order.

    Args:
        process: its name.
    """

    def __init__(self, process: str) -> None:
        self._process = process
        self._dependencies: list[Dependency] = []

    def add(self, name: str, look: Callable[[Dependency], None] | None = None) -> Dependency:
        """Returns a new dependency."""
        self._dependencies.append(Dependency(name, look))
        return self._dependencies[-1]

    def message(self) -> pb.GetStatusResponse:
        """Returns how the process is now."""
        found = [dependency.message() for dependency in self._dependencies]
        is_well = all(row.mode == ONLINE for row in found)
        mode = ONLINE if is_well else DEGRADED
        return pb.GetStatusResponse(process=self._process, mode=mode, dependencies=found)

    def json(self) -> str:
        """Returns the same as JSON, with the names of the contract."""
        return MessageToJson(
            self.message(), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )


async def keep_asking(row: Dependency, ask: Callable[[], Awaitable[object]]) -> None:
    """Asks a dependency regularly, and notes whether it answers, until cancelled."""
    while True:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await ask()
        except Exception as error:  # whatever a driver raises
            row.fail(f"it does not answer ({type(error).__name__})")
        else:
            row.succeed()
        await asyncio.sleep(ASK_SECONDS)


def _duration(seconds: float) -> Duration:
    found = Duration()
    found.FromNanoseconds(max(0, int(seconds * NANOSECONDS)))
    return found
