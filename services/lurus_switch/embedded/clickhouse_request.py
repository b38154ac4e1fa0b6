"""Reads a request of the ClickHouse HTTP interface: parameters, credentials, body."""

import base64
import binascii
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from io import BufferedIOBase
from urllib.parse import parse_qsl, urlsplit

from lurus_switch.embedded.clickhouse_codec import ENCODINGS, CodecError, decompressed
from lurus_switch.embedded.clickhouse_engine import BAD_ARGUMENTS, failure
from lurus_switch.embedded.clickhouse_sql import DEFAULT_FORMAT

MAXIMUM_BODY_BYTES = 256 * 1024**2
"""Of a body after decompression."""
MAXIMUM_PARAMETERS = 2000
READ_BYTES = 256 * 1024
_LINE_BYTES = 8192

TOO_MANY_BYTES, NOT_IMPLEMENTED, CANNOT_DECOMPRESS = 307, 48, 271

_NOT_SETTINGS = frozenset(
    {
        "add_http_cors_header",
        "buffer_size",
        "cancel_http_readonly_queries_on_client_close",
        "client_protocol_version",
        "compress",
        "database",
        "decompress",
        "default_format",
        "enable_http_compression",
        "http_headers_progress_interval_ms",
        "http_zlib_compression_level",
        "password",
        "query",
        "query_id",
        "quota_key",
        "role",
        "send_progress_in_http_headers",
        "session_check",
        "session_id",
        "session_timeout",
        "stacktrace",
        "user",
        "wait_end_of_query",
    }
)
"""Parameters for the HTTP layer; all others are settings of the query."""


@dataclass(slots=True)
class Request:
    """What a request asks for. Sessions are ignored: each request stands alone."""

    path: str
    user: str
    password: str
    query: bytes
    query_id: str
    database: str
    default_format: str
    waits_for_end: bool
    may_compress: bool
    parameters: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    def add_form(self, fields: Mapping[str, str]) -> None:
        """Adds the fields of a form, which carries the query and its parameters when they are long."""
        self.query += fields.get("query", "").encode()
        self.parameters |= _query_parameters(fields)


def read_request(target: str, headers: Message) -> Request:
    """Reads the URL and the headers. An absent user or database is `default`."""
    url = urlsplit(target)
    fields = dict(parse_qsl(url.query, keep_blank_values=True, max_num_fields=MAXIMUM_PARAMETERS))
    user, password = _credentials(fields, headers)
    if fields.get("decompress") == "1" or fields.get("compress") == "1":
        raise failure(
            NOT_IMPLEMENTED, "NOT_IMPLEMENTED", "ClickHouse's own compression is not supported over HTTP"
        )
    return Request(
        path=url.path or "/",
        user=user,
        password=password,
        query=fields.get("query", "").encode(),
        query_id=fields.get("query_id") or str(uuid.uuid4()),
        database=fields.get("database") or headers.get("X-ClickHouse-Database") or "default",
        default_format=fields.get("default_format") or headers.get("X-ClickHouse-Format") or DEFAULT_FORMAT,
        waits_for_end=fields.get("wait_end_of_query") in ("1", "true"),
        may_compress=fields.get("enable_http_compression") in ("1", "true"),
        parameters=_query_parameters(fields),
        settings={
            name: value
            for name, value in fields.items()
            if name not in _NOT_SETTINGS and not name.startswith("param_")
        },
    )


def _query_parameters(fields: Mapping[str, str]) -> dict[str, str]:
    return {name[6:]: value for name, value in fields.items() if name.startswith("param_")}


def _credentials(fields: Mapping[str, str], headers: Message) -> tuple[str, str]:
    """Returns user and password from where ClickHouse looks for them, in its order."""
    if "X-ClickHouse-User" in headers or "X-ClickHouse-Key" in headers:
        return headers.get("X-ClickHouse-User", "default"), headers.get("X-ClickHouse-Key", "")
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return user, password
    return fields.get("user", "default"), fields.get("password", "")


def raw_body(file: BufferedIOBase, headers: Message) -> Iterator[bytes]:
    """Yields the body as it comes over the wire, by its length or in chunks."""
    if headers.get("Transfer-Encoding", "").lower() == "chunked":
        while size := int(file.readline(_LINE_BYTES).split(b";")[0], 16):
            yield from _read(file, size)
            file.readline(_LINE_BYTES)
        while file.readline(_LINE_BYTES) not in (b"\r\n", b"\n", b""):
            pass
    else:
        yield from _read(file, int(headers.get("Content-Length") or 0))


def _read(file: BufferedIOBase, size: int) -> Iterator[bytes]:
    if size < 0:
        raise ValueError("a negative length")
    while size:
        piece = file.read(min(size, READ_BYTES))
        if not piece:
            raise ConnectionError("the client left within its body")
        size -= len(piece)
        yield piece


def decoded_body(raw: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Yields the content of a body, at most `MAXIMUM_BODY_BYTES`."""
    if encoding in ("", "identity"):
        chunks: Iterable[bytes] = raw
    elif encoding in ENCODINGS:
        chunks = decompressed(raw, encoding)
    else:
        raise failure(NOT_IMPLEMENTED, "NOT_IMPLEMENTED", f"Unknown content encoding {encoding!r}")
    total = 0
    try:
        for chunk in chunks:
            total += len(chunk)
            if total > MAXIMUM_BODY_BYTES:
                raise failure(
                    TOO_MANY_BYTES, "TOO_MANY_BYTES", f"The body exceeds {MAXIMUM_BODY_BYTES} bytes"
                )
            yield chunk
    except CodecError as error:
        raise failure(
            CANNOT_DECOMPRESS, "CANNOT_DECOMPRESS", f"The body is not {encoding}: {error}"
        ) from None


def form_fields(content_type: str, body: bytes) -> dict[str, str]:
    """Returns the text fields of a multipart form."""
    message = BytesParser().parsebytes(
        b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + body
    )
    fields = {}
    for part in message.walk():
        if part.is_multipart():
            continue
        name = part.get_param("name", header="content-disposition")
        if part.get_filename() is not None or not isinstance(name, str):
            raise failure(NOT_IMPLEMENTED, "NOT_IMPLEMENTED", "External tables are not supported")
        content = part.get_payload(decode=True)
        fields[name] = content.decode(errors="surrogateescape") if isinstance(content, bytes) else ""
    if not fields:
        raise failure(BAD_ARGUMENTS, "BAD_ARGUMENTS", "The form has no fields")
    return fields
