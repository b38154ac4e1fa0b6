"""Takes our envelopes out of a client's own bytes before a provider of the same dialect gets them.

A client returns what it was shown, also the sealed thinking of a provider of
another dialect that answered an earlier turn. To anybody but its maker it is
an invalid signature. The maker gets its own block back; of all other bytes
none changes (wire-contract B1c).
"""

from collections.abc import Callable
from typing import Final

import msgspec

from lurus_dialects.dialect import Dialect
from lurus_dialects.envelope import PREFIX, is_envelope, unseal
from lurus_dialects.request import Span, locate
from lurus_dialects.translation import DIALECTS

_MARK: Final = PREFIX.encode()
_SPACE_AND_COMMA: Final = b" \t\n\r,"
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


class _Block(msgspec.Struct):
    signature: str | None = None
    data: str | None = None
    encrypted_content: str | None = None


_BLOCK = msgspec.json.Decoder(_Block)


def without_foreign_thinking(dialect: Dialect, body: bytes, provider_id: str, upstream_model: str) -> bytes:
    """Returns `body` without sealed thinking of other makers; the same object if there is none."""
    if _MARK not in body or dialect is Dialect.OPENAI_CHAT:
        return body
    maker = _Maker(dialect, provider_id, upstream_model)
    if dialect is Dialect.OPENAI_RESPONSES:
        return _edited(body, "input", maker.item) or body
    return _edited(body, "messages", maker.message) or body


class _Maker:
    """Who is asked, and so what of each part is left."""

    def __init__(self, dialect: Dialect, provider_id: str, upstream_model: str) -> None:
        self._known_by = (DIALECTS[dialect], provider_id, upstream_model)

    def message(self, message: bytes) -> bytes | None:
        """Returns what is left of a message, None if nothing is."""
        return _edited(message, "content", self.item) if message.startswith(b"{") else message

    def item(self, item: bytes) -> bytes | None:
        """Returns a block or an item as its maker wants it, None if another one made it."""
        try:
            block = _BLOCK.decode(item)
        except (msgspec.DecodeError, RecursionError):
            return item
        sealed = block.signature or block.data or block.encrypted_content or ""
        if not is_envelope(sealed):
            return item
        thinking = unseal(sealed)
        if thinking is None:
            return None
        is_own = (thinking.dialect, thinking.provider_id, thinking.upstream_model) == self._known_by
        return thinking.original or None if is_own else None


def _edited(value: bytes, name: str, edit: Callable[[bytes], bytes | None]) -> bytes | None:
    """Returns the object `value` with the elements of its list `name` edited, None if none is left."""
    _, spans, _ = locate(value)
    if name not in spans or value[spans[name][0]] != ord("["):
        return value
    begin, stop = spans[name]
    elements = _elements(value, begin, stop)
    pieces = [value[: elements[0][0]] if elements else value[:stop]]
    is_any_left = False
    for number, (first, last) in enumerate(elements):
        element = value[first:last]
        left = edit(element) if _MARK in element else element
        if left is None:
            continue
        if is_any_left:
            pieces.append(value[elements[number - 1][1] : first])
        pieces.append(left)
        is_any_left = True
    if elements and not is_any_left:
        return None
    pieces.append(value[elements[-1][1] :] if elements else value[stop:])
    return b"".join(pieces)


def _elements(value: bytes, begin: int, stop: int) -> list[Span]:
    """Returns where the elements of the list at `begin` are."""
    position = begin + 1
    spans = []
    for element in _LIST.decode(memoryview(value)[begin:stop]):
        while value[position] in _SPACE_AND_COMMA:
            position += 1
        end = position + len(memoryview(element))
        spans.append((position, end))
        position = end
    return spans
