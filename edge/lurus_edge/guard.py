"""The connection guard: what uvicorn lacks between the socket and the application.

uvicorn has no deadline for a request that never becomes complete, and httptools
is lenient about `Host`, sizes and transfer codings; ASGI sees neither. A running
response is never touched from here: a refusal of what comes behind it waits.
"""

import asyncio
import math
from enum import IntEnum
from typing import Any, cast

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from lurus_edge import refusals
from lurus_edge.admission import READ_BYTES, Admission
from lurus_edge.connection import Connection
from lurus_edge.framing import plain_head
from lurus_edge.head_first import HeadFirst
from lurus_edge.limits import GuardLimits
from lurus_edge.refusals import Refusal, Refused

# Chunk heads of one body, beside its payload: enough for 32 MiB in chunks of 256 bytes.
CHUNK_OVERHEAD_BYTES = 1 << 20
# Requests read ahead of a running response; what comes behind them is refused.
PIPELINE_REQUESTS = 100


class _Phase(IntEnum):
    """What the reading side of a connection waits for."""

    IDLE = 0  # another request
    BUSY = 1  # nothing: the request is complete, its response is not
    HEAD = 2
    BODY = 3
    REFUSED = 4  # the responses before the refusal
    CLOSING = 5  # the client's own close, after the refusal


class GuardedProtocol(Connection):
    """uvicorn's HTTP/1.1 protocol with deadlines, size limits and strict framing.

    The application finds it as `scope["extensions"]["lurus"]["connection"]`.

    Source: RFC 9112 §3.2 (Host), §6 (framing), §9.3.2 (pipelining), §9.6 (close).
    """

    limits = GuardLimits()
    # Says which requests are too much; None for no such thing.
    admission: Admission | None = None

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._extensions: dict[str, Any] = {"lurus": {"connection": self}}
        self.url = b""
        self._has_begun = False
        self._phase = _Phase.HEAD
        self._armed_phase: _Phase | None = None
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._wire_bytes = 0
        self._body_bytes = 0
        self._window_bytes = 0
        # Of an upgrade, until its head has been read again as a plain one.
        self._plain_head = b""
        self._reading: RequestResponseCycle | None = None
        self._refusal: Refusal | None = None
        # Whether the request that is being read has had its answer: it was too much.
        self._is_declined = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def shutdown(self) -> None:
        """Closes the connection behind its last answer, at once if it is idle."""
        if not (self._phase is _Phase.HEAD and self._has_begun):  # Half a head: the answer will close it.
            super().shutdown()

    def close_if_idle(self) -> None:
        """Closes the connection if it waits for another request."""
        if self._phase is _Phase.IDLE:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._phase >= _Phase.REFUSED:
            return
        self._count(len(data))
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._refuse(refusals.reason(error, data))
        else:
            self._after_feed()

    def _count(self, received_bytes: int) -> None:
        self._wire_bytes += received_bytes
        if self._phase is _Phase.HEAD:
            self._head_bytes += received_bytes
        elif self._phase is not _Phase.BODY:
            self._phase = _Phase.HEAD

    def _feed(self, data: bytes) -> None:
        """Parses `data`, reading an upgrade as the plain request that it also is.

        httptools takes the body of such a request for the new protocol, so a
        fresh parser starts over behind its head: Java's client asks for h2c
        with every POST, and uvicorn alone would read that body as a request.
        """
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(self._plain_head)
            else:
                return

    def _after_feed(self) -> None:
        """Checks what the parser keeps for itself, and sets the deadline of a new phase."""
        limits = self.limits
        if self._phase is _Phase.HEAD and self._head_bytes > limits.header_bytes + limits.url_bytes:
            self._refuse(refusals.HEAD_TOO_LARGE)
        elif self._phase is _Phase.BODY and self._wire_bytes - self._body_bytes > CHUNK_OVERHEAD_BYTES:
            self._refuse(refusals.BAD_CHUNKS)
        elif self._armed_phase is not self._phase:
            self._arm()

    def on_message_begin(self) -> None:
        if self._plain_head:
            return
        super().on_message_begin()
        self._has_begun = True
        self._phase = _Phase.HEAD
        self._armed_phase = None
        self._head_bytes = self._wire_bytes = self._body_bytes = self._window_bytes = 0

    def on_url(self, url: bytes) -> None:
        if self._plain_head:
            return
        self.url += url
        if len(self.url) > self.limits.url_bytes:
            raise Refused(refusals.URL_TOO_LONG)

    def on_headers_complete(self) -> None:
        if self._plain_head:
            self._plain_head = b""
            return
        self._check_head(self.parser.get_http_version())
        if len(self.pipeline) >= PIPELINE_REQUESTS:
            raise Refused(refusals.PIPELINE_FULL)
        if self.admission is not None and self.admission.is_full(len(self.tasks)):
            self._decline(self.admission)
            if self._is_declined:
                return
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self._plain_head = plain_head(self.headers)
        # The list belongs to the application now: trailers go into one that nobody reads.
        self.headers = []
        self.scope["extensions"] = self._extensions
        self.cycle.transport = HeadFirst(self.transport, self.loop, self._close_answered)  # type: ignore[assignment]
        self._reading = self.cycle
        self._phase = _Phase.BODY

    def _check_head(self, http_version: str) -> None:
        """Refuses what httptools lets pass: sizes, `Host`, and transfer codings other than chunked."""
        if http_version not in ("1.1", "1.0"):
            raise Refused(refusals.BAD_VERSION)
        host_count = 0
        header_bytes = 0
        for name, value in self.headers:
            header_bytes += len(name) + len(value) + 4
            if name == b"host":
                host_count += 1
            elif name == b"content-length":
                if int(value) > self.limits.body_bytes:
                    raise Refused(refusals.BODY_TOO_LARGE)
            elif name == b"transfer-encoding" and (value.lower() != b"chunked" or http_version == "1.0"):
                raise Refused(refusals.BAD_FRAMING)
        if header_bytes > self.limits.header_bytes or len(self.headers) > self.limits.header_count:
            raise Refused(refusals.HEAD_TOO_LARGE)
        if host_count > 1 or (host_count == 0 and http_version == "1.1"):
            raise Refused(refusals.BAD_HOST)

    def _decline(self, admission: Admission) -> None:
        """Answers a request that is too much, unless it waits for its turn or is of a kind that never is.

        A small body is read to its end and dropped, so that the connection can be kept.
        """
        if self._is_answering() or self.pipeline or self.parser.should_upgrade():
            return
        closes = not self._is_small() or self.expect_100_continue or not self.parser.should_keep_alive()
        answer = admission.refusal(self.parser.get_method(), self.url, closes)
        if not answer:
            return
        self._is_declined = True
        self._phase = _Phase.BODY
        self.server_state.total_requests += 1
        self.transport.write(answer)
        if closes:
            raise Refused(refusals.ANSWERED)

    def _is_small(self) -> bool:
        sizes = [int(value) for name, value in self.headers if name == b"content-length"]
        return bool(sizes) and sizes[0] <= READ_BYTES

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._is_declined:
            return
        if self._body_bytes > self.limits.body_bytes:
            raise Refused(refusals.BODY_TOO_LARGE)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._plain_head:
            return
        if self._is_declined:
            self._is_declined = False
            self._phase = _Phase.IDLE
            return
        super().on_message_complete()
        self._reading = None
        self._phase = _Phase.IDLE if self.cycle.response_complete else _Phase.BUSY

    def on_response_complete(self) -> None:
        """Starts the next request, or the wait for one. Replaces uvicorn's, which arms a timer each time."""
        self.server_state.total_requests += 1
        if self._answering is not None:
            cast(HeadFirst, self._answering.transport).flush()  # An answer without a body.
        if self.transport.is_closing() or self._phase is _Phase.CLOSING:
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._phase is _Phase.REFUSED:
            self._send_refusal()
        elif self._reading is not None and self.expect_100_continue and not self._body_bytes:
            self._linger()  # The client may or may not send the body it asked about.
        elif self._phase is not _Phase.BODY:
            self._phase = _Phase.IDLE if self._phase is _Phase.BUSY else self._phase
            self._arm()

    def _close_answered(self) -> None:
        """Closes behind an answer that is the last; one before the end of its body must still be read."""
        if self._reading is None or self.transport.is_closing():
            self.transport.close()
        else:
            self._linger()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    # Deadlines: one timer a connection, which is moved when it fires and not with each request.

    def _arm(self) -> None:
        """Sets the deadline of the phase that has just begun."""
        self._armed_phase = self._phase
        match self._phase:
            case _Phase.HEAD:
                self._wait(self.limits.head_seconds)
            case _Phase.BODY:
                self._wait(self.limits.body_seconds)
            case _Phase.IDLE:
                self._wait(self.limits.keep_alive_seconds)
            case _Phase.CLOSING:
                self._wait(self.limits.linger_seconds)
            case _:
                self._deadline = math.inf

    def _wait(self, seconds: float) -> None:
        self._deadline = self.loop.time() + seconds
        if self._timer is not None and self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self.loop.call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._deadline > self.loop.time():
            if self._deadline < math.inf:
                self._timer = self.loop.call_at(self._deadline, self._on_timer)
            return
        if self.transport.is_closing():
            return
        match self._phase:
            case _Phase.IDLE:
                self.transport.close()
            case _Phase.CLOSING:
                self.transport.abort()
            case _Phase.HEAD:
                self._on_head_deadline()
            case _Phase.BODY:
                self._on_body_deadline()

    def _on_head_deadline(self) -> None:
        if self._is_answering():
            self._arm()
        elif not self._has_begun:
            self.transport.close()  # Nothing was asked, so nothing is answered.
        else:
            self._refuse(refusals.SLOW_HEAD)

    def _on_body_deadline(self) -> None:
        """Grants another window if the client kept the rate, or if it is we who do not read."""
        required_bytes = self.limits.body_bytes_per_second * self.limits.body_seconds
        if self.flow.read_paused or self._body_bytes - self._window_bytes >= required_bytes:
            self._window_bytes = self._body_bytes
            self._arm()
        else:
            self._refuse(refusals.SLOW_BODY)

    def _is_answering(self) -> bool:
        return self._answering is not None and not self._answering.response_complete

    def _refuse(self, refusal: Refusal) -> None:
        """Reads no further request, and answers `refusal` after the responses that are still due.

        A request that went wrong in its body is taken from the application,
        unless its answer has begun: then there can be no second one.
        """
        unread, self._reading = self._reading, None
        self._phase = _Phase.REFUSED
        self._deadline = math.inf
        if self._is_declined:
            self._linger()
            return
        if unread is not None and unread.response_started:
            if unread.response_complete:
                self._linger()
            return
        self._refusal = refusal
        if unread is None:
            is_due = not self._is_answering()
        else:
            is_due = not self.pipeline
            self._withdraw(unread)
        if is_due:
            self._send_refusal()

    def _withdraw(self, unread: RequestResponseCycle) -> None:
        if self.pipeline:
            self.pipeline.popleft()  # The newest, which is the one being read.
        else:
            unread.disconnected = True
            unread.message_event.set()

    def _send_refusal(self) -> None:
        if self._refusal is not None:
            self.transport.write(
                refusals.response(self._refusal, self.url, self.server_state.default_headers)
            )
        self._linger()

    def _linger(self) -> None:
        """Closes our side and reads on for a moment: a close over unread bytes would reset the answer."""
        self._phase = _Phase.CLOSING
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._arm()
        else:
            self.transport.close()


def guarded(limits: GuardLimits, admission: Admission | None = None) -> type[GuardedProtocol]:
    """Returns the protocol class for `uvicorn.Config(http=…)`."""
    members = {
        "limits": limits,
        "write_stall_seconds": limits.write_stall_seconds,
        "admission": admission,
    }
    return type("GuardedProtocol", (GuardedProtocol,), members)
