"""Refuses chats before anything of them is read but their head, while there is too much to do."""

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from lurus_common.ids import new_id
from lurus_dialects.dialect import Dialect
from lurus_dialects.endpoints import FIXED
from lurus_dialects.errors import http_error
from lurus_edge.relay import Relays
from lurus_edge.shedding import LATE_MESSAGE, MAX_RETRY_SECONDS, MIN_RETRY_SECONDS, SHED

POST: Final = b"POST"
# A body of this size is read to its end after a refusal, so that the connection can be kept.
READ_BYTES: Final = 64 * 1024
# So many different waits are told; an answer is put together once for each, which costs more than to send it.
WAITS: Final = 32
# Probes, metrics, the models and the operator's interface are not among these: they are always answered.
_DIALECTS: Final = {
    spelling.encode(): endpoint.dialect
    for path, endpoint in FIXED.items()
    if "POST" in endpoint.methods
    for spelling in (path, path.removeprefix("/v1"))
}
_ID: Final = new_id("req")


class Admission:
    """What the guard asks before it lets a request become one.

    Args:
        relays: of the edge; they know how much there is to do.
    """

    def __init__(self, relays: Relays) -> None:
        self._relays = relays
        self._lateness = relays.shedder.lateness
        self._shed = SHED.labels("late")

    def is_full(self, live_count: int) -> bool:
        """Whether another request is too much."""
        return live_count >= self._lateness.value

    def refusal(self, method: bytes, url: bytes, closes: bool) -> bytes:
        """Returns a counted refusal as bytes on the wire; nothing for what is not refused here.

        Args:
            method: of the request.
            url: as in its head.
            closes: says so in the answer.
        """
        dialect = _DIALECTS.get(url.partition(b"?")[0]) if method == POST else None
        if dialect is None:
            return b""
        wait = int(random.random() * WAITS)  # noqa: S311  # nothing secret
        status, answer = _answer(dialect, wait, closes or self._relays.is_draining)
        self._shed.inc()
        self._relays.metrics[dialect].count(status)
        return answer(new_id("req").encode())


@lru_cache(2 * WAITS * len(Dialect))
def _answer(dialect: Dialect, wait: int, closes: bool) -> tuple[int, Callable[[bytes], bytes]]:
    """Returns the status of a refusal, and what makes the answer with the id of a request."""
    seconds = MIN_RETRY_SECONDS + (MAX_RETRY_SECONDS - MIN_RETRY_SECONDS) * wait / WAITS
    metadata = {"retry_after_seconds": f"{seconds:.2f}"}
    found = http_error(dialect, "OVERLOADED", LATE_MESSAGE, metadata, _ID)
    headers = [*found.headers, ("content-length", str(len(found.body)))]
    if closes:
        headers.append(("connection", "close"))
    head = "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1")
    parts = (STATUS_LINE[found.status] + head + b"\r\n" + found.body).split(_ID.encode())
    return found.status, lambda request_id: request_id.join(parts)
