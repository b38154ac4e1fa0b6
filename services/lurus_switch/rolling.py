"""The rolling restart: a new process takes the place of each gateway worker, one place after the other.

The socket on which the edge listens belongs to the supervisor, so nobody who
connects meanwhile is refused or reset, however many workers there are.
"""

import asyncio
import signal
import socket
import time
from collections.abc import Callable

from lurus_common.listening import listen
from lurus_switch.embedded import EmbeddedError, Supervisor
from lurus_switch.failures import USAGE, CommandFailed
from lurus_switch.mesh_plan import MeshPlan
from lurus_switch.places import ReloadRow, ReloadStep

# Says to a worker that its place is taken, and that it should end as soon as its streams have ended.
LEAVE = signal.SIGHUP


class Rolling:
    """The gateway's places of one mesh, and how they are rolled."""

    def __init__(self, plan: MeshPlan, supervisor: Supervisor, on_news: Callable[[], None]) -> None:
        self._plan = plan
        self._supervisor = supervisor
        self._on_news = on_news
        self._task: asyncio.Task[None] | None = None
        self._is_wanted = False
        # Whether the second of the two that take turns is in a place.
        self._is_second = dict.fromkeys(plan.gateways, False)
        self._listener = _listen(plan)
        # By process, as they are now.
        self.ops_ports = dict(plan.ops_ports)
        self.last: ReloadRow | None = None

    @property
    def listener(self) -> int:
        """The descriptor of the edge's socket."""
        return self._listener.fileno()

    def close(self) -> None:
        """Gives up the edge's socket."""
        self._listener.close()

    def begin(self) -> None:
        """Rolls all places; if that is being done, once more afterwards, since it may have come too late."""
        self._is_wanted = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._roll_all(), name="rolling restart")

    async def _roll_all(self) -> None:
        while self._is_wanted:
            self._is_wanted = False
            number = self.last.number + 1 if self.last else 1
            steps = [ReloadStep(process=name) for name in self._plan.gateways]
            row = self.last = ReloadRow(number=number, start_time=time.time(), steps=steps)
            try:
                for step in steps:
                    await self._roll(step)
            except EmbeddedError as error:
                row.problem = str(error)
            finally:
                row.end_time = time.time()
                self._on_news()

    async def _roll(self, step: ReloadStep) -> None:
        name, begin = step.process, time.monotonic()
        is_second = not self._is_second[name]
        spec = self._plan.next_gateway(name, self.listener, is_second=is_second)
        step.state, step.old_pid = "starting", self._supervisor.status_of(name).pid
        self._on_news()

        def on_ready(pid: int | None) -> None:
            step.state, step.new_pid, step.ready_seconds = "draining", pid, time.monotonic() - begin
            self._is_second[name] = is_second
            ports = self._plan.spare_ops_ports if is_second else self._plan.ops_ports
            self.ops_ports[name] = ports[name]
            self._on_news()

        try:
            await self._supervisor.roll(spec, LEAVE, on_ready)
        except EmbeddedError:
            step.state = "failed"
            raise
        step.state, step.drained_seconds = "done", time.monotonic() - begin
        self._on_news()


def _listen(plan: MeshPlan) -> socket.socket:
    settings = plan.settings
    try:
        return listen(settings.host, settings.edge_port)
    except OSError as error:
        raise CommandFailed(
            f"cannot listen on {settings.host}:{settings.edge_port}: {error}", exit_code=USAGE
        ) from None
