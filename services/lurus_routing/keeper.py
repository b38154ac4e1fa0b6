"""Keeps what changes in a file of last known state: in the background, soon, and not too often."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import Counter, Gauge

from lurus_routing.last_good import Kept, LastGoodFile

log = logging.getLogger(__name__)

# Between two writes: the first change is written at once, those that follow soon after share one.
PAUSE_SECONDS = 1.0
RETRY_SECONDS = 5.0
# How old the time in the file may be that says when its content was last confirmed.
CONFIRM_SECONDS = 600.0
FLUSH_SECONDS = 3.0

WRITE_FAILURES = Counter(
    "lurus_last_good_write_failures", "Writes of last known state that failed.", ["kind"]
)
AGE = Gauge(
    "lurus_last_good_age_seconds",
    "For how long what is known has not been confirmed by its source.",
    ["kind"],
)

# Called on the loop, quickly: takes hold of what there is; what it returns is called in a thread.
Capture = Callable[[], Callable[[], bytes]]


class Keeper:
    """Writes one kind of state.

    Args:
        file: where to.
        capture: gives what to write.
    """

    def __init__(self, file: LastGoodFile, capture: Capture) -> None:
        self._file = file
        self._capture = capture
        self._changed = asyncio.Event()
        self.heard_ns = 0
        # Why the last write failed; empty if it did not.
        self.problem = ""
        self._revision = 0
        self._written_ns = 0
        self._writing = asyncio.Lock()
        AGE.labels(file.kind).set_function(self._age_seconds)

    def restored(self, kept: Kept) -> None:
        """Notes what the file held at the start."""
        self.heard_ns = self._written_ns = kept.heard_ns
        self._revision = kept.revision

    def heard(self, revision: int = 0, *, is_changed: bool) -> None:
        """Notes that the source has told something, if only that nothing has changed."""
        self.heard_ns = time.time_ns()
        self._revision = revision or self._revision
        if is_changed or self.heard_ns - self._written_ns > CONFIRM_SECONDS * 1e9:
            self._changed.set()

    def changed(self) -> None:
        """Notes a change that says nothing of the rest."""
        self._changed.set()

    async def run(self) -> None:
        """Writes until cancelled."""
        while True:
            await self._changed.wait()
            is_written = await self._write()
            await asyncio.sleep(PAUSE_SECONDS if is_written else RETRY_SECONDS)

    async def flush(self) -> None:
        """Writes what is not written yet. For a stop in order."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                if self._changed.is_set():
                    await self._write()

    async def _write(self) -> bool:
        async with self._writing:
            self._changed.clear()
            serialise, heard_ns, revision = self._capture(), self.heard_ns, self._revision

            def write() -> None:
                self._file.write(Kept(serialise(), heard_ns, revision))

            try:
                await asyncio.to_thread(write)
            except OSError as error:
                WRITE_FAILURES.labels(self._file.kind).inc()
                if not self.problem:
                    log.error("what is known of %s cannot be kept: %s", self._file.kind, error)
                self.problem = f"it cannot be kept on disk: {error}"
                self._changed.set()
                return False
            self._written_ns, self.problem = heard_ns, ""
            return True

    def _age_seconds(self) -> float:
        return max(0.0, time.time() - self.heard_ns / 1e9) if self.heard_ns else float("nan")
