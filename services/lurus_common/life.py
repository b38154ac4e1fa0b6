"""The life of a process: what its parts must know of its start and of its end."""

import asyncio
import socket

from lurus_common.settings import Settings


class Life:
    """Starting, serving, ending. Whoever serves says so: a process that is not serving is not ready.

    Attributes:
        listener: the socket on which the edge is to listen, if this process was started with one.
        has_started: everything that the process serves is served.
        ending: set when no more work is to be begun.
        is_replaced: another process serves in the place of this one already.
    """

    def __init__(self, listener: socket.socket | None = None, *, has_started: bool = True) -> None:
        self.listener = listener
        self.has_started = has_started
        self.ending = asyncio.Event()
        self.is_replaced = False

    def end(self, *, is_replaced: bool = False) -> None:
        """Begins the end; repeats change nothing."""
        if not self.ending.is_set():
            self.is_replaced = is_replaced
            self.ending.set()

    @property
    def problem(self) -> str:
        """Why the process is not ready, as far as its life goes; empty while it serves."""
        if self.ending.is_set():
            return "it is draining"
        return "" if self.has_started else "it is starting"

    def announce_seconds(self, settings: Settings) -> float:
        """How long new work is still taken after readiness has gone: load balancers need that to notice.

        None is needed where nobody asks for readiness, or where another process takes the work.
        """
        is_watched = settings.profile == "prod" and not self.is_replaced
        return settings.drain_announce_seconds if is_watched else 0.0
