"""Keeps one process running: started, watched, restarted with back-off, stopped."""

import asyncio
import logging
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from lurus_switch.embedded.child import Child, describe_exit
from lurus_switch.embedded.errors import EmbeddedError, StartFailed
from lurus_switch.embedded.probe import pause_seconds
from lurus_switch.embedded.spec import ProcessEvent, ProcessSpec, ProcessState, ProcessStatus

READY_CALL_SECONDS = 5.0
"""How long one readiness call may take."""

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_FACTOR = 2.0
BACKOFF_MAXIMUM_SECONDS = 15.0
STABLE_SECONDS = 10.0
"""A process that was ready for this long begins again with the first back-off."""

_log = logging.getLogger(__name__)


def backoff_seconds(failure_count: int, jitter: float) -> float:
    """Returns how long to wait before the next start, after `failure_count` >= 1 failures in a row.

    `jitter`, in [0, 1), takes up to half of it away, so that processes that
    fell together do not rise together.
    """
    full = min(BACKOFF_FIRST_SECONDS * BACKOFF_FACTOR ** min(failure_count - 1, 32), BACKOFF_MAXIMUM_SECONDS)
    return full * (1 - jitter / 2)


class SupervisedProcess:
    """Keeps one process running from `start` until `stop`."""

    def __init__(
        self, spec: ProcessSpec, log_path: Path, pid_path: Path, on_event: Callable[[ProcessEvent], None]
    ) -> None:
        self.spec = spec
        self.started = asyncio.Event()
        self._log_path = log_path
        self._pid_path = pid_path
        self._on_event = on_event
        self._child: Child | None = None
        self._task: asyncio.Task[None] | None = None
        self._state = ProcessState.WAITING
        self._since = time.time()
        self._restarts = 0
        self._last_exit: str | None = None
        self._stopping = False

    def status(self) -> ProcessStatus:
        child = self._child
        return ProcessStatus(
            name=self.spec.name,
            pid=None if child is None or child.exit.done() else child.pid,
            state=self._state,
            restarts=self._restarts,
            since=self._since,
            last_exit=self._last_exit,
            log_path=self._log_path,
        )

    async def start(self) -> None:
        """Starts the process and waits until it is ready; from then on it is kept running.

        Raises `StartFailed` without another attempt.
        """
        self._stopping = False
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(first), name=f"supervise {self.spec.name}")
        await first
        self.started.set()

    async def stop(self, number: signal.Signals | None = None) -> None:
        """Ends the process and the watch over it; repeats do nothing.

        `number` is sent in place of the signal that usually stops it.
        """
        self._stopping = True
        task, self._task = self._task, None
        if task is None:
            return
        message = ""
        if self._child is not None and not self._child.exit.done():
            self._enter(ProcessState.STOPPING)
            try:
                await self._child.stop(number or self.spec.stop_signal, self.spec.stop_seconds)
            finally:
                task.cancel()
            message = self._note_exit(self._child)
        task.cancel()
        await asyncio.wait([task])
        self._enter(ProcessState.STOPPED, message)

    async def stop_or_wait(self) -> None:
        """Ends the process; one that is being stopped already is waited for."""
        await self.stop()
        if self._child is not None:
            await asyncio.wait([self._child.exit], timeout=self.spec.stop_seconds)

    def signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            self._child.signal(number)

    def kill(self) -> None:
        """Kills the process now; it is started again unless it is being stopped."""
        if self._child is not None:
            self._child.kill()

    async def _run(self, first: asyncio.Future[None]) -> None:
        try:
            try:
                await self._launch()
            except Exception as error:
                self._enter(ProcessState.FAILED, str(error))
                if not first.done():
                    first.set_exception(error)
                return
            if not first.done():
                first.set_result(None)
            await self._keep_running()
        finally:
            first.cancel()
            self.kill()

    async def _keep_running(self) -> None:
        failure_count = 0
        while True:
            ready_time = time.monotonic()
            reason = await self._wait_for_exit()
            if self._stopping:
                return
            if time.monotonic() - ready_time >= STABLE_SECONDS:
                failure_count = 0
            failure_count = await self._restart(failure_count, reason)

    async def _restart(self, failure_count: int, reason: str) -> int:
        """Starts the process again, as often as it takes; returns how many failures in a row that makes."""
        while not self._stopping:
            failure_count += 1
            delay = backoff_seconds(failure_count, random.random())  # noqa: S311  (not a secret)
            self._enter(ProcessState.BACKING_OFF, f"{reason}; next start in {delay:.1f} s")
            await asyncio.sleep(delay)
            self._restarts += 1
            try:
                await self._launch()
            except EmbeddedError as error:
                reason = str(error)
            except Exception as error:
                _log.exception("starting %s failed", self.spec.name)
                reason = f"{type(error).__name__}: {error}"
            else:
                break
        return failure_count

    async def _launch(self) -> None:
        self._enter(ProcessState.STARTING)
        await self.spec.prepare()
        child = self._child = Child(self.spec, self._log_path, self._pid_path)
        try:
            await self._wait_until_ready(child)
        except BaseException:
            child.kill()
            raise
        self._enter(ProcessState.READY)

    async def _wait_until_ready(self, child: Child) -> None:
        begin = time.monotonic()
        while True:
            error = await self._call_ready(child)
            waited = time.monotonic() - begin
            if child.exit.done():
                reason = f"ended while starting, {self._note_exit(child)}"
                break
            if error is None:
                return
            if waited > self.spec.ready_seconds:
                reason = (
                    f"was not ready after {self.spec.ready_seconds:g} s ({type(error).__name__}: {error})"
                )
                break
            await asyncio.wait([child.exit], timeout=pause_seconds(waited))
        child.kill()
        raise StartFailed(f"{self.spec.name} {reason}; end of {self._log_path}:\n{child.log_tail()}")

    async def _call_ready(self, child: Child) -> BaseException | None:
        """Returns why the process is not ready, or None if it is; gives up early if the process ends."""
        call = asyncio.create_task(self._ask())
        try:
            await asyncio.wait(
                [call, child.exit], timeout=READY_CALL_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            call.cancel()
        await asyncio.wait([call])
        return TimeoutError("no answer") if call.cancelled() else call.exception()

    async def _ask(self) -> int:
        await self.spec.ready()
        return 0

    async def _wait_for_exit(self) -> str:
        assert self._child is not None
        await asyncio.wait([self._child.exit])
        return f"ended with {self._note_exit(self._child)}"

    def _note_exit(self, child: Child) -> str:
        code = child.exit.result()
        clean = " (clean)" if code in self.spec.clean_exit_codes else ""
        self._last_exit = f"{describe_exit(code)}{clean}"
        return self._last_exit

    def _enter(self, state: ProcessState, message: str = "") -> None:
        self._state, self._since = state, time.time()
        event = ProcessEvent(self.spec.name, state, self.status().pid, message)
        try:
            self._on_event(event)
        except Exception:
            _log.exception("the listener failed at %s", event)
