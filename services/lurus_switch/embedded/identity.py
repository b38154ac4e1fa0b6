"""Tells processes apart for longer than a pid lives, and ends those left behind.

A pid is reused; a pid together with its start time and the machine's boot is
not. Every child is recorded so that the next start, which holds the lock of the
data directory, can end one that outlived a killed supervisor (on systems
without PR_SET_PDEATHSIG it always does).
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

_END_SECONDS = 5.0
_POLL_SECONDS = 0.01
_PROC = Path("/proc")


def _boot_id() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "-"


def start_time(pid: int) -> str | None:
    """Returns when `pid` started, as an opaque word, or None if it is gone or a zombie."""
    if _PROC.joinpath("self/stat").exists():
        try:
            fields = _PROC.joinpath(str(pid), "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in ("Z", "X") else fields[19]
    ps = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return "_".join(ps.stdout.split()) or None


def descendants(pid: int) -> list[tuple[int, str]]:
    """Returns the processes below `pid`, children before grandchildren, each with its start time.

    Empty where /proc does not list children.
    """
    found: list[tuple[int, str]] = []
    waiting = [pid]
    while waiting:
        for path in _PROC.glob(f"{waiting.pop()}/task/*/children"):
            with contextlib.suppress(OSError):
                for child in map(int, path.read_text().split()):
                    if (started := start_time(child)) is not None:
                        found.append((child, started))
                        waiting.append(child)
    return found


def kill_if_same(pid: int, started: str) -> bool:
    """Kills `pid` if it is still the process that started then; returns whether it was."""
    if start_time(pid) != started:
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    return True


def record(path: Path, pid: int) -> None:
    """Writes down who `pid` is, for `end_recorded`."""
    path.write_text(f"{pid} {start_time(pid) or '-'} {_boot_id()}\n")


def end_recorded(directory: Path) -> None:
    """Kills every process recorded in `directory` that still lives and forgets the records.

    Only the holder of the data directory's lock may call this: then whatever
    is recorded has lost its supervisor. Waits until they are gone, at most 5 s.
    """
    left: list[tuple[int, str]] = []
    for path in directory.glob("*.pid"):
        words = path.read_text().split()
        if len(words) == 3 and words[2] == _boot_id():
            pid, started = int(words[0]), words[1]
            left += [process for process in [(pid, started), *descendants(pid)] if start_time(pid) == started]
        path.unlink()
    deadline = time.monotonic() + _END_SECONDS
    while left and time.monotonic() < deadline:
        left = [process for process in left if kill_if_same(*process)]
        time.sleep(_POLL_SECONDS)
