"""One run of a process, from its start until it is reaped."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from signal import SIGKILL, Signals

from lurus_switch.embedded import launch
from lurus_switch.embedded.errors import StartFailed
from lurus_switch.embedded.identity import descendants, kill_if_same, record
from lurus_switch.embedded.spec import ProcessSpec

LOG_MAXIMUM_BYTES = 8 * 1024 * 1024
"""A log longer than this becomes `<name>.log.1` when its process starts."""
LOG_TAIL_BYTES = 4096
LOG_TAIL_LINES = 20

_KILL_WAIT_SECONDS = 5.0


def describe_exit(code: int) -> str:
    """Returns an exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {Signals(-code).name}"
    return f"killed by signal {-code}"


class Child:
    """A process that we have started. Belongs to the loop on which it is made."""

    def __init__(self, spec: ProcessSpec, log_path: Path, pid_path: Path) -> None:
        self._pid_path = pid_path
        self._log_path = log_path
        log_file = _open_log(log_path)
        try:
            self._log_start = os.fstat(log_file).st_size
            self._popen = _spawn(spec, log_file)
        finally:
            os.close(log_file)
        self.pid = self._popen.pid
        self._pidfd: int | None = None
        self.exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._watch()
        try:
            record(pid_path, self.pid)
        except BaseException:
            self.kill()
            raise

    def _watch(self) -> None:
        """Resolves `exit` when the process ends: by a pidfd on the loop, else by a thread."""
        loop = asyncio.get_running_loop()
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, or forbidden in a container
            threading.Thread(target=self._wait_in_thread, args=(loop,), daemon=True).start()
        else:
            loop.add_reader(self._pidfd, self._reap)

    def _wait_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._reap)

    def _reap(self) -> None:
        """Collects the exit code and ends what is left in the process's group while its pid is still ours."""
        if self.exit.done():
            return
        if self._pidfd is not None:
            self.exit.get_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, SIGKILL)
        code = self._popen.wait(_KILL_WAIT_SECONDS)
        self._pid_path.unlink(missing_ok=True)
        self.exit.set_result(code)

    def signal(self, number: Signals) -> None:
        """Sends a signal to the process, if it still lives."""
        if not self.exit.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills the process and all below it and reaps it, without waiting for the loop."""
        if self.exit.done():
            return
        below = descendants(self.pid)
        self.signal(SIGKILL)
        for process in below:
            kill_if_same(*process)
        self._reap()

    async def stop(self, number: Signals, seconds: float) -> None:
        """Asks the process to end and kills it, and all below it, if it has not after `seconds`."""
        self.signal(number)
        try:
            await asyncio.wait([self.exit], timeout=seconds)
        finally:
            self.kill()

    def log_tail(self) -> str:
        """Returns the last lines that this run has logged."""
        with self._log_path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, size - LOG_TAIL_BYTES))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def _open_log(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_MAXIMUM_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _spawn(spec: ProcessSpec, log_file: int) -> subprocess.Popen[bytes]:
    user, group = ("-" if number is None else str(number) for number in (spec.user, spec.group))
    listener = "-" if spec.listener is None else str(spec.listener)
    launcher = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), str(int(spec.death_signal))]
    return subprocess.Popen(  # noqa: S603  (argv comes from our own specs)
        [*launcher, user, group, listener, "--", *spec.argv],
        stdin=subprocess.DEVNULL,
        stdout=log_file,
        stderr=subprocess.STDOUT,
        env=None if spec.env is None else dict(spec.env),
        cwd=spec.cwd,
        start_new_session=True,
        pass_fds=() if spec.listener is None else (spec.listener,),
    )


async def run_to_end(spec: ProcessSpec, log_path: Path, pid_path: Path, seconds: float) -> None:
    """Runs a program that ends by itself; raises `StartFailed` if it fails or takes longer than `seconds`.

    Of `spec`, what concerns a running process (readiness, stopping) is not used.
    """
    child = Child(spec, log_path, pid_path)
    try:
        await asyncio.wait([child.exit], timeout=seconds)
        reason = describe_exit(child.exit.result()) if child.exit.done() else f"no end after {seconds:g} s"
    finally:
        child.kill()
    if child.exit.result() != 0:
        raise StartFailed(f"{spec.name}: {reason}; end of {log_path}:\n{child.log_tail()}")
