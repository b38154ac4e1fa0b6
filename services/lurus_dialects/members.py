"""Takes the members of a client's JSON apart, whose values may be of any type.

What is interpreted is taken by its type; a value of another one is the
client's fault and named by its path. What is left over belongs to the dialect.
Half a character in a text becomes U+FFFD: neither UTF-8 nor the hub can carry
it, and clients cut texts amid a character.
"""

import re
from typing import Any, ClassVar, Final, NoReturn, Self

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
# An escape: a pair of halves of a character, a lone half, or any other.
_ESCAPE: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
_QUOTE: Final = ord('"')


class Members:
    """The members of one object, each of which is taken once; null counts as absent.

    Every method that takes raises `InvalidRequest` for a value of another type.
    """

    __slots__ = ("_values", "path")
    # Whose words they are; stated by each dialect's own class.
    dialect: ClassVar[usage_pb2.Dialect.ValueType] = usage_pb2.DIALECT_UNSPECIFIED
    # Whether a null is a statement of its own.
    keeps_null: ClassVar[bool] = False

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

    def object(self, name: str) -> Self | None:
        """Returns the members of an object; None if absent."""
        raw = self.take(name)
        return None if raw is None else type(self)(raw, self.path_of(name))

    def text_map(self, name: str) -> dict[str, str]:
        """Returns an object whose values are strings; empty if absent."""
        members = self.object(name)
        return {} if members is None else {key: members.text(key) for key in list(members._values)}

    def is_empty(self) -> bool:
        """True if everything that is stated was taken."""
        return all(raw == _NULL for raw in self._values.values())

    def rest(self, prefix: str = "") -> list[ChatVendorField]:
        """Returns what was not taken, in the order of the source; `prefix` comes before each name."""
        return [
            ChatVendorField(dialect=self.dialect, name=joined(prefix + name), json=bytes(raw))
            for name, raw in self._values.items()
            if self.keeps_null or raw != _NULL
        ]

    def _as(self, decoder: Any, raw: msgspec.Raw, name: str, what: str) -> Any:
        return _decoded(decoder, raw, self.path_of(name), what)


def items_of(raw: msgspec.Raw, path: str) -> list[msgspec.Raw]:
    """Returns the items of a list."""
    items: list[msgspec.Raw] = _decoded(_LIST, raw, path, "a list")
    return items


def text_of(raw: msgspec.Raw, path: str) -> str:
    """Returns a string."""
    text: str = _decoded(_TEXT, raw, path, "a string")
    return text


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
        pass
    try:
        return decoder.decode(_mended(bytes(raw)))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        refuse(path, f"must be {what}")


def _mended(raw: bytes) -> bytes:
    """Returns JSON with lone halves of characters replaced."""
    return _ESCAPE.sub(lambda escape: b"\\ufffd" if escape[1] else escape[0], raw)
