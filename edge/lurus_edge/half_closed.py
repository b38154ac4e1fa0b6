"""Clients that have closed their writing side: some of them still read, most have left.

TCP tells both in the same words. The difference shows when something is sent: a
peer that has left answers with a reset, which the kernel notes at once.
"""

import asyncio
import os
import socket
from collections.abc import Callable

# What a stream may carry between two events at any time: a comment, which no client dispatches.
PROBE = b":\n"
# After the probe: soon on a short line, and from then on at this pace, for a reset that a heartbeat caused.
FIRST_CHECK_SECONDS = 0.02
CHECK_SECONDS = 0.5
# Of `enum` in <netinet/tcp.h>: what a connection is after a reset.
TCP_CLOSED = 7


class HalfClosed:
    """Looks after one connection whose peer sends no more, until it is told to stop or the peer is gone."""

    def __init__(self, transport: asyncio.Transport, on_gone: Callable[[], None]) -> None:
        self._transport = transport
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(FIRST_CHECK_SECONDS, self._check)

    def stop(self) -> None:
        """Looks no more."""
        self._timer.cancel()

    def _check(self) -> None:
        if is_reset(self._transport):
            self._on_gone()
        else:
            self._timer = self._loop.call_later(CHECK_SECONDS, self._check)


def is_reset(transport: asyncio.BaseTransport) -> bool:
    """Whether the peer of a TCP connection has reset it; also true where the system cannot say."""
    connection = transport.get_extra_info("socket")
    if connection is None or not hasattr(socket, "TCP_INFO"):
        return True
    try:
        # The loop's own object may offer no options.
        with socket.socket(fileno=os.dup(connection.fileno())) as same:
            return same.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSED
    except OSError:
        return True
