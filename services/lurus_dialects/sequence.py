"""Puts the blocks of an answer one after the other.

Providers may alternate between two calls of tools; clients of every dialect
have trouble with that, and some fail (wire-contract C.4).
"""

from typing import Final

from lurus.routing.v1.chat_pb2 import ChatError, StreamChatResponse

# Of what is held back while another block is open.
MAX_HELD_BYTES: Final = 8 * 1024 * 1024
_OF_A_BLOCK: Final = frozenset(
    {
        "block_start",
        "text_delta",
        "thinking_delta",
        "arguments_delta",
        "thinking_seal",
        "citation",
        "tool_call",
        "block_end",
    }
)
_ENDS: Final = frozenset({"tool_call", "block_end"})
_NONE: Final = -1


class Sequencer:
    """Holds the events of a block back until the one before it has ended."""

    def __init__(self) -> None:
        self._open = _NONE
        # By block, in the order of their begins.
        self._held: dict[int, list[StreamChatResponse]] = {}
        self._held_bytes = 0

    def feed(self, event: StreamChatResponse) -> list[StreamChatResponse]:
        """Returns what may be told now; an `error` if too much is held."""
        kind = event.WhichOneof("event")
        if kind not in _OF_A_BLOCK:
            return [event]
        index = event.block_index
        if self._open == _NONE:
            self._open = index
        if index != self._open:
            return self._hold(index, event)
        if kind not in _ENDS:
            return [event]
        self._open = _NONE
        return [event, *self._release()] if self._held else [event]

    def _hold(self, index: int, event: StreamChatResponse) -> list[StreamChatResponse]:
        self._held.setdefault(index, []).append(event)
        self._held_bytes += event.ByteSize()
        if self._held_bytes <= MAX_HELD_BYTES:
            return []
        self._held.clear()
        error = ChatError(reason="UPSTREAM_FAILED", message="the provider's answer is over the limit")
        return [StreamChatResponse(error=error)]

    def _release(self) -> list[StreamChatResponse]:
        """Returns the blocks that were held, up to and with the first that has not ended."""
        released: list[StreamChatResponse] = []
        while self._held:
            index = next(iter(self._held))
            events = self._held.pop(index)
            released += events
            if events[-1].WhichOneof("event") not in _ENDS:
                self._open = index
                break
        self._held_bytes = sum(event.ByteSize() for events in self._held.values() for event in events)
        return released
