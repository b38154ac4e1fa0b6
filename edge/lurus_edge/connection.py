"""The writing side of a client's connection: whether anybody takes what is sent, and its end."""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from lurus_edge.half_closed import PROBE, HalfClosed

# Of answers that a client does not take; beyond, nothing more is read for it.
UNSENT_BYTES = 16 << 10


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol that notices clients who take nothing, and those who only send no more."""

    # How long a client may leave a full send buffer untouched before it is cut.
    write_stall_seconds = 60.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.ws_protocol_class = None
        # Set by who answers, called when the client is gone: waiting for ASGI's message costs 10 µs more.
        self.on_lost: Callable[[], None] | None = None
        # Set while an answer runs into which a comment may be put; says whether it may at this moment.
        self.may_probe: Callable[[], bool] | None = None
        self._half_closed: HalfClosed | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(UNSENT_BYTES)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn closes in every case
        """Keeps the connection of a client that sends no more, but may still read its stream.

        Whether it does shows when something is sent. Where nothing may be,
        before and behind a stream and for plain answers, it has left.
        """
        if self._half_closed is not None:
            return True
        cycle, may_probe = self._answering, self.may_probe
        if cycle is None or cycle.response_complete or may_probe is None or not may_probe() or self.pipeline:
            return False
        cycle.keep_alive = False
        probe = b"%x\r\n%b\r\n" % (len(PROBE), PROBE) if cycle.chunked_encoding else PROBE
        cycle.transport.write(probe)
        self._half_closed = HalfClosed(self.transport, self.abort)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # uvicorn tells the newest request only, which may be one that waits behind the one being answered.
        if self._answering is not None:
            self._answering.disconnected = True
            self._answering.message_event.set()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        if self._half_closed is not None:
            self._half_closed.stop()
        if self.on_lost is not None:
            self.on_lost()

    def abort(self) -> None:
        """Drops the connection, so that the client cannot take the answer so far for a whole one."""
        self.transport.abort()

    def send_now(self, data: bytes) -> bool:
        """Sends a part of the body whose head has been sent, if that can be done without waiting.

        Returns False if not: then ASGI's `send` has to. It costs each part of a stream 5 µs more.
        """
        cycle = self._answering
        if (
            cycle is None
            or not cycle.chunked_encoding
            or cycle.response_complete
            or cycle.disconnected
            or self.flow.write_paused
        ):
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_stall()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _watch_stall(self) -> None:
        left_bytes = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(self.write_stall_seconds, self._cut_if_stalled, left_bytes)

    def _cut_if_stalled(self, left_bytes: int) -> None:
        """Drops a client that has taken nothing of a full buffer since it was last looked at."""
        if self.transport.get_write_buffer_size() >= left_bytes:
            self.transport.abort()
        else:
            self._watch_stall()
