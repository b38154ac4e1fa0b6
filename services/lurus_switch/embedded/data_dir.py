"""The directory in which everything of one `lurus up` lives: secrets, logs, ports, the stores' files."""

import fcntl
import json
import os
import secrets
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from lurus_switch.embedded.errors import AlreadyRunning, DataDirUnusable, PortTaken
from lurus_switch.embedded.identity import end_recorded

LOWEST_PORT, HIGHEST_PORT = 20000, 32767
"""Below 32768, where Linux begins to hand out ports of outgoing connections."""

_PORT_ATTEMPTS = 200
_LOCK = "lurus.lock"
_PORTS = "ports.json"


def port_is_free(port: int) -> bool:
    """Returns whether a server could listen on 127.0.0.1:`port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(1)
        except OSError:
            return False
    return True


def free_port(excluded: frozenset[int] = frozenset()) -> int:
    """Returns a port below 32768 on which nothing listens and which is not in `excluded`.

    Chosen at random, so that several starts at the same moment rarely meet.
    """
    for _ in range(_PORT_ATTEMPTS):
        port = LOWEST_PORT + secrets.randbelow(HIGHEST_PORT - LOWEST_PORT + 1)
        if port not in excluded and port_is_free(port):
            return port
    raise PortTaken(f"no free port between {LOWEST_PORT} and {HIGHEST_PORT}")


def write_private(path: Path, content: str) -> None:
    """Replaces `path` by a file only we can read; after a crash it has the old content or the new."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class DataDir:
    """One data directory, locked by us until `close` or our end.

    With `exclusive=False` nothing is locked, created or changed: that is for
    commands that read what a running instance has made.
    """

    def __init__(self, path: Path | str, *, exclusive: bool = True) -> None:
        self.path = Path(path).absolute()
        self.logs = self.path / "logs"
        self.run = self.path / "run"
        self._secrets = self.path / "secrets"
        self._lock: int | None = None
        if exclusive:
            self._create()
            self._lock = self._acquire()
            end_recorded(self.run)

    def secret(self, name: str, nbytes: int = 32) -> str:
        """Returns the secret `name`: `nbytes` random bytes as lower-case hex, the same at every start."""
        path = self._secrets / name
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            if self._lock is None:
                raise DataDirUnusable(
                    f"{self.path} has no secret {name!r}; has `lurus up` run there?"
                ) from None
        except PermissionError:
            raise DataDirUnusable(f"{path} belongs to another user") from None
        value = secrets.token_hex(nbytes)
        write_private(path, f"{value}\n")
        return value

    def secret_path(self, name: str, nbytes: int = 32) -> Path:
        """Returns the file, mode 0600, that holds the secret `name`."""
        self.secret(name, nbytes)
        return self._secrets / name

    def port(self, name: str, configured: int | None = None) -> int:
        """Returns the port of `name`: as configured, else that of the last start if free, else a new one.

        Remembers it. Raises `PortTaken` if a configured port is in use.
        """
        ports = self._ports()
        if configured is not None:
            if not port_is_free(configured):
                raise PortTaken(f"port {configured}, configured for {name}, is in use")
            port = configured
        elif (remembered := ports.get(name)) is not None and port_is_free(remembered):
            port = remembered
        else:
            port = free_port(frozenset(ports.values()))
        if ports.get(name) != port and self._lock is not None:
            write_private(
                self.path / _PORTS, json.dumps({**ports, name: port}, indent=1, sort_keys=True) + "\n"
            )
        return port

    def directory(self, name: str) -> Path:
        """Returns the directory `name` in here, created with mode 0700 if it is missing."""
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def close(self) -> None:
        """Gives up the lock; repeats do nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _create(self) -> None:
        """Makes the directories. Under root, PostgreSQL is another user, who must reach its own files."""
        try:
            if not self.path.exists():
                self.path.mkdir(mode=0o700, parents=True)
                self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
            for directory in (self.logs, self.run, self._secrets):
                directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise DataDirUnusable(f"cannot use the data directory {self.path}: {error}") from error

    def _acquire(self) -> int:
        try:
            lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirUnusable(f"cannot use the data directory {self.path}: {error}") from error
        if os.fstat(lock).st_uid != os.geteuid():
            owner = os.fstat(lock).st_uid
            os.close(lock)
            raise DataDirUnusable(
                f"{self.path} was made by the user with the id {owner}; run this as that user"
            )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(lock, 32, 0).decode().strip() or "unknown"
            os.close(lock)
            raise AlreadyRunning(f"already running as process {holder} in {self.path}") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return lock

    def _ports(self) -> dict[str, int]:
        try:
            content = json.loads((self.path / _PORTS).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return {name: port for name, port in content.items() if isinstance(port, int)}
