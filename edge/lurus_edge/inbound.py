"""What a request's headers say: who calls, how the body is coded, what may go on to a provider."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from lurus_common.errors import EncodingUnsupported, MediaTypeUnsupported
from lurus_dialects.dialect import Dialect
from lurus_dialects.headers import to_upstream

RawHeaders = Iterable[tuple[bytes, bytes]]

MAX_KNOWN_NAMES = 4096
MAX_CREDENTIALS = 4
MAX_CREDENTIAL_CHARACTERS = 4096
# For the routing service itself, which lets it through to no provider.
STRICT = b"x-lurus-strict"
CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "iso-8859-1"})

# Source: W3C Trace Context §3.2.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
_READ_HERE = frozenset(
    {
        b"authorization",
        b"x-api-key",
        b"content-type",
        b"content-encoding",
        b"connection",
        b"traceparent",
        b"upgrade",
    }
)
# Of all other headers: the name of those that go on, an empty text for those that do not.
_names: dict[bytes, str] = {}


@dataclass(slots=True)
class Inbound:
    """The headers of one request, sorted out."""

    # For the routing service, in order.
    headers: list[dict[str, str | bytes]] = field(default_factory=list)
    api_keys: list[str] = field(default_factory=list)
    bearers: list[str] = field(default_factory=list)
    content_type: bytes = b""
    content_coding: bytes = b""
    upgrade: bytes = b""

    def credentials(self, dialect: Dialect) -> list[str]:
        """Returns what the caller presented, in the order to try (wire-contract G2)."""
        first, second = self.bearers, self.api_keys
        if dialect is Dialect.ANTHROPIC:
            first, second = second, first
        return list(dict.fromkeys([*first, *second]))[:MAX_CREDENTIALS]


def read_headers(headers: RawHeaders) -> Inbound:
    """Sorts out headers with lower-case names, as ASGI has them.

    Credentials, cookies, what describes the connection and what claims to say
    who the caller is go no further; the rest does, so that headers of tomorrow work.
    """
    inbound = Inbound()
    passed = inbound.headers
    listed: frozenset[bytes] = frozenset()
    for name, value in headers:
        text = _names.get(name)
        if text is None:
            if name == b"connection":
                listed |= _listed(value)
            text = _read_here(inbound, name, value) if name in _READ_HERE else _learn(name)
        if text:
            passed.append({"name": text, "value": value})
    if listed:
        inbound.headers = [header for header in passed if str(header["name"]).encode() not in listed]
    return inbound


def _read_here(inbound: Inbound, name: bytes, value: bytes) -> str:
    """Keeps what the edge itself needs; returns the name if the header goes on as well."""
    if name == b"content-type":
        inbound.content_type = value
        return "content-type"
    if name == b"traceparent":
        return "traceparent" if _TRACEPARENT.match(value) else ""
    if name == b"content-encoding":
        inbound.content_coding = inbound.content_coding + b"," + value if inbound.content_coding else value
    elif name == b"upgrade":
        inbound.upgrade = value.lower()
    elif name == b"x-api-key":
        _note_credential(inbound.api_keys, value)
    elif name == b"authorization" and value[:7].lower() == b"bearer ":
        _note_credential(inbound.bearers, value[7:])
    return ""


def _note_credential(credentials: list[str], value: bytes) -> None:
    value = value.strip()
    if value and len(value) <= MAX_CREDENTIAL_CHARACTERS and value.isascii():
        credentials.append(value.decode("ascii"))


def _listed(connection: bytes) -> frozenset[bytes]:
    """The headers that `Connection` declares to be of this hop only."""
    if connection.lower() in (b"keep-alive", b"close"):
        return frozenset()
    return frozenset(token.strip().lower() for token in connection.split(b","))


def _learn(name: bytes) -> str:
    text = name.decode("latin-1")
    if name != STRICT and not _may_pass(text):
        text = ""
    if len(_names) < MAX_KNOWN_NAMES:
        _names[name] = text
    return text


def _may_pass(name: str) -> bool:
    """Asks the one place that knows which headers a provider may see."""
    passed = to_upstream(Dialect.OPENAI_CHAT, [(name, "probe")])
    return (name, "probe") in passed


def check_content_type(content_type: bytes) -> None:
    """Lets JSON pass, and a request that does not say what it is.

    Raises:
        MediaTypeUnsupported: it says that it is something else.
        EncodingUnsupported: its characters are not UTF-8.
    """
    if not content_type or content_type == b"application/json":
        return
    kind, _, parameters = content_type.decode("latin-1").lower().partition(";")
    kind = kind.strip()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise MediaTypeUnsupported("the content type must be application/json")
    for parameter in parameters.split(";"):
        key, _, value = parameter.partition("=")
        if key.strip() == "charset" and value.strip().strip('"') not in CHARSETS:
            raise EncodingUnsupported("the charset must be utf-8", error_code="unsupported_charset")
