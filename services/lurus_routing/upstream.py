"""Calls to providers: one pooled HTTP client per worker."""

import asyncio
import errno
import io
import random
import socket
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
from aiohttp import ClientPayloadError, ClientResponse, ClientSession, ClientTimeout
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from lurus_common.addresses import GuardedConnector
from lurus_common.errors import LurusError, Overloaded, UpstreamFailed, UpstreamTimeout
from lurus_dialects.dialect import Dialect
from lurus_routing.alarm import Alarm
from lurus_routing.candidate import Candidate

KEEP_ALIVE_SECONDS = 30
DNS_SECONDS = 60
MAX_ERROR_BYTES = 64 * 1024
ERROR_SECONDS = 10.0
MAX_BODY_BYTES = 40 * 1024 * 1024
MAX_HEADER_BYTES = 32 * 1024
# Larger ones are written piece by piece, so that others get their turn.
MAX_BODY_AT_ONCE_BYTES = 512 * 1024
# What is read at once. Each stream whose client does not read holds some of these, in several hands.
PIECE_BYTES = 8 * 1024
# What the kernel takes from a provider that nobody reads, and thus the most that one read gives. By
# itself it grows to megabytes, all of which are paid for. Enough for 3 MB a second at 10 ms.
RECEIVE_BYTES = 32 * 1024
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
OUR_OWN_HEADERS = frozenset({"user-agent", "accept", "accept-encoding", "content-type"})


class ConnectionLost(UpstreamFailed):
    """The connection ended before a status line: the provider may never have seen the request."""


@asynccontextmanager
async def open_session(http_hosts: frozenset[str]) -> AsyncIterator[ClientSession]:
    """Gives the client that all calls of a worker share.

    Args:
        http_hosts: hosts that may be called with plain http, or at a private address.
    """
    connector = GuardedConnector(
        http_hosts,
        limit=0,
        limit_per_host=0,
        ttl_dns_cache=DNS_SECONDS,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
        socket_factory=_upstream_socket,
    )
    factory = partial(_Connection, loop=asyncio.get_running_loop())
    connector._factory = factory  # type: ignore[assignment]  # a narrower kind than it names
    async with ClientSession(
        connector=connector,
        timeout=ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=OUR_OWN_HEADERS,
        read_bufsize=PIECE_BYTES,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
    ) as session:
        yield session


class _Connection(ResponseHandler):
    """aiohttp's side of a connection, which also tells who reads a body that its framing is broken.

    By itself it closes the socket and tells nobody: the reader would wait for its idle timeout.
    """

    def set_exception(self, exc: type[BaseException] | BaseException, *cause: BaseException) -> None:
        super().set_exception(exc, *cause)  # type: ignore[arg-type]  # its own parent takes types too
        body = self._payload
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(ClientPayloadError("the framing of the body is broken"))


def _upstream_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    return made


async def send(
    session: ClientSession,
    candidate: Candidate,
    dialect: Dialect,
    target: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    until: float,
    alarm: Alarm,
    method: str = "POST",
) -> ClientResponse:
    """Makes a request and returns the answer's head, until `until` (monotonic).

    Raises:
        ConnectionLost: a connection ended before a status line.
        UpstreamTimeout: the provider did not connect or answer in time.
        UpstreamFailed: anything else went wrong before a status line.
        Overloaded: this process has no descriptor left for a connection, which is no provider's fault.
    """
    timeout = ClientTimeout(total=None, sock_connect=candidate.connect_seconds)
    try:
        with alarm.by(until):
            return await session.request(
                method,
                URL(candidate.base_url + target, encoded=True),
                data=(body if len(body) <= MAX_BODY_AT_ONCE_BYTES else io.BytesIO(body)) or None,
                headers=[*headers, credential_header(dialect, candidate.secret)],
                timeout=timeout,
                allow_redirects=False,
            )
    except TimeoutError as error:
        raise UpstreamTimeout("the provider did not answer in time") from error
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
        if isinstance(error, OSError) and error.errno in _NO_DESCRIPTOR:
            wait = f"{random.uniform(1, 5):.2f}"  # noqa: S311  # nothing secret
            raise Overloaded(
                "the gateway has as many connections as it may", retry_after_seconds=wait
            ) from error
        if isinstance(error, aiohttp.ClientConnectorError):
            raise UpstreamFailed("the provider cannot be reached") from error
        raise ConnectionLost("the provider closed the connection") from error
    except (aiohttp.ClientError, ValueError, OSError) as error:
        raise UpstreamFailed("the provider cannot be called, or its answer is not HTTP") from error


def _too_many_connections() -> Overloaded:
    seconds = random.uniform(1, 5)  # noqa: S311  # nothing secret
    return Overloaded("the gateway has as many connections as it may", retry_after_seconds=f"{seconds:.2f}")


def credential_header(dialect: Dialect, secret: str) -> tuple[str, str]:
    """The header in which providers of a dialect expect the credential."""
    return ("x-api-key", secret) if dialect is Dialect.ANTHROPIC else ("authorization", f"Bearer {secret}")


async def read_body(
    response: ClientResponse, idle_seconds: float, deadline: float, maximum: int, alarm: Alarm
) -> bytes:
    """Returns a whole body.

    Raises:
        UpstreamTimeout: it stalled, or did not end until `deadline` (monotonic).
        UpstreamFailed: it was cut, or is larger than `maximum`.
    """
    chunks: list[bytes] = []
    size = 0
    while chunk := await read_chunk(response, min(time.monotonic() + idle_seconds, deadline), alarm):
        chunks.append(chunk)
        size += len(chunk)
        if size > maximum:
            raise UpstreamFailed("the provider's answer is too large")
    return b"".join(chunks)


async def read_error(response: ClientResponse, alarm: Alarm) -> bytes:
    """Returns an error's body, empty if it cannot be had soon."""
    deadline = time.monotonic() + ERROR_SECONDS
    try:
        return await read_body(response, ERROR_SECONDS, deadline, MAX_ERROR_BYTES, alarm)
    except LurusError:
        return b""


async def read_chunk(response: ClientResponse, until: float, alarm: Alarm) -> bytes:
    """Returns what has arrived, or a piece of it; waits for it until `until` (monotonic); empty at the end.

    Raises:
        UpstreamTimeout: nothing came in time. What comes later is not lost: ask again.
        UpstreamFailed: the connection broke, or was closed by us.
    """
    try:
        with alarm.by(until):
            return await response.content.read(PIECE_BYTES)
    except TimeoutError as error:
        raise UpstreamTimeout("the provider fell silent") from error
    except (aiohttp.ClientError, ValueError, RuntimeError) as error:
        # aiohttp says RuntimeError of a connection that this process has closed.
        raise UpstreamFailed("the provider's answer broke off") from error


def header_pairs(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns headers with lower-case names, in order."""
    return [(name.lower(), value) for name, value in headers]
