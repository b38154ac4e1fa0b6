"""An HTTP/2 client that says what no honest one says, and remembers how each stream ended."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.settings import SettingCodes

ANSWER_SECONDS = 20.0
READ_SECONDS = 0.2


@dataclass(slots=True)
class Stream:
    """What has come on a stream."""

    headers: dict[str, str] = field(default_factory=dict)
    reset_code: int | None = None
    is_ended: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.is_ended or self.reset_code is not None


class RawH2:
    """A connection without TLS, settings exchanged. Use it as a context manager."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS)
        config = h2.config.H2Configuration(
            header_encoding="latin-1", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.connection = h2.connection.H2Connection(config)
        self.streams: dict[int, Stream] = {}
        self.is_away = False
        self.is_closed = False

    def __enter__(self) -> "RawH2":
        self.connection.initiate_connection()
        self.flush()
        self.until(lambda: bool(self.connection.remote_settings.get(SettingCodes.MAX_FRAME_SIZE)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def flush(self) -> None:
        """Sends what h2 has made."""
        self.send(self.connection.data_to_send())

    def send(self, data: bytes) -> None:
        """Sends bytes; a server that takes no more is no failure here."""
        self.socket.settimeout(ANSWER_SECONDS)
        try:
            self.socket.sendall(data)
        except OSError:
            self.is_closed = True

    def request(
        self,
        path: str,
        *headers: tuple[str, str],
        body: bytes | None = b"\0\0\0\0\0",
        scheme: str = "http",
        content_type: str = "application/grpc",
        te: str = "trailers",
    ) -> int:
        """Begins a call; a body of None leaves the stream open. Returns the id of the stream."""
        number = self.connection.get_next_available_stream_id()
        fields = [
            (":method", "POST"),
            (":scheme", scheme),
            (":path", path),
            (":authority", "test"),
            ("content-type", content_type),
            ("te", te),
            *headers,
        ]
        self.streams[number] = Stream()
        self.connection.send_headers(number, fields)
        if body is not None:
            self.connection.send_data(number, body, end_stream=True)
        return number

    def until(self, check: Callable[[], bool], seconds: float = ANSWER_SECONDS) -> bool:
        """Reads until `check` is true or the connection is closed; whether it became true."""
        deadline = time.monotonic() + seconds
        while not check():
            if self.is_closed or time.monotonic() > deadline:
                return False
            self.read()
        return True

    def until_over(self, *numbers: int, seconds: float = ANSWER_SECONDS) -> list[Stream]:
        """Waits until these streams are over, or the connection is; returns them."""
        found = [self.streams[number] for number in numbers]
        self.until(lambda: all(stream.is_over for stream in found), seconds)
        return found

    def until_closed(self, seconds: float = ANSWER_SECONDS) -> bool:
        """Waits until the server closes the connection or says that it will; whether it did."""
        self.until(lambda: self.is_away, seconds)
        return self.is_away or self.is_closed

    def read(self, seconds: float = READ_SECONDS) -> None:
        """Reads what is there, or comes soon."""
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(2**16)
        except TimeoutError:
            return
        except OSError:
            data = b""
        if not data:
            self.is_closed = True
            return
        with suppress(h2.exceptions.ProtocolError):
            for event in self.connection.receive_data(data):
                self._note(event)
        with suppress(h2.exceptions.ProtocolError):
            self.flush()

    def _note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.is_away = True
        number = getattr(event, "stream_id", None)
        stream = self.streams.get(number or 0)
        if stream is None:
            return
        if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
            stream.headers.update({str(name): str(value) for name, value in event.headers or ()})
        elif isinstance(event, h2.events.StreamReset):
            stream.reset_code = event.error_code
        elif isinstance(event, h2.events.StreamEnded):
            stream.is_ended = True


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Returns an HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
