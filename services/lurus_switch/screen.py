"""What `lurus up` shows: one line per process, colours and a spinner only on a terminal."""

import sys
import time
from contextlib import suppress
from typing import IO, Any

from lurus_switch.embedded import ProcessEvent, ProcessState

_NAME_WIDTH = 11


class Screen:
    """Prints what happens to processes, as it happens."""

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file or sys.stdout
        self._begins: dict[str, float] = {}
        self._troubled: set[str] = set()
        self._is_stopping = False
        self._status: Any = None
        self._console: Any = None
        if self._file.isatty():
            from rich.console import Console

            self._console = Console(file=self._file, highlight=False)

    def begin(self, text: str) -> None:
        """Says what takes a while; on a terminal with a spinner."""
        if self._console is None:
            self.line(text)
            return
        self._status = self._console.status(text, spinner="dots")
        self._status.start()

    def end(self) -> None:
        """Takes the spinner away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def line(self, text: str, style: str = "") -> None:
        """Prints a line as it is, in a style where there are styles."""
        # A terminal that has gone must not keep the mesh from being stopped.
        with suppress(OSError):
            if self._console is None:
                print(text, file=self._file, flush=True)
            else:
                self._console.print(text, style=style, markup=False, soft_wrap=True)

    def stopping(self) -> None:
        """From now on, ends of processes are what is wanted."""
        self._is_stopping = True
        self.end()
        self.line("Stopping; Ctrl-C again stops at once.")

    def event(self, event: ProcessEvent) -> None:
        """Prints what a process has come to, if that is worth a line."""
        match event.state:
            case ProcessState.STARTING:
                self._begins[event.name] = time.monotonic()
            case ProcessState.READY:
                self._ready(event.name)
            case ProcessState.BACKING_OFF | ProcessState.FAILED if not self._is_stopping:
                self._troubled.add(event.name)
                first_line = event.message.partition("\n")[0]
                self.line(f"  ! {event.name.ljust(_NAME_WIDTH)} {first_line}", "yellow")
            case ProcessState.STOPPED if event.name in self._begins:
                self.line(f"  - {event.name.ljust(_NAME_WIDTH)} stopped", "dim")

    def _ready(self, name: str) -> None:
        seconds = time.monotonic() - self._begins.get(name, time.monotonic())
        again = " again" if name in self._troubled else ""
        self._troubled.discard(name)
        self.line(f"  + {name.ljust(_NAME_WIDTH)} up{again} after {seconds:.1f} s", "green")
