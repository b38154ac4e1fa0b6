"""Puts a provider's stream together to the plain answer that its own dialect has for it.

For clients of that dialect that want a plain answer of a provider that is asked
for streams. Values are kept as they stand, numbers with all their digits; what
is told in pieces is joined. Lost is what a stream does not tell: deltas of a
kind that is not known here, which are counted, members that only plain answers
have, and the space between members.
"""

from typing import Any, Final, Protocol

import msgspec

from lurus_dialects import loose
from lurus_dialects.surrogates import joined

Object = dict[str, Any]

_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ENCODER: Final = msgspec.json.Encoder()


class Gatherer(Protocol):
    """Puts one answer together."""

    lost_count: int

    def take(self, name: bytes, data: bytes) -> None:
        """Takes one event; never raises on what a provider sends."""
        ...

    def whole(self) -> bytes:
        """Returns the plain answer, once the stream has ended in order."""
        ...


def members_of(value: bytes | msgspec.Raw) -> Object:
    """Returns the members of an object as they stand; empty if it is none."""
    try:
        return dict(_OBJECT.decode(value))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        found = loose.decode(bytes(value))
    if not isinstance(found, dict):
        return {}
    return {joined(name): msgspec.Raw(loose.compact(item)) for name, item in found.items()}


def items_of(value: bytes | msgspec.Raw) -> list[msgspec.Raw]:
    """Returns the items of a list as they stand; empty if it is none."""
    try:
        return _LIST.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        found = loose.decode(bytes(value))
    return [msgspec.Raw(loose.compact(item)) for item in found] if isinstance(found, list) else []


def text_of(value: msgspec.Raw | None) -> str | None:
    """Returns a string, half characters included, which the next piece may complete; None if it is none."""
    text = None if value is None else loose.decode(bytes(value))
    return text if isinstance(text, str) else None


def number_of(value: msgspec.Raw | None, default: int) -> int:
    """Returns an integer, `default` if it is none."""
    number = None if value is None else loose.decode(bytes(value))
    return number if isinstance(number, int) else default


def whole_text(pieces: list[str]) -> str:
    """Returns the text that was told in pieces."""
    return joined("".join(pieces))


def encoded(value: Any) -> bytes:
    """Returns JSON."""
    return _ENCODER.encode(value)
