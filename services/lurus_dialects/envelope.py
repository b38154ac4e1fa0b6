"""Thinking of one provider, carried by a client of another dialect until the next turn.

Signatures and encrypted reasoning are of use only where they were made, and
clients return them untouched. So they travel in an envelope that names their
maker: the round trip needs no state of ours (wire-contract C.3).
"""

import base64
import binascii
from typing import Final

import msgspec

from lurus.routing.v1.chat_pb2 import ChatThinking
from lurus.usage.v1 import usage_pb2

PREFIX: Final = "lsw1."
# A provider's own block is smaller; what is larger was not made by us.
MAX_ENVELOPE_CHARACTERS = 8 * 1024 * 1024

_LETTERS: Final = {
    usage_pb2.DIALECT_ANTHROPIC: "A",
    usage_pb2.DIALECT_OPENAI_CHAT: "C",
    usage_pb2.DIALECT_OPENAI_RESPONSES: "R",
}
_DIALECTS: Final = {letter: dialect for dialect, letter in _LETTERS.items()}


class _Envelope(msgspec.Struct):
    p: str
    u: str
    m: str
    b: msgspec.Raw


def seal(thinking: ChatThinking) -> str:
    """Returns `thinking.original` with its maker as text that any client returns untouched."""
    envelope = _Envelope(
        p=_LETTERS[thinking.dialect],
        u=thinking.provider_id,
        m=thinking.upstream_model,
        b=msgspec.Raw(thinking.original or b"null"),
    )
    return PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(envelope)).rstrip(b"=").decode()


def is_envelope(text: str) -> bool:
    """True if `text` looks like one of ours, readable or not."""
    return text.startswith(PREFIX)


def unseal(text: str) -> ChatThinking | None:
    """Returns what `seal` was given, without its words; None if `text` is no readable envelope."""
    if not is_envelope(text) or len(text) > MAX_ENVELOPE_CHARACTERS:
        return None
    try:
        packed = base64.urlsafe_b64decode(text[len(PREFIX) :] + "=" * (-(len(text) - len(PREFIX)) % 4))
        envelope = msgspec.json.decode(packed, type=_Envelope)
    except (binascii.Error, ValueError, RecursionError):
        return None
    if envelope.p not in _DIALECTS:
        return None
    original = bytes(envelope.b)
    return ChatThinking(
        original=b"" if original == b"null" else original,
        dialect=_DIALECTS[envelope.p],
        provider_id=envelope.u,
        upstream_model=envelope.m,
    )
