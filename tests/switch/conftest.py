"""Fixtures for tests of processes: directories that other users can reach, waiting for processes to go."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import pytest

WAIT_SECONDS = 15.0


def make_open_directory() -> Path:
    """Returns a new directory that every user may pass through, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="lurus-"))
    path.chmod(0o711)
    return path


@pytest.fixture
def open_directory() -> Iterator[Path]:
    path = make_open_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def module_directory() -> Iterator[Path]:
    path = make_open_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def python_environment() -> dict[str, str]:
    """The environment with which another interpreter of this version finds what we find."""
    return {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PATH": os.environ.get("PATH", os.defpath),
    }


def lives(pid: int) -> bool:
    """Returns whether a process runs; a zombie, which waits for an init that does not reap, does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def wait_until_gone() -> Callable[[Iterable[int]], None]:
    """Waits until none of the processes lives, and fails if one still does after 15 s."""

    def wait(pids: Iterable[int]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        left = list(pids)
        while left := [pid for pid in left if lives(pid)]:
            assert time.monotonic() < deadline, f"still running: {[psutil.Process(pid) for pid in left]}"
            time.sleep(0.02)

    return wait
