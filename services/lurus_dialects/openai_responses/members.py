"""Takes the members of a client's JSON apart, whose values may be of any type.

What is interpreted is taken by its type; a value of another one is the
client's fault and named by its path. What is left over belongs to the dialect.
"""

import re
from typing import Any, Final, NoReturn

import msgspec

from lurus.routing.v1.chat_pb2 import ChatVendorField
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import InvalidRequest
from lurus_dialects.surrogates import joined

MAX_INTEGER: Final = 2**53
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_TEXT: Final = msgspec.json.Decoder(str)
_FLAG: Final = msgspec.json.Decoder(bool)
_INTEGER: Final = msgspec.json.Decoder(int)
_NUMBER: Final = msgspec.json.Decoder(float)
_NULL: Final = msgspec.Raw(b"null")
# An escape in a JSON string: a whole surrogate pair, half of one, or any other.
_ESCAPE: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
_QUOTE: Final = ord('"')


class Members:
    """The members of one object, each of which is taken once; null counts as absent.

    Every method that takes raises `InvalidRequest` for a value of another type.
    """

    __slots__ = ("_values", "path")

    def __init__(self, raw: msgspec.Raw | bytes, path: str) -> None:
        self.path = path
        self._values: dict[str, msgspec.Raw] = _decoded(_OBJECT, raw, path or "body", "an object")

    def path_of(self, name: str) -> str:
        """Returns where the member stands in the client's JSON."""
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        """True if the member is stated, be it as null."""
        return name in self._values

    def take(self, name: str) -> msgspec.Raw | None:
        """Returns a member of any type; None if it is absent."""
        raw = self._values.pop(name, None)
        return None if raw is None or raw == _NULL else raw

    def keep(self, name: str, raw: msgspec.Raw) -> None:
        """Puts a member back that was taken, so that it is among the rest."""
        self._values[name] = raw

    def text(self, name: str) -> str:
        """Returns a string; empty if absent."""
        raw = self._values.pop(name, None)
        return "" if raw is None or raw == _NULL else text_of(raw, self.path_of(name))

    def required_text(self, name: str) -> str:
        """Returns a string that must be there, perhaps empty."""
        raw = self.take(name)
        if raw is None:
            refuse(self.path_of(name), "is missing")
        return text_of(raw, self.path_of(name))

    def flag(self, name: str) -> bool | None:
        """Returns a boolean; None if absent."""
        raw = self.take(name)
        return None if raw is None else self._as(_FLAG, raw, name, "true or false")

    def integer(self, name: str) -> int | None:
        """Returns an integer that is not negative; None if absent."""
        raw = self.take(name)
        if raw is None:
            return None
        value: int = self._as(_INTEGER, raw, name, "an integer")
        if not 0 <= value <= MAX_INTEGER:
            refuse(self.path_of(name), "must not be negative or absurdly large")
        return value

    def number(self, name: str, maximum: float) -> float | None:
        """Returns a number from 0 to `maximum`; None if absent."""
        raw = self.take(name)
        if raw is None:
            return None
        value: float = self._as(_NUMBER, raw, name, "a number")
        if not 0 <= value <= maximum:
            refuse(self.path_of(name), f"must be from 0 to {maximum:g}")
        return value

    def items(self, name: str) -> list[msgspec.Raw]:
        """Returns the items of a list; empty if absent."""
        raw = self.take(name)
        return [] if raw is None else items_of(raw, self.path_of(name))

    def texts(self, name: str) -> list[str]:
        """Returns a list of strings; empty if absent."""
        path = self.path_of(name)
        return [text_of(item, f"{path}[{i}]") for i, item in enumerate(self.items(name))]

    def object(self, name: str) -> "Members | None":
        """Returns the members of an object; None if absent."""
        raw = self.take(name)
        return None if raw is None else Members(raw, self.path_of(name))

    def text_map(self, name: str) -> dict[str, str]:
        """Returns an object whose values are strings; empty if absent."""
        members = self.object(name)
        return {} if members is None else {key: members.text(key) for key in list(members._values)}

    def is_empty(self) -> bool:
        """True if everything that is stated was taken."""
        return all(raw == _NULL for raw in self._values.values())

    def rest(self, prefix: str = "") -> list[ChatVendorField]:
        """Returns what was not taken, in the order of the source; `prefix` comes before each name."""
        if not self._values:
            return []
        return [vendor_field(prefix + name, raw) for name, raw in self._values.items() if raw != _NULL]

    def _as(self, decoder: Any, raw: msgspec.Raw, name: str, what: str) -> Any:
        return _decoded(decoder, raw, self.path_of(name), what)


def vendor_field(name: str, raw: msgspec.Raw | bytes) -> ChatVendorField:
    """Returns a value that only this dialect knows, as it came."""
    return ChatVendorField(dialect=usage_pb2.DIALECT_OPENAI_RESPONSES, name=whole_text(name), json=bytes(raw))


def items_of(raw: msgspec.Raw, path: str) -> list[msgspec.Raw]:
    """Returns the items of a list."""
    items: list[msgspec.Raw] = _decoded(_LIST, raw, path, "a list")
    return items


def text_of(raw: msgspec.Raw, path: str) -> str:
    """Returns a string."""
    text: str = _decoded(_TEXT, raw, path, "a string")
    return text


def body_of(body: bytes) -> Members:
    """Returns the members of a request; half a surrogate pair in it becomes U+FFFD.

    Neither UTF-8 nor the hub can carry one, and no client is refused for it.
    """
    try:
        str(body, "utf-8")
    except UnicodeDecodeError:
        refuse("body", "must be UTF-8")
    try:
        return Members(body, "")
    except InvalidRequest:
        return Members(_ESCAPE.sub(_without_half, body), "")


def _without_half(escape: re.Match[bytes]) -> bytes:
    return b"\\ufffd" if escape["half"] else escape[0]


def whole_text(text: str) -> str:
    """Returns `text` with surrogate pairs joined and lone surrogates replaced."""
    return text if text.isascii() else joined(text)


def is_text(raw: msgspec.Raw) -> bool:
    """True if the value is a string."""
    return memoryview(raw)[0] == _QUOTE


def refuse(path: str, why: str) -> NoReturn:
    """Blames the client for the value at `path`.

    Raises:
        InvalidRequest: always.
    """
    raise InvalidRequest(f"{path}: {why}", param=path)


def _decoded(decoder: Any, raw: msgspec.Raw | bytes, path: str, what: str) -> Any:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        refuse(path, f"must be {what}")
