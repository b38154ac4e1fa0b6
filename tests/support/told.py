"""What a client has understood of an answer."""

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Told:
    """What a client has understood.

    `blocks` in order: `("text", text)`, `("refusal", text)`, `("thinking", text, seal)`,
    `("tool", id, name, arguments)`; of Responses a fifth member is the namespace, and a custom
    tool is a `"custom"`.
    """

    blocks: list[tuple[str, ...]] = field(default_factory=list)
    finish: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    is_complete: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    model: str = ""
    whole: dict[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str]:
        """What kinds of blocks there are."""
        return [block[0] for block in self.blocks]

    @property
    def text(self) -> str:
        """All text."""
        return "".join(block[1] for block in self.blocks if block[0] == "text")

    @property
    def tools(self) -> list[tuple[str, ...]]:
        """All calls."""
        return [block for block in self.blocks if block[0] in ("tool", "custom")]

    def assert_calls(self) -> None:
        """Fails if a call of a whole answer has no id, no name, or no object for arguments."""
        if self.is_complete:
            assert all(block[1] and block[2] for block in self.tools)
            assert all(isinstance(json.loads(b[3]), dict) for b in self.tools if b[0] == "tool")


def event_json(name: str, data: bytes) -> dict[str, Any]:
    """Returns an event's data; fails if its name is another one or a lone surrogate is in it."""
    value: dict[str, Any] = json.loads(data)
    json.dumps(value, ensure_ascii=False).encode()  # No lone surrogate.
    assert value["type"] == name, f"{name} names {value['type']}"
    return value
