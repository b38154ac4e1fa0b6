"""Sends bytes that no HTTP client would send, and reads what comes back."""

import json
import socket
import time
from dataclasses import dataclass
from typing import Any

READ_SECONDS = 20.0
MAX_ANSWER_BYTES = 8 * 2**20


@dataclass(slots=True)
class Answer:
    """One HTTP answer, read by its length; names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Returns the body as JSON."""
        return json.loads(self.body)


class RawConnection:
    """A connection to the edge. Close it, or use it as a context manager."""

    def __init__(self, port: int, read_seconds: float = READ_SECONDS) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=read_seconds)
        self.start = time.monotonic()

    def __enter__(self) -> "RawConnection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes it."""
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Sends all of `data`; False if the edge stopped taking it, which is its right."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def until_closed(self) -> bytes:
        """Returns all that comes until the edge closes its side; fails if it does not."""
        received = bytearray()
        try:
            while len(received) < MAX_ANSWER_BYTES and (data := self.socket.recv(2**16)):
                received += data
        except ConnectionResetError:
            pass
        return bytes(received)

    def answers(self) -> list[Answer]:
        """Returns the answers until the edge closes its side."""
        return answers_of(self.until_closed())

    def seconds(self) -> float:
        """Returns how long it has been open."""
        return time.monotonic() - self.start


def exchange(port: int, data: bytes) -> list[Answer]:
    """Sends `data` on a connection of its own and returns what is answered until it is closed."""
    with RawConnection(port) as connection:
        connection.send(data)
        return connection.answers()


def answers_of(data: bytes) -> list[Answer]:
    """Returns the answers that stand in `data`, one behind the other, without any 100."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.partition(":") for line in lines]
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        if status.split(" ")[1] == "100":
            continue
        length = int(headers["content-length"])
        found.append(Answer(int(status.split(" ")[1]), headers, data[:length]))
        data = data[length:]
    return found


def request_bytes(
    path: str, body: bytes, *headers: str, method: str = "POST", states_length: bool = True
) -> bytes:
    """Returns a request as it stands on the wire; `headers` are whole lines."""
    lines = [f"{method} {path} HTTP/1.1", "host: test", "content-type: application/json", *headers]
    if states_length:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
