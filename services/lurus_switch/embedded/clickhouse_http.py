"""ClickHouse's HTTP interface over the chDB engine, for one machine.

Run as `python -m lurus_switch.embedded.clickhouse_http`. The log service speaks
HTTP to ClickHouse and nothing else; this process gives it the same on a laptop
and in tests. Threads of the standard library rather than aiohttp: that saves
19 MiB, and the engine is called from threads anyway.

Source: https://clickhouse.com/docs/en/interfaces/http
"""

import argparse
import contextlib
import hmac
import itertools
import json
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any, cast

from lurus_switch.embedded.clickhouse_codec import accepted_encoding, compressed
from lurus_switch.embedded.clickhouse_engine import READONLY, Engine, QueryFailed, Session, Summary, failure
from lurus_switch.embedded.clickhouse_request import (
    TOO_MANY_BYTES,
    Request,
    decoded_body,
    form_fields,
    raw_body,
    read_request,
)
from lurus_switch.embedded.clickhouse_sql import STREAMABLE_FORMATS, Statement, read_statement

USER = DATABASE = "lurus"

MAXIMUM_CONNECTIONS = 128
IDLE_SECONDS = 75.0
"""Longer than clients keep an unused connection, so that none is closed under a request."""
STATEMENT_HEAD_BYTES = 64 * 1024
"""Within these, an INSERT with data must have named its format."""
MAXIMUM_STATEMENT_BYTES = 32 * 1024**2
SPOOL_BYTES = 8 * 1024**2
"""An answer that is awaited as a whole is kept in a file beyond this size."""
DRAIN_BYTES = 64 * 1024**2
DRAIN_SECONDS = 5.0

SYNTAX_ERROR, AUTHENTICATION_FAILED, QUERY_IS_TOO_LARGE, UNKNOWN_PATH = 62, 516, 229, 404

_STATUS_OF_CODE = {
    **dict.fromkeys((16, 46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 336, UNKNOWN_PATH), 404),
    **dict.fromkeys(
        (6, 26, 27, 36, 38, 41, 42, 43, 53, 62, 69, 70, 72, 117, 130, 195, 349, 386, 456, 457), 400
    ),
    **dict.fromkeys((READONLY, 192, 193, 291, 497, AUTHENTICATION_FAILED), 403),
    194: 401,
    159: 408,
    QUERY_IS_TOO_LARGE: 413,
    TOO_MANY_BYTES: 413,
    48: 501,
    202: 503,
}
"""HTTP statuses of ClickHouse's error codes; 500 for all others."""


class Server(ThreadingTCPServer):
    """Accepts connections on 127.0.0.1, a thread each."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = MAXIMUM_CONNECTIONS

    def __init__(self, port: int, engine: Engine, password: str) -> None:
        self.engine = engine
        self.password = password
        self._slots = threading.BoundedSemaphore(MAXIMUM_CONNECTIONS)
        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Turns a connection away at once if there are too many."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.sendall(
                b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs what went wrong, unless the client has just left."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Serves one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE_SECONDS
    rbufsize = 64 * 1024

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: failures go to the client."""

    @property
    def _engine(self) -> Engine:
        return cast(Server, self.server).engine

    def _serve(self) -> None:
        self._raw = raw_body(self.rfile, self.headers)
        try:
            request = read_request(self.path, self.headers)
            if request.path in ("/ping", "/replicas_status"):
                self._send(200, {}, b"Ok.\n")
                return
            self._authenticate(request)
            if request.path != "/":
                raise failure(UNKNOWN_PATH, "NOT_FOUND_NODE", f"There is no handle {request.path}")
            self._execute(request)
        except QueryFailed as error:
            self._drain()
            self._send_failure(error)
        except ValueError as error:
            self.close_connection = True
            self._send(400, {}, f"malformed request: {error}\n".encode())

    def _authenticate(self, request: Request) -> None:
        given = f"{request.user}:{request.password}".encode(errors="replace")
        expected = f"{USER}:{cast(Server, self.server).password}".encode()
        if not hmac.compare_digest(given, expected):
            reason = "password is incorrect, or there is no user with such name"
            text = f"{request.user}: Authentication failed: {reason}"
            raise failure(AUTHENTICATION_FAILED, "AUTHENTICATION_FAILED", text)

    def _execute(self, request: Request) -> None:
        body = decoded_body(self._raw, self.headers.get("Content-Encoding", "").lower())
        content_type = self.headers.get("Content-Type", "")
        if content_type.lower().startswith("multipart/form-data"):
            request.add_form(form_fields(content_type, _whole(b"", body)))
        text = request.query + b"\n" if request.query else b""
        for chunk in body:
            text += chunk
            if len(text) >= STATEMENT_HEAD_BYTES:
                break
        statement = read_statement(text)
        if statement.insert is None:
            text = _whole(text, body)
            statement = read_statement(text)
        if self.command == "GET" and not statement.answers:
            raise failure(READONLY, "READONLY", "Cannot execute query in readonly mode. Use POST for changes")
        if statement.is_several:
            raise failure(SYNTAX_ERROR, "SYNTAX_ERROR", "Multi-statements are not allowed")
        with self._engine.session(request.database, request.settings) as session:
            session.is_spent = statement.changes_session
            if statement.insert:
                data = itertools.chain([text[statement.insert.data_start :]], body)
                summary = Summary()
                session.insert(statement.insert, data, summary)
                self._send(200, self._headers(request, summary), b"")
            else:
                self._query(request, session, statement, text.decode(errors="replace"))

    def _query(self, request: Request, session: Session, statement: Statement, sql: str) -> None:
        summary = Summary()
        output_format = statement.format or request.default_format
        if statement.streams and output_format in STREAMABLE_FORMATS:
            blocks = session.stream(sql, output_format, request.parameters, summary)
        else:
            blocks = _one(session.query(sql, output_format, request.parameters, summary))
        try:
            self._answer(request, statement, output_format, blocks, summary)
        finally:
            blocks.close()

    def _answer(
        self,
        request: Request,
        statement: Statement,
        output_format: str,
        blocks: Iterator[bytes],
        summary: Summary,
    ) -> None:
        """Sends the answer: as a whole if that was asked for, else block by block."""
        encoding = (
            accepted_encoding(self.headers.get("Accept-Encoding", "")) if request.may_compress else None
        )
        first = next(blocks, b"")
        blocks = itertools.chain([first] if first else [], blocks)
        headers = {"X-ClickHouse-Format": output_format} if statement.answers else {}
        if encoding:
            headers["Content-Encoding"] = encoding
        if request.waits_for_end or not first or self.request_version != "HTTP/1.1":
            self._send_whole(request, headers, blocks, encoding, summary)
        else:
            self._send_blocks(request, headers, blocks, encoding)

    def _send_whole(
        self,
        request: Request,
        headers: dict[str, str],
        blocks: Iterable[bytes],
        encoding: str | None,
        summary: Summary,
    ) -> None:
        with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
            for block in compressed(blocks, encoding) if encoding else blocks:
                spool.write(block)
            length = spool.tell()
            spool.seek(0)
            self._send(200, self._headers(request, summary) | headers, spool.read(SPOOL_BYTES), length)
            while block := spool.read(SPOOL_BYTES):
                self.wfile.write(block)

    def _send_blocks(
        self, request: Request, headers: dict[str, str], blocks: Iterable[bytes], encoding: str | None
    ) -> None:
        """Sends an answer in chunks. If the query fails meanwhile, the error is the last, without an end.

        Source: ClickHouse, WriteBufferFromHTTPServerResponse::cancelWithException.
        """
        tag = secrets.token_hex(8)
        failures: list[QueryFailed] = []
        blocks = _with_failure(blocks, tag, failures)
        self.send_response_only(200)
        headers |= {"X-ClickHouse-Exception-Tag": tag, "Transfer-Encoding": "chunked"}
        for name, value in (self._headers(request, Summary()) | headers).items():
            self.send_header(name, value)
        self.end_headers()
        for block in compressed(blocks, encoding) if encoding else blocks:
            if block:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block))
        if failures:
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def _headers(self, request: Request, summary: Summary) -> dict[str, str]:
        counts = {name: str(value) for name, value in asdict(summary).items()}
        return {
            "Content-Type": "text/plain; charset=UTF-8",
            "X-ClickHouse-Summary": json.dumps(counts, separators=(",", ":")),
            "X-ClickHouse-Query-Id": request.query_id,
            "X-ClickHouse-Timezone": self._engine.timezone,
            "X-ClickHouse-Server-Display-Name": "lurus",
        }

    def _send_failure(self, error: QueryFailed) -> None:
        version = "" if "(version " in str(error) else f" (version {self._engine.version})"
        headers = {
            "X-ClickHouse-Exception-Code": str(error.code),
            "Content-Type": "text/plain; charset=UTF-8",
        }
        self._send(
            _STATUS_OF_CODE.get(error.code, 500), headers, f"{error}{version}\n".encode(errors="replace")
        )

    def _send(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
        """Sends head and body, or the beginning of a longer one, at once."""
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _drain(self) -> None:
        """Reads what is left of the body, since a client that still writes would not read the error."""
        left = DRAIN_BYTES
        try:
            for chunk in self._raw:
                left -= len(chunk)
                if left < 0:
                    self.close_connection = True
                    return
        except (OSError, ValueError):
            self.close_connection = True


def _one(block: bytes) -> Generator[bytes, None, None]:
    yield block


def _whole(text: bytes, body: Iterable[bytes]) -> bytes:
    """Returns a statement that is not followed by data, which has its own, smaller limit."""
    parts, size = [text], len(text)
    for chunk in body:
        size += len(chunk)
        if size > MAXIMUM_STATEMENT_BYTES:
            raise failure(
                QUERY_IS_TOO_LARGE, "QUERY_IS_TOO_LARGE", f"Over {MAXIMUM_STATEMENT_BYTES} bytes of query"
            )
        parts.append(chunk)
    return b"".join(parts)


def _with_failure(blocks: Iterable[bytes], tag: str, failures: list[QueryFailed]) -> Iterator[bytes]:
    """Yields `blocks`; a failure of theirs is yielded as text between tags, and put into `failures`."""
    try:
        yield from blocks
    except QueryFailed as error:
        failures.append(error)
        message = f"{error}\n".encode()
        yield b"\r\n__exception__\r\n%b\r\n%b%d %b\r\n__exception__\r\n" % (
            tag.encode(),
            message,
            len(message),
            tag.encode(),
        )


def serve(directory: Path, port: int, password: str) -> None:
    """Serves until SIGTERM or SIGINT, then lets running queries end, closes the engine and exits with 0."""
    stop_signals = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)  # the threads of the engine inherit it
    server = Server(port, Engine(directory, DATABASE), password)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.sigwait(stop_signals)
    server.shutdown()
    server.server_close()
    server.engine.close(DRAIN_SECONDS)
    os._exit(0)  # threads still wait on idle connections, and what is committed is on disk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--password-file", type=Path, required=True)
    arguments = parser.parse_args()
    serve(arguments.data_dir, arguments.port, arguments.password_file.read_text().strip())


if __name__ == "__main__":
    main()
