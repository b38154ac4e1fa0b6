"""For how long a thread had nothing to do; while others have the processor, it may well have."""

import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

# Nanoseconds on a processor, and waiting for one. Of the thread that opens it.
# Source: Linux, Documentation/scheduler/sched-stats.rst.
SCHEDSTAT: Final = Path("/proc/thread-self/schedstat")
NANOSECONDS: Final = 1e9
MAX_FILE_BYTES: Final = 100


class IdleTime:
    """The time that this thread has slept. As a context manager it opens what the system tells of it."""

    def __init__(self, path: Path = SCHEDSTAT) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("rb", buffering=0)
        except OSError:  # another system
            self._file = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def seconds(self) -> float:
        """Returns the seconds since some moment: all off the processor, where the system says no more."""
        if self._file is None:
            return time.monotonic() - time.thread_time()
        self._file.seek(0)
        run_ns, wait_ns, _ = map(int, self._file.read(MAX_FILE_BYTES).split())
        return time.monotonic() - (run_ns + wait_ns) / NANOSECONDS
