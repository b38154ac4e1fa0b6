"""What this worker knows of others, in memory and on disk: providers and keys, each told by a stream."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import DecodeError

from lurus.billing.v1.billing_pb2 import WatchKeysResponse
from lurus.provider.v1.provider_pb2 import WatchProvidersResponse
from lurus_common.status import Dependency, Status
from lurus_routing.keeper import Keeper
from lurus_routing.keys import KeyTable
from lurus_routing.last_good import Kept, LastGoodFile, Unusable
from lurus_routing.relay import Relay

log = logging.getLogger(__name__)

DIRECTORY = "last-good"
# A snapshot that nobody has confirmed for so long is worth a look.
OLD_SECONDS = 900.0


class KnownProviders:
    """Providers, models and prices.

    Args:
        relay: uses them.
        data_dir: shared by the workers of this machine.
        secret: signs the file. Credentials in it are sealed all the same.
        status: gets `provider` and `snapshot`.
    """

    def __init__(self, relay: Relay, data_dir: Path, secret: bytes, status: Status) -> None:
        self._relay = relay
        self._file = LastGoodFile(data_dir / DIRECTORY / "providers", "providers", secret)
        self.keeper = Keeper(self._file, relay.capture_providers)
        self._service = status.add("provider")
        status.add("snapshot", lambda row: look_at(row, self.keeper))

    def restore(self) -> None:
        """Takes what is on disk, if anything is."""
        kept = _read(self._file, self._use)
        if kept is not None:
            self.keeper.restored(kept)

    def age_seconds(self) -> float:
        """For how long nobody has confirmed them; 0 if nothing is known."""
        return (time.time_ns() - self.keeper.heard_ns) / 1e9 if self.keeper.heard_ns else 0.0

    def _use(self, content: bytes) -> None:
        self._relay.take_providers(WatchProvidersResponse.FromString(content))

    def take(self, message: WatchProvidersResponse) -> None:
        """Takes a message of `WatchProviders`; one that names nothing is a sign of life."""
        is_changed = message.is_snapshot or message.ByteSize() > _bare_size(message)
        if is_changed:
            self._relay.take_providers(message)
        self._service.succeed()
        self.keeper.heard(message.revision, is_changed=is_changed)

    def fail(self, problem: str) -> None:
        """Notes that the provider service tells nothing now."""
        self._service.fail(problem)


class KnownKeys:
    """The key table.

    Args:
        keys: the table in memory.
        data_dir: shared by the workers of this machine.
        secret: signs the file. It holds verifiers, no keys.
        status: gets `billing` and `keys`.
    """

    def __init__(self, keys: KeyTable, data_dir: Path, secret: bytes, status: Status) -> None:
        self._keys = keys
        self._file = LastGoodFile(data_dir / DIRECTORY / "keys", "keys", secret)
        self.keeper = Keeper(self._file, self._capture)
        self._service = status.add("billing", self._look_at_billing)
        self._watch_problem = "it has told no keys yet"
        status.add("keys", lambda row: look_at(row, self.keeper))

    def restore(self) -> None:
        """Takes what is on disk, if anything is."""
        kept = _read(self._file, self._use)
        if kept is not None:
            self.keeper.restored(kept)

    def _use(self, content: bytes) -> None:
        self._keys.restore(WatchKeysResponse.FromString(content).grants)

    def take(self, message: WatchKeysResponse) -> None:
        """Takes a message of `WatchKeys`."""
        is_changed = self._keys.take(message)
        self._watch_problem = ""
        self._service.succeed()
        self.keeper.heard(message.revision, is_changed=is_changed)

    def fail(self, problem: str) -> None:
        """Notes that billing tells nothing now."""
        self._watch_problem = problem
        self._keys.note_outage()
        self._service.fail(problem)

    def answered(self) -> None:
        """Notes that billing has answered a call, whatever its stream does."""
        self._service.succeed()

    def found(self) -> None:
        """Notes that a look-up has changed the table."""
        self.keeper.changed()

    def note_silence(self) -> None:
        """Lets the table know how old it is."""
        if self.keeper.heard_ns:
            self._keys.note_silence((time.time_ns() - self.keeper.heard_ns) / 1e9)

    def _look_at_billing(self, row: Dependency) -> None:
        watch = self._watch_problem
        row.warning = f"keys are not told now ({watch}); single calls are answered" if watch else ""

    def _capture(self) -> Callable[[], bytes]:
        grants = self._keys.grants
        return lambda: WatchKeysResponse(is_snapshot=True, grants=grants).SerializeToString()


def look_at(row: Dependency, keeper: Keeper) -> None:
    """Brings up to date what a status says of a file."""
    if not keeper.heard_ns:
        row.fail("nothing is known yet, from the service or from disk")
        return
    row.succeed(keeper.heard_ns)
    row.warning = keeper.problem
    age = (time.time_ns() - keeper.heard_ns) / 1e9
    if age > OLD_SECONDS and not row.warning:
        row.warning = f"not confirmed for {age / 60:.0f} min"


def _read(file: LastGoodFile, use: Callable[[bytes], None]) -> Kept | None:
    """Hands the content of a file to `use`; returns what was read, None if there is none to use."""
    kept = file.read()
    if kept is None:
        return None
    try:
        use(kept.content)
    except (DecodeError, Unusable) as error:
        log.critical("what is kept of %s cannot be read: %s", file.kind, error)
        return None
    age = max(0.0, (time.time_ns() - kept.heard_ns) / 1e9)
    log.info("%s as they were %.0f s ago are taken from disk", file.kind, age)
    return kept


def _bare_size(message: WatchProvidersResponse) -> int:
    return WatchProvidersResponse(revision=message.revision).ByteSize()
