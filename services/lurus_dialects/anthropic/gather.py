"""Puts streams of Anthropic Messages together to plain answers."""

from typing import Any, Final

import msgspec

from lurus_dialects import loose
from lurus_dialects.gathering import Object, encoded, items_of, members_of, number_of, text_of, whole_text

# The member that each kind of delta goes on with, which the delta calls by the same name.
_TEXTS: Final = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "compaction_delta": "content",
}


class _Block:
    """One block of the content."""

    def __init__(self, start: Object) -> None:
        self._start = start
        self._pieces: dict[str, list[str]] = {}
        self._citations: list[msgspec.Raw] = []

    def take(self, delta: Object) -> bool:
        """Takes a delta; False if its kind is not known."""
        kind = text_of(delta.get("type")) or ""
        if kind == "citations_delta" and "citation" in delta:
            self._citations.append(delta["citation"])
            return True
        name = _TEXTS.get(kind, "partial_json" if kind == "input_json_delta" else "")
        if name:
            self._pieces.setdefault(name, []).append(text_of(delta.get(name)) or "")
        return bool(name)

    def as_json(self) -> Object:
        """Returns the block."""
        block: Object = dict(self._start)
        for name, pieces in self._pieces.items():
            if name != "partial_json":
                block[name] = whole_text([text_of(block.get(name)) or "", *pieces])
        if self._citations:
            block["citations"] = [*items_of(block.get("citations", loose.ABSENT)), *self._citations]
        text = whole_text(self._pieces.get("partial_json", []))
        if text:
            # Cut by the limit of the answer, arguments need not be JSON.
            is_whole = isinstance(loose.decode(text.encode()), dict)
            block["input"] = msgspec.Raw(text.encode()) if is_whole else {"raw_arguments": text}
        return block


class Gatherer:
    """See `gathering.Gatherer`."""

    def __init__(self) -> None:
        self.lost_count = 0
        self._message: Object = {}
        self._usage: Object = {}
        self._blocks: dict[int, _Block] = {}

    def take(self, name: bytes, data: bytes) -> None:
        """Takes one event."""
        event = members_of(data)
        kind = text_of(event.pop("type", None)) or name.decode("utf-8", "replace")
        if kind == "content_block_delta":
            block = self._blocks.get(number_of(event.get("index"), 0))
            is_told = block is not None and block.take(members_of(event.get("delta", b"")))
            self.lost_count += not is_told
        elif kind == "content_block_start":
            index = number_of(event.get("index"), len(self._blocks))
            self._blocks[index] = _Block(members_of(event.get("content_block", b"")))
        elif kind == "message_start":
            self._message = members_of(event.get("message", b""))
            self._add_usage(self._message)
        elif kind == "message_delta":
            self._add_usage(event)
            self._message.update(members_of(event.pop("delta", b"")))
            event.pop("usage", None)
            self._message.update(event)

    def _add_usage(self, event: Object) -> None:
        counts = members_of(event.get("usage", b""))
        # What a later event leaves out, or states as null, is as it was.
        self._usage.update({n: v for n, v in counts.items() if loose.is_stated(v) or n not in self._usage})

    def whole(self) -> bytes:
        """Returns the message."""
        content: list[Any] = [block.as_json() for _, block in sorted(self._blocks.items())]
        return encoded({**self._message, "content": content, "usage": self._usage})
