"""The supervisor, with small programs in place of servers."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from lurus_switch.embedded import (
    EmbeddedError,
    ProcessEvent,
    ProcessSpec,
    ProcessState,
    StartFailed,
    Supervisor,
)
from lurus_switch.embedded.child import LOG_MAXIMUM_BYTES
from lurus_switch.embedded.process import BACKOFF_FIRST_SECONDS, BACKOFF_MAXIMUM_SECONDS, backoff_seconds

pytestmark = pytest.mark.anyio

SLEEP = "import time; time.sleep(600)"
IGNORE = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
STUBBORN = f"{IGNORE}; print('deaf', flush=True); {SLEEP}"
WITH_CHILD = "import subprocess, sys; subprocess.Popen(['sleep', '600'], start_new_session=True).wait()"


async def ready_at_once() -> None:
    return None


async def never_ready() -> None:
    raise ConnectionRefusedError("nobody listens")


def program(name: str, code: str = SLEEP, **options: Any) -> ProcessSpec:
    options.setdefault("ready", ready_at_once)
    return ProcessSpec(name=name, argv=[sys.executable, "-I", "-S", "-c", code], **options)


class Journal:
    """Collects events."""

    def __init__(self) -> None:
        self.events: list[ProcessEvent] = []

    def __call__(self, event: ProcessEvent) -> None:
        self.events.append(event)

    def names(self, state: ProcessState) -> list[str]:
        return [event.name for event in self.events if event.state is state]


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def supervisor(tmp_path: Path, journal: Journal) -> Supervisor:
    return Supervisor(tmp_path, tmp_path, journal)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)


def in_file(path: Path) -> Callable[[], Awaitable[None]]:
    """Returns a readiness check: the program has written `path`."""

    async def ready() -> None:
        if not await asyncio.to_thread(path.exists):
            raise FileNotFoundError(path)

    return ready


class TestStart:
    async def test_a_process_waits_for_those_it_depends_on(
        self, supervisor: Supervisor, journal: Journal
    ) -> None:
        async with supervisor:
            await supervisor.start([program("last", after=("one", "two")), program("one"), program("two")])
            assert journal.names(ProcessState.READY)[-1] == "last"
            assert [status.state for status in supervisor.status()] == [ProcessState.READY] * 3

    async def test_a_later_start_may_depend_on_an_earlier_one(self, supervisor: Supervisor) -> None:
        async with supervisor:
            await supervisor.start([program("store")])
            await supervisor.start([program("service", after=("store",))])
            assert [status.name for status in supervisor.status()] == ["store", "service"]

    @pytest.mark.parametrize(
        "specs",
        [
            [program("a", after=("b",)), program("b", after=("a",))],
            [program("a", after=("unknown",))],
            [program("a"), program("a")],
        ],
    )
    async def test_impossible_orders_are_refused(
        self, supervisor: Supervisor, specs: list[ProcessSpec]
    ) -> None:
        with pytest.raises(EmbeddedError):
            await supervisor.start(specs)
        assert supervisor.status() == []

    async def test_an_exit_while_starting_fails_fast_with_the_log_and_stops_the_others(
        self, supervisor: Supervisor
    ) -> None:
        began = time.monotonic()
        broken = program("broken", "print('the disk is full'); raise SystemExit(3)", ready=never_ready)
        with pytest.raises(StartFailed, match=r"exit code 3(.|\n)*the disk is full"):
            await supervisor.start([program("fine"), broken])
        assert time.monotonic() - began < 20
        assert {status.pid for status in supervisor.status()} == {None}

    async def test_a_program_that_does_not_exist_says_so(self, supervisor: Supervisor) -> None:
        with pytest.raises(StartFailed, match="No such file"):
            await supervisor.start([ProcessSpec(name="x", argv=["/nowhere/x"], ready=never_ready)])

    async def test_a_process_that_never_gets_ready_is_given_up(self, supervisor: Supervisor) -> None:
        with pytest.raises(StartFailed, match=r"not ready after 0\.2 s .*nobody listens"):
            await supervisor.start([program("slow", ready=never_ready, ready_seconds=0.2)])
        assert supervisor.status()[0].pid is None

    async def test_a_cancelled_start_leaves_nothing(
        self, supervisor: Supervisor, wait_until_gone: Callable[[Iterable[int]], None]
    ) -> None:
        start = asyncio.create_task(supervisor.start([program("fine"), program("slow", ready=never_ready)]))
        await until(lambda: len(supervisor.status()) == 2 and all(s.pid for s in supervisor.status()))
        pids = [status.pid for status in supervisor.status() if status.pid]
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        wait_until_gone(pids)

    async def test_a_listener_that_fails_does_no_harm(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(event: ProcessEvent) -> None:
            raise BrokenPipeError

        async with Supervisor(tmp_path, tmp_path, fail) as supervisor:
            await supervisor.start([program("one")])
            assert supervisor.status_of("one").state is ProcessState.READY
        assert "the listener failed" in caplog.text

    async def test_a_long_log_is_put_aside_and_a_short_one_continued(
        self, supervisor: Supervisor, tmp_path: Path
    ) -> None:
        (tmp_path / "long.log").write_bytes(b"x" * (LOG_MAXIMUM_BYTES + 1))
        (tmp_path / "short.log").write_text("before\n")
        code = f"print('started', flush=True); {SLEEP}"
        async with supervisor:
            await supervisor.start([program("long", code), program("short", code)])
            await until(lambda: (tmp_path / "short.log").read_text() == "before\nstarted\n")
            await until(lambda: (tmp_path / "long.log").read_text() == "started\n")
            assert (tmp_path / "long.log.1").stat().st_size == LOG_MAXIMUM_BYTES + 1


class TestChild:
    async def test_it_starts_clean(self, supervisor: Supervisor, tmp_path: Path) -> None:
        """No terminal input, its own session, default signals, private files, only the given environment."""
        code = (
            "import json, os, signal, sys\n"
            "lines = [line.split(':\\t') for line in open('/proc/self/status')]\n"
            "status = {line[0]: line[1] for line in lines if line[0].startswith('Sig')}\n"
            "facts = dict(stdin=sys.stdin.read(), leader=os.getsid(0) == os.getpid(), umask=os.umask(0),"
            " blocked=int(status['SigBlk'], 16), environment=sorted(os.environ), cwd=os.getcwd())\n"
            "print(json.dumps(facts), flush=True)\n"
        )
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        try:
            with pytest.raises(StartFailed):
                await supervisor.start([program("x", code, ready=never_ready, env={"LURUS_X": "1"})])
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        facts = json.loads((tmp_path / "x.log").read_text())
        assert facts.pop("environment") in (["LURUS_X"], ["LC_CTYPE", "LURUS_X"])
        assert facts == {"stdin": "", "leader": True, "umask": 0o077, "blocked": 0, "cwd": "/"}

    async def test_sigpipe_is_not_ignored(self, supervisor: Supervisor) -> None:
        spec = ProcessSpec(name="shell", argv=["sh", "-c", "kill -PIPE $$; sleep 9"], ready=never_ready)
        with pytest.raises(StartFailed, match="SIGPIPE"):
            await supervisor.start([spec])


class TestRestart:
    async def test_a_killed_process_comes_back(self, supervisor: Supervisor) -> None:
        async with supervisor:
            await supervisor.start([program("one"), program("two")])
            before, other = supervisor.status()
            supervisor.signal("one", signal.SIGKILL)
            pid = await supervisor.wait_ready("one", other_than_pid=before.pid)
            after, same = supervisor.status()
            assert pid == after.pid != before.pid
            assert (after.restarts, after.last_exit) == (1, "killed by SIGKILL")
            assert same == other

    async def test_a_crash_loop_backs_off(
        self, supervisor: Supervisor, journal: Journal, tmp_path: Path
    ) -> None:
        """It succeeds once, then fails at every start."""
        flag = tmp_path / "flag"
        code = (
            f"import os, time; os.path.exists('{flag}') and os._exit(7); open('{flag}', 'w').close(); {SLEEP}"
        )
        async with supervisor:
            await supervisor.start([program("loop", code, ready=in_file(flag))])
            supervisor.signal("loop", signal.SIGTERM)
            await asyncio.sleep(2.0)
            waits = [event for event in journal.events if event.state is ProcessState.BACKING_OFF]
            assert 3 <= len(waits) <= 7
            assert "exit code 7" in waits[-1].message
            assert supervisor.status_of("loop").last_exit == "exit code 7"

    def test_the_delay_doubles_up_to_a_limit(self) -> None:
        assert [backoff_seconds(count, 0.0) for count in (1, 2, 3)] == [
            BACKOFF_FIRST_SECONDS * factor for factor in (1, 2, 4)
        ]
        assert backoff_seconds(10**6, 0.0) == BACKOFF_MAXIMUM_SECONDS
        assert backoff_seconds(1, 0.999) >= BACKOFF_FIRST_SECONDS / 2

    async def test_it_can_be_asked_for(self, supervisor: Supervisor) -> None:
        async with supervisor:
            await supervisor.start([program("one")])
            before = supervisor.status_of("one")
            await supervisor.restart("one")
            after = supervisor.status_of("one")
            assert after.pid not in (None, before.pid)
            assert after.restarts == 0

    async def test_an_unknown_name_is_an_error(self, supervisor: Supervisor) -> None:
        with pytest.raises(EmbeddedError, match="no process is named 'nobody'"):
            supervisor.signal("nobody", signal.SIGTERM)


LINGER = """
import signal, sys, time
left = []
signal.signal(signal.SIGHUP, lambda *_: left.append(1))
open(sys.argv[1], 'w').close()
while not left or len(sys.argv) < 3:
    time.sleep(0.01)
open(sys.argv[2], 'w').close()
"""


class TestRoll:
    async def test_the_old_one_is_told_to_leave_when_the_new_one_is_ready(
        self, supervisor: Supervisor, tmp_path: Path
    ) -> None:
        here, left = tmp_path / "here", tmp_path / "left"
        old = program("worker", LINGER, ready=in_file(here))
        pids: list[int | None] = []

        def on_ready(pid: int | None) -> None:
            pids.append(pid)
            assert not left.exists()

        async with supervisor:
            await supervisor.start([replace(old, argv=[*old.argv, str(here), str(left)])])
            await supervisor.roll(program("worker"), signal.SIGHUP, on_ready)
            assert left.exists()
            assert [status.pid for status in supervisor.status()] == pids
            assert sorted(path.name for path in tmp_path.glob("*.pid")) == ["worker.1.pid"]

    async def test_a_new_one_that_fails_leaves_the_old_one_alone(self, supervisor: Supervisor) -> None:
        async with supervisor:
            await supervisor.start([program("worker")])
            before = supervisor.status()
            broken = program("worker", "raise SystemExit(3)", ready=never_ready)
            with pytest.raises(StartFailed, match="exit code 3"):
                await supervisor.roll(broken, signal.SIGHUP, lambda _: None)
            assert supervisor.status() == before

    async def test_a_stop_meanwhile_ends_both(
        self, supervisor: Supervisor, tmp_path: Path, wait_until_gone: Callable[[Iterable[int]], None]
    ) -> None:
        here = tmp_path / "here"
        deaf = program("worker", LINGER, ready=in_file(here), stop_seconds=0.5)
        await supervisor.start([replace(deaf, argv=[*deaf.argv, str(here)])])
        is_ready = asyncio.Event()
        rolling = asyncio.create_task(
            supervisor.roll(program("worker"), signal.SIGHUP, lambda _: is_ready.set())
        )
        await asyncio.wait_for(is_ready.wait(), 10)
        names = [status.name for status in supervisor.status()]
        pids = [status.pid for status in supervisor.status() if status.pid]
        await supervisor.stop()
        await asyncio.wait_for(rolling, 10)
        assert names == ["worker", "worker (leaving)"]
        assert len(pids) == 2
        wait_until_gone(pids)


class TestStop:
    async def test_dependants_stop_first(self, supervisor: Supervisor, journal: Journal) -> None:
        await supervisor.start([program("store"), program("service", after=("store",))])
        await supervisor.start([program("edge")])
        await supervisor.stop()
        await supervisor.stop()
        assert journal.names(ProcessState.STOPPED) == ["edge", "service", "store"]
        with pytest.raises(EmbeddedError, match="has been stopped"):
            await supervisor.start([program("late")])

    async def test_a_deaf_process_is_killed_with_its_descendants(
        self, supervisor: Supervisor, tmp_path: Path, wait_until_gone: Callable[[Iterable[int]], None]
    ) -> None:
        deaf = f"{IGNORE}; {WITH_CHILD}"
        await supervisor.start([program("deaf", deaf, stop_seconds=0.2)])
        parent = psutil.Process(supervisor.status_of("deaf").pid)
        await until(lambda: len(parent.children(recursive=True)) == 1)
        pids = [parent.pid, *(child.pid for child in parent.children(recursive=True))]
        await supervisor.stop()
        wait_until_gone(pids)
        assert not list(tmp_path.glob("*.pid"))

    async def test_cancelling_it_kills_what_is_left(
        self, supervisor: Supervisor, tmp_path: Path, wait_until_gone: Callable[[Iterable[int]], None]
    ) -> None:
        await supervisor.start([program("deaf", STUBBORN, stop_seconds=60.0)])
        await until(lambda: "deaf" in (tmp_path / "deaf.log").read_text())
        pid = supervisor.status_of("deaf").pid
        stop = asyncio.create_task(supervisor.stop())
        await asyncio.sleep(0.1)
        stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stop
        assert pid
        wait_until_gone([pid])

    async def test_it_ends_a_process_that_backs_off(self, supervisor: Supervisor, journal: Journal) -> None:
        await supervisor.start([program("one")])
        supervisor.signal("one", signal.SIGKILL)
        await until(lambda: "one" in journal.names(ProcessState.BACKING_OFF))
        await supervisor.stop()
        assert supervisor.status_of("one").state is ProcessState.STOPPED
        assert supervisor.status_of("one").pid is None

    @pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
    def test_a_loop_that_ends_takes_the_processes_with_it(
        self, tmp_path: Path, new_loop: Any, wait_until_gone: Callable[[Iterable[int]], None]
    ) -> None:
        async def start() -> int:
            supervisor = Supervisor(tmp_path, tmp_path)
            await supervisor.start([program("one", STUBBORN)])
            return supervisor.status_of("one").pid or 0

        with asyncio.Runner(loop_factory=new_loop) as runner:
            pid = runner.run(start())
            assert psutil.pid_exists(pid)
        wait_until_gone([pid])


def test_nothing_survives_a_killed_supervisor(
    tmp_path: Path, python_environment: dict[str, str], wait_until_gone: Callable[[Iterable[int]], None]
) -> None:
    code = f"""
import asyncio, pathlib
from lurus_switch.embedded import ProcessSpec, Supervisor
async def ready(): pass
async def main():
    path = pathlib.Path({str(tmp_path)!r})
    supervisor = Supervisor(path, path)
    argv = [{sys.executable!r}, "-I", "-S", "-c", {STUBBORN!r}]
    await supervisor.start([ProcessSpec(name=name, argv=argv, ready=ready) for name in ("a", "b")])
    print(*(status.pid for status in supervisor.status()), flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=python_environment
    ) as process:
        assert process.stdout
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        os.kill(process.pid, signal.SIGKILL)
    wait_until_gone(pids)
