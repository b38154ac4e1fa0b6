"""Saves one system call an answer."""

import asyncio
from collections.abc import Callable


class HeadFirst:
    """The part of a transport that one response uses; sends its head together with what follows at once.

    uvicorn writes head and body one after the other. Joined, a plain answer
    costs a tenth less; a head whose body is not there yet goes out by itself
    at the end of the loop's turn.
    """

    __slots__ = ("_close", "_head", "_loop", "_transport")

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, close: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._close = close
        # None before the head is written, empty after it is sent.
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        """Sends `data`, or keeps it for a moment if it is the head."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif self._head is None:
            self._head = data
            self._loop.call_soon(self.flush)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Sends a head that still waits."""
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)

    def close(self) -> None:
        """Closes the connection when all is sent."""
        self.flush()
        self._close()

    def is_closing(self) -> bool:
        """Whether the connection is closed or about to be."""
        return self._transport.is_closing()
