"""Runs several processes: starts them in the order of their dependencies and stops them in reverse."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Self

from lurus_switch.embedded.errors import EmbeddedError, StartFailed
from lurus_switch.embedded.process import SupervisedProcess
from lurus_switch.embedded.spec import ProcessEvent, ProcessSpec, ProcessState, ProcessStatus

_WAIT_POLL_SECONDS = 0.02


def _ignore(event: ProcessEvent) -> None:
    return None


class Supervisor:
    """Owns processes until `stop`; if it is killed, the kernel ends them.

    `start` may be called again with more specs, which may name those started
    before in `after`. `status`, `signal` and `wait_ready` work from any thread
    and loop, everything else belongs to the loop of `start`.
    """

    def __init__(
        self, log_directory: Path, run_directory: Path, on_event: Callable[[ProcessEvent], None] = _ignore
    ) -> None:
        self._log_directory = log_directory
        self._run_directory = run_directory
        self._on_event = on_event
        self._processes: dict[str, SupervisedProcess] = {}
        self._batches: list[list[str]] = []
        # Those that take another one's place, and those that leave it.
        self._passing: set[SupervisedProcess] = set()
        self._roll_count = 0
        self._stop_task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self, specs: Iterable[ProcessSpec]) -> None:
        """Starts `specs`, those whose dependencies are ready at the same time, and waits until all are ready.

        If one fails, or the caller is cancelled, every process is stopped, and
        the first `StartFailed` (or the cancellation) is raised.
        """
        self._loop = asyncio.get_running_loop()
        new = self._add(list(specs))
        try:
            async with asyncio.TaskGroup() as group:
                for process in new:
                    group.create_task(self._start_when_possible(process))
        except BaseExceptionGroup as failures:
            await self.stop()
            raise _first(failures) from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stops all processes, those that others depend on last; repeats wait for the first call.

        A caller that is cancelled meanwhile makes it kill what is left.
        """
        if self._stop_task is None:
            self._stop_task = asyncio.create_task(self._stop_all(), name="stop all processes")
        try:
            await asyncio.shield(self._stop_task)
        except asyncio.CancelledError:
            for process in (*self._processes.values(), *self._passing):
                process.kill()
            await asyncio.wait([self._stop_task])
            raise

    def status(self) -> list[ProcessStatus]:
        """Returns the state of each process, in the order in which they were given.

        Then of those that come or go in a roll, whose names say so.
        """
        passing = [found.status() for found in self._passing if self._processes[found.spec.name] is not found]
        words = {ProcessState.STOPPING: "leaving"}
        return [process.status() for process in list(self._processes.values())] + [
            replace(status, name=f"{status.name} ({words.get(status.state, 'next')})") for status in passing
        ]

    def status_of(self, name: str) -> ProcessStatus:
        """Returns the state of one process."""
        return self._process(name).status()

    def signal(self, name: str, number: Signals) -> None:
        """Sends a signal to a process, if it runs."""
        self._process(name).signal(number)

    async def restart(self, name: str) -> None:
        """Stops a process in order, starts it again and waits until it is ready."""
        loop = self._loop
        if loop is not None and loop is not asyncio.get_running_loop():
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.restart(name), loop))
            return
        process = self._process(name)
        await process.stop()
        await process.start()

    async def roll(
        self, spec: ProcessSpec, leave_signal: Signals, on_ready: Callable[[int | None], None]
    ) -> None:
        """Has another process take the place of the one with its name, without a gap.

        The new one is started first. When it is ready, the old one gets
        `leave_signal` and ends in its own time. Belongs to the loop of `start`.

        Args:
            spec: of the new process.
            leave_signal: says to the old one that its place is taken.
            on_ready: told the pid of the new one before the old one is asked to leave.

        Raises:
            StartFailed: the new one did not become ready; the old one has not been touched.
        """
        old = self._process(spec.name)
        self._roll_count += 1
        new = self._supervised(spec, f"{spec.name}.{self._roll_count}")
        self._passing.add(new)
        try:
            await new.start()
            if self._stop_task is not None:
                raise EmbeddedError("this supervisor has been stopped")
            self._processes[spec.name] = new
            self._passing.add(old)
            on_ready(new.status().pid)
            await old.stop(leave_signal)
        finally:
            if self._processes[spec.name] is not new:
                await new.stop()
            self._passing -= {old, new}

    async def wait_ready(self, name: str, *, other_than_pid: int | None = None, seconds: float = 30.0) -> int:
        """Waits until a process is ready, with another pid than the given one; returns its pid."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status_of(name)
            if status.state is ProcessState.READY and status.pid not in (None, other_than_pid):
                assert status.pid is not None
                return status.pid
            if time.monotonic() > deadline:
                raise StartFailed(
                    f"{name} is {status.state} after {seconds:g} s; last exit: {status.last_exit}"
                )
            await asyncio.sleep(_WAIT_POLL_SECONDS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _add(self, specs: list[ProcessSpec]) -> list[SupervisedProcess]:
        if self._stop_task is not None:
            raise EmbeddedError("this supervisor has been stopped")
        batches = _in_order(specs, set(self._processes))
        for spec in specs:
            self._processes[spec.name] = self._supervised(spec, spec.name)
        self._batches += batches
        return [self._processes[spec.name] for spec in specs]

    def _supervised(self, spec: ProcessSpec, run_name: str) -> SupervisedProcess:
        log_path, pid_path = self._log_directory / f"{spec.name}.log", self._run_directory / f"{run_name}.pid"
        return SupervisedProcess(spec, log_path, pid_path, self._on_event)

    def _process(self, name: str) -> SupervisedProcess:
        try:
            return self._processes[name]
        except KeyError:
            raise EmbeddedError(
                f"no process is named {name!r}; there are {', '.join(self._processes)}"
            ) from None

    async def _start_when_possible(self, process: SupervisedProcess) -> None:
        for name in process.spec.after:
            await self._processes[name].started.wait()
        await process.start()

    async def _stop_all(self) -> None:
        for names in reversed(self._batches):
            stops = [asyncio.create_task(self._processes[name].stop()) for name in names]
            # One that leaves its place drains already, and has what it was given for that.
            passing = [process for process in self._passing if process.spec.name in names]
            stops += [asyncio.create_task(process.stop_or_wait()) for process in passing]
            try:
                await asyncio.wait(stops)
            finally:
                for stop in stops:
                    stop.cancel()
        for process in (*self._processes.values(), *self._passing):
            process.kill()


def _in_order(specs: list[ProcessSpec], known: set[str]) -> list[list[str]]:
    """Returns the names in batches; each depends only on `known` and on batches before its own."""
    done, left, batches = set(known), {spec.name: set(spec.after) for spec in specs}, []
    if len(left) < len(specs) or done & set(left):
        raise EmbeddedError("two processes have the same name")
    while left:
        batch = [name for name, after in left.items() if after <= done]
        if not batch:
            raise EmbeddedError(f"processes wait for each other, or for unknown ones: {', '.join(left)}")
        batches.append(batch)
        done.update(batch)
        for name in batch:
            del left[name]
    return batches


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Returns the failure that came first; the others are mostly its consequence."""
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
