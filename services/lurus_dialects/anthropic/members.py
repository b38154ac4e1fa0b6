"""The members of a client's JSON in the shape of Anthropic Messages."""

import msgspec

from lurus.routing.v1.chat_pb2 import ChatVendorField
from lurus.usage.v1 import usage_pb2
from lurus_dialects import members
from lurus_dialects.surrogates import joined


class Members(members.Members):
    """The members of one object of this dialect."""

    __slots__ = ()
    dialect = usage_pb2.DIALECT_ANTHROPIC
    # The block or field is returned to its own provider exactly.
    keeps_null = True


def vendor_field(name: str, raw: msgspec.Raw | bytes) -> ChatVendorField:
    """Returns a value that only this dialect knows, as it came."""
    return ChatVendorField(dialect=usage_pb2.DIALECT_ANTHROPIC, name=joined(name), json=bytes(raw))
