"""Finds the error in an event or a body of this dialect."""

from typing import Any

from lurus.routing.v1.chat_pb2 import ChatError
from lurus_dialects import loose
from lurus_dialects.failures import failure_of


def failure_in(data: bytes) -> ChatError:
    """Returns the error that is stated, in whichever of the shapes that servers use."""
    value = loose.decode(data)
    body: dict[str, Any] = value if isinstance(value, dict) else {}
    error = body.get("error")
    fields: dict[str, Any] = error if isinstance(error, dict) else body
    code = loose.text_of(fields, "code") or loose.text_of(fields, "type")
    return failure_of(code, loose.text_of(fields, "message") or (error if isinstance(error, str) else ""))
