"""Asks a server on this machine one question, without loading a client library into the supervisor."""

import asyncio

ANSWER_SECONDS = 2.0
# Between two questions whether somebody is ready: a share of what was waited already, within limits.
PAUSE_SHARE = 0.1
FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.5
ANSWER_MAXIMUM_BYTES = 64 * 1024


class NotReady(Exception):
    """The server answered, but not what a ready one answers."""


async def ask(port: int, question: bytes, until: bytes | None) -> bytes:
    """Sends `question` to 127.0.0.1:`port` and returns the answer up to and including `until`, or all of it.

    Raises OSError or TimeoutError if nobody answers within 2 s, `NotReady` if
    the answer ends before `until` or is longer than 64 KiB.
    """
    async with asyncio.timeout(ANSWER_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=ANSWER_MAXIMUM_BYTES)
        try:
            writer.write(question)
            if until is None:
                return await reader.read(ANSWER_MAXIMUM_BYTES)
            return await reader.readuntil(until)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise NotReady(f"incomplete answer {getattr(error, 'partial', b'')[:100]!r}") from error
        finally:
            writer.close()


async def expect(port: int, question: bytes, until: bytes, answer: bytes) -> None:
    """Asks and raises `NotReady` unless what comes back ends with `answer`."""
    received = await ask(port, question, until)
    if not received.endswith(answer):
        raise NotReady(f"unexpected answer {received[-200:]!r}")


def http_get(path: str, headers: str = "") -> bytes:
    """Returns an HTTP/1.0 request, to whose answer the server ends the connection."""
    return f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n{headers}\r\n".encode()


def pause_seconds(waited_seconds: float) -> float:
    """How long to wait before asking again one who was not ready: asking often keeps both from their work."""
    return min(max(FIRST_PAUSE_SECONDS, waited_seconds * PAUSE_SHARE), LONGEST_PAUSE_SECONDS)
