"""Fixtures for tests of processes: directories that other users can reach, waiting for processes to go.

And for tests of the command line: a scripted mesh, and `lurus` run in this process.
"""

import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.switch.scripted import ScriptedMesh, scripted_mesh

from lurus_switch import cli

WAIT_SECONDS = 15.0

Run = Callable[..., tuple[int, str, str]]


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


@pytest.fixture(scope="module")
def running() -> Iterator[ScriptedMesh]:
    with scripted_mesh() as mesh:
        yield mesh


@pytest.fixture
def mesh(running: ScriptedMesh) -> ScriptedMesh:
    running.answers.clear()
    running.requests.clear()
    running.tokens.clear()
    return running


@pytest.fixture
def lurus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line; returns exit code, standard output, standard error."""
    for name in [name for name in os.environ if name.startswith("LURUS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LURUS_DATA_DIR", str(tmp_path))

    def run(*arguments: str, stdin: str = "", **environment: str) -> tuple[int, str, str]:
        with monkeypatch.context() as context:
            for name, value in environment.items():
                context.setenv(name, value)
            context.setattr(sys, "argv", ["lurus", *arguments])
            context.setattr(sys, "stdin", io.StringIO(stdin))
            try:
                code = cli.main()
            except SystemExit as end:
                code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def command(lurus: Run, mesh: ScriptedMesh) -> Run:
    """Runs a command line against the scripted mesh."""

    def run(*arguments: str, stdin: str = "", **environment: str) -> tuple[int, str, str]:
        return lurus(*arguments, stdin=stdin, **{**mesh.environment(), **environment})

    return run
