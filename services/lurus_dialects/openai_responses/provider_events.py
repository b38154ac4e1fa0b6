"""What is read of a provider's events and response objects."""

from typing import Final

import msgspec

from lurus_dialects import loose


class ErrorFields(msgspec.Struct, gc=False):
    """An error of the provider."""

    code: str | None = None
    message: str | None = None
    type: str | None = None


class Details(msgspec.Struct, gc=False):
    """Why an answer is incomplete."""

    reason: str | None = None


class Response(msgspec.Struct, gc=False):
    """What is read of a response object."""

    id: str | None = None
    model: str | None = None
    status: str | None = None
    usage: msgspec.Raw = loose.ABSENT
    output: msgspec.Raw = loose.ABSENT
    error: ErrorFields | None = None
    incomplete_details: Details | None = None


class Event(msgspec.Struct, gc=False):
    """What is read of an event, whatever its type."""

    type: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    summary_index: int | None = None
    delta: str | None = None
    text: str | None = None
    refusal: str | None = None
    arguments: str | None = None
    input: str | None = None
    code: str | None = None
    message: str | None = None
    item: msgspec.Raw = loose.ABSENT
    annotation: msgspec.Raw = loose.ABSENT
    error: ErrorFields | None = None
    response: Response | None = None


EVENT: Final = msgspec.json.Decoder(Event)
_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])


def raw_items(output: msgspec.Raw) -> list[msgspec.Raw]:
    """Returns the items of `output`; none if it is no list."""
    if not loose.is_stated(output):
        return []
    try:
        return _ITEMS.decode(output)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = loose.decode(bytes(output))
        return [msgspec.Raw(loose.compact(v)) for v in value] if isinstance(value, list) else []
