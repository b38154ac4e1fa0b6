"""Takes the plain answer out of a stream of OpenAI Responses: its last event holds it whole."""

from typing import Final

import msgspec

from lurus_dialects.gathering import Object, encoded, items_of, members_of, text_of

_TERMINALS: Final = frozenset({"response.completed", "response.incomplete"})


class Gatherer:
    """See `gathering.Gatherer`."""

    def __init__(self) -> None:
        self.lost_count = 0
        self._response = b""
        self._items: list[msgspec.Raw] = []

    def take(self, name: bytes, data: bytes) -> None:
        """Takes one event."""
        event = members_of(data)
        kind = text_of(event.get("type")) or name.decode("utf-8", "replace")
        if kind in _TERMINALS:
            self._response = bytes(event.get("response", b"{}"))
        elif kind == "response.output_item.done" and "item" in event:
            self._items.append(event["item"])

    def whole(self) -> bytes:
        """Returns the response; some servers tell its items only one by one."""
        response: Object = members_of(self._response)
        if self._items and not items_of(response.get("output", b"")):
            return encoded({**response, "output": self._items})
        return self._response
