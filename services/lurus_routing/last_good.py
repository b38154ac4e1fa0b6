"""What was last known good, on local disk: signed, in two generations, shared by the workers of a machine.

A file is one line of JSON and the content. The line says what it is, how long,
when a worker heard it, and carries an HMAC over all of it, so that a torn, a
changed and a foreign file read as none. A write is atomic and keeps the
generation before it.
"""

import fcntl
import hashlib
import hmac
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import Counter

log = logging.getLogger(__name__)

FORMAT = "lurus-last-good"
VERSION = 1
MAX_BYTES = 256 * 1024 * 1024
MAX_HEADER_BYTES = 4096
LOCK_WAIT_SECONDS = 3.0
LOCK_POLL_SECONDS = 0.02

UNUSABLE = Counter(
    "lurus_last_good_unusable", "Files of last known state that could not be used.", ["kind", "cause"]
)


class Unusable(Exception):
    """A file cannot be used; `cause` is one word, for a label."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Kept:
    """What a file holds: the content, when it was heard or last confirmed, and its revision at the source."""

    content: bytes
    heard_ns: int
    revision: int


class LastGoodFile:
    """One kind of state.

    Args:
        path: of the newer generation; the other one and a lock lie beside it.
        kind: what it is, e.g. `providers`; a file of another kind is not read.
        secret: signs it. Without it nobody can read, or make, such a file.
    """

    def __init__(self, path: Path, kind: str, secret: bytes) -> None:
        self.kind = kind
        self._path = path
        self._previous = path.with_name(path.name + ".previous")
        self._key = hmac.digest(secret, f"last good {kind}".encode(), hashlib.sha256)

    def read(self) -> Kept | None:
        """Returns the newest generation that is whole, or None. Those that are not are reported."""
        for path in (self._path, self._previous):
            try:
                return self._load(path)
            except FileNotFoundError:
                continue
            except (OSError, Unusable) as error:
                UNUSABLE.labels(self.kind, error.cause if isinstance(error, Unusable) else "disk").inc()
                log.critical("%s cannot be used: %s; the generation before it is tried", path.name, error)
        return None

    def write(self, kept: Kept) -> bool:
        """Makes `kept` the newest generation, durably; False if another worker has heard later than we.

        Raises:
            OSError: the disk does not take it. The generations stay as they were.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            found = self._whole()
            # A time that lies ahead is no other worker's: the clock was set back.
            if found is not None and kept.heard_ns < found.heard_ns <= time.time_ns():
                return False
            temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
            try:
                _write_durably(temporary, self._signed(kept))
                if found is not None:
                    self._keep_previous()
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_directory(self._path.parent)
        return True

    def _keep_previous(self) -> None:
        """Makes the newer generation the older one as well: at no moment is there none."""
        link = self._previous.with_name(f"{self._previous.name}.{os.getpid()}.tmp")
        link.unlink(missing_ok=True)
        os.link(self._path, link)
        link.replace(self._previous)

    def _whole(self) -> Kept | None:
        """The newer generation if it is whole: one that is not must not take the place of a whole one."""
        with suppress(OSError, Unusable):
            return self._load(self._path)
        return None

    def _signed(self, kept: Kept) -> bytes:
        header = {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.kind,
            "heard_ns": kept.heard_ns,
            "revision": kept.revision,
            "bytes": len(kept.content),
        }
        signature = self._sign(header, kept.content)
        return json.dumps({**header, "hmac": signature}).encode() + b"\n" + kept.content

    def _sign(self, header: dict[str, Any], content: bytes) -> str:
        signed = hmac.new(self._key, json.dumps(header, sort_keys=True).encode(), hashlib.sha256)
        signed.update(content)
        return signed.hexdigest()

    def _load(self, path: Path) -> Kept:
        if path.stat().st_size > MAX_BYTES + MAX_HEADER_BYTES:
            raise Unusable("damaged", "it is too long")
        line, _, content = path.read_bytes().partition(b"\n")
        try:
            header = json.loads(line[:MAX_HEADER_BYTES])
            signature = header.pop("hmac")
            is_ours = header["format"] == FORMAT and header["kind"] == self.kind
            version, length = int(header["version"]), int(header["bytes"])
            kept = Kept(content, int(header["heard_ns"]), int(header["revision"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Unusable("damaged", "it does not begin with our header") from error
        if not is_ours:
            raise Unusable("damaged", "it is a file of another kind")
        if version != VERSION:
            raise Unusable("version", f"it is of version {version}; this release reads version {VERSION}")
        if length != len(content):
            raise Unusable("torn", f"it has {len(content)} of {length} bytes")
        if not hmac.compare_digest(str(signature), self._sign(header, content)):
            raise Unusable(
                "damaged", "its signature does not fit: it was changed, or signed with other secrets"
            )
        return kept

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other writers out. Whoever holds it for seconds has been stopped by somebody."""
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        with self._path.with_name(self._path.name + ".lock").open("ab") as held:
            while True:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise OSError(f"{self._path.name} is locked by another worker") from None
                    time.sleep(LOCK_POLL_SECONDS)
            yield


def _write_durably(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
