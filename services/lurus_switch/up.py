"""`lurus up`: the whole mesh on this machine, supervised until Ctrl-C."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import termios
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lurus_common.listening import raise_descriptor_limit
from lurus_common.settings import PREFIX, SettingsError, read_settings
from lurus_switch import connect
from lurus_switch.embedded import (
    AlreadyRunning,
    DataDir,
    EmbeddedError,
    ProcessEvent,
    StartFailed,
    Supervisor,
)
from lurus_switch.embedded.child import run_to_end
from lurus_switch.embedded.identity import start_time
from lurus_switch.embedded.probe import pause_seconds
from lurus_switch.failures import OK, USAGE, CommandFailed
from lurus_switch.mesh_plan import MeshPlan, is_ready, make_plan
from lurus_switch.places import FIRST_KEY_FILE, RUN_FILE, ProcessRow, RunFile, write_run_file
from lurus_switch.rolling import Rolling
from lurus_switch.screen import Screen

BOOTSTRAP_SECONDS = 120.0
READY_WAIT_SECONDS = 60.0
RUN_FILE_DELAY_SECONDS = 0.05


def up(path: Path, port: str | None, workers: int) -> int:
    """Starts a mesh in the data directory `path` and keeps it running; returns the exit code.

    Args:
        path: created if it is missing.
        port: of the edge, the others follow; `auto` for any free ones; None as in the settings.
        workers: gateway processes.

    Raises:
        CommandFailed: says what stands in the way.
    """
    try:
        settings = read_settings(os.environ)
    except SettingsError as error:
        raise CommandFailed(str(error), exit_code=USAGE) from None
    given = frozenset(name.removeprefix(PREFIX).lower() for name in os.environ if name.startswith(PREFIX))
    try:
        with DataDir(path) as data_dir:
            raise_descriptor_limit()
            plan = make_plan(settings, given, data_dir, port, workers)
            return asyncio.run(_Up(data_dir, plan, Screen()).run())
    except AlreadyRunning as error:
        remedy = (
            "`lurus status` shows it, `lurus connect curl` how to use it; Ctrl-C in its terminal stops it."
        )
        raise CommandFailed(str(error), remedy=remedy) from None
    except EmbeddedError as error:
        raise CommandFailed(str(error), remedy="`lurus doctor` looks for the cause.") from None


class _Up:
    """One run of a mesh."""

    def __init__(self, data_dir: DataDir, plan: MeshPlan, screen: Screen) -> None:
        self._data_dir = data_dir
        self._plan = plan
        self._screen = screen
        self._begin = time.time()
        self._supervisor = Supervisor(data_dir.logs, data_dir.run, self._on_event)
        self._is_writing = self._is_stopping = self._is_ready = False
        self._rolling = Rolling(plan, self._supervisor, self._write_run_file)
        self._has_terminal = sys.stdin is not None and sys.stdin.isatty()

    async def run(self) -> int:
        """Starts everything, waits for a signal, stops everything."""
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, task)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hang_up, task)
        try:
            await self._start()
            await asyncio.Future()
        except asyncio.CancelledError:
            return OK
        except BaseExceptionGroup as group:
            raise _innermost(group) from None
        finally:
            await self._stop()
        return OK

    async def _start(self) -> None:
        plan, supervisor = self._plan, self._supervisor
        self._screen.begin(f"Starting the mesh in {self._data_dir.path}")
        async with asyncio.TaskGroup() as group:
            # In this order, so that they stop in the reverse one. They start at the same time:
            # services wait for their stores, the gateway for nobody.
            for specs in (plan.backends.specs(), plan.services(), plan.gateway_specs(self._rolling.listener)):
                group.create_task(supervisor.start(specs))
            group.create_task(self._bootstrap())
        problems = await self._wait_until_ready()
        self._is_ready = True
        self._write_run_file()
        self._screen.end()
        for problem in problems:
            self._screen.line(f"  ! {problem}", "yellow")
        self._show_how_to_use()

    async def _bootstrap(self) -> None:
        run = self._data_dir.run / "bootstrap.pid"
        try:
            await run_to_end(
                self._plan.bootstrap(), self._data_dir.logs / "bootstrap.log", run, BOOTSTRAP_SECONDS
            )
        except StartFailed as error:
            # An operator may have closed the account or changed the sandbox: the mesh works without.
            self._screen.line(f"  ! {error}", "yellow")

    async def _wait_until_ready(self) -> list[str]:
        """Waits until nothing is missing; returns what still is after a minute."""
        checks = [self._problem(name, port) for name, port in self._plan.ops_ports.items()]
        return [problem for problem in await asyncio.gather(*checks) if problem]

    async def _problem(self, name: str, ops_port: int) -> str:
        begin = time.monotonic()
        while True:
            try:
                await is_ready(ops_port)
                return ""
            except Exception as error:
                waited = time.monotonic() - begin
                if waited > READY_WAIT_SECONDS:
                    return f"{name} is up and not ready: {error}; see `lurus status`"
            await asyncio.sleep(pause_seconds(waited))

    def _show_how_to_use(self) -> None:
        base_url = f"http://{self._plan.address_of_edge}"
        self._screen.line(f"Ready after {time.time() - self._begin:.1f} s.", "bold")
        try:
            key = (self._data_dir.path / FIRST_KEY_FILE).read_text().strip()
        except FileNotFoundError:
            self._screen.line(f"It serves {base_url} and has no first key; see `lurus key create`.")
        else:
            self._screen.line(connect.welcome(base_url, key, self._data_dir.path, typed_command()))

    async def _stop(self) -> None:
        self._is_stopping = True
        self._screen.end()
        (self._data_dir.path / RUN_FILE).unlink(missing_ok=True)
        with contextlib.suppress(asyncio.CancelledError):
            await self._supervisor.stop()
        self._rolling.close()

    def _on_signal(self, task: "asyncio.Task[Any]") -> None:
        """The first signal stops everything in order, the second one at once."""
        if not self._is_stopping:
            self._is_stopping = True
            self._screen.stopping()
        task.cancel()

    def _on_hang_up(self, task: "asyncio.Task[Any]") -> None:
        """Rolls the gateway's workers; but where the terminal has gone, the mesh goes with it."""
        if self._has_terminal and not _terminal_answers():
            self._on_signal(task)
        elif self._is_ready and not self._is_stopping:
            self._rolling.begin()

    def _on_event(self, event: ProcessEvent) -> None:
        self._screen.event(event)
        if not self._is_writing:
            self._is_writing = True
            asyncio.get_running_loop().call_later(RUN_FILE_DELAY_SECONDS, self._write_run_file)

    def _write_run_file(self) -> None:
        self._is_writing = False
        if self._is_stopping:
            return
        rows = [
            ProcessRow(
                name=status.name,
                state=status.state.value,
                pid=status.pid,
                restarts=status.restarts,
                since=status.since,
                last_exit=status.last_exit,
                log_path=str(status.log_path),
            )
            for status in self._supervisor.status()
        ]
        pid = os.getpid()
        run = RunFile(
            version=lurus_version(),
            pid=pid,
            pid_start=start_time(pid) or "",
            start_time=self._begin,
            addresses=self._plan.addresses(),
            ops={name: f"127.0.0.1:{port}" for name, port in self._rolling.ops_ports.items()},
            stores=dict(self._plan.stores),
            processes=rows,
            reload=self._rolling.last,
        )
        write_run_file(self._data_dir.path, run)


def _terminal_answers() -> bool:
    try:
        termios.tcgetattr(sys.stdin)
    except (termios.error, OSError, ValueError):
        return False
    return True


def typed_command() -> str:
    """Returns what to type for `lurus` here: the name if it is on PATH, else its shortest path."""
    program = Path(sys.executable).with_name("lurus")
    if not program.exists() or shutil.which("lurus") == str(program):
        return "lurus"
    with contextlib.suppress(ValueError):
        return str(program.relative_to(Path.cwd()))
    return str(program)


def lurus_version() -> str:
    """Returns the version that is installed."""
    try:
        return version("lurus-switch")
    except PackageNotFoundError:
        return "unknown"


def _innermost(group: BaseExceptionGroup[Any]) -> BaseException:
    first = group.exceptions[0]
    return _innermost(first) if isinstance(first, BaseExceptionGroup) else first
