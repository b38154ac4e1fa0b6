"""What a provider has understood of a request, in words of no dialect."""

from dataclasses import dataclass, field
from typing import Any

CALL_ID = r"[A-Za-z0-9_-]{1,64}"
TOOL_NAME = r"[A-Za-z0-9_-]{1,64}"


@dataclass(slots=True)
class View:
    """A request; everything in the order in which it stood there."""

    system: str = ""
    # Role and text; results of tools are not among them.
    turns: list[tuple[str, str]] = field(default_factory=list)
    # Id, name and arguments as JSON.
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    # Id of the call, and text.
    results: list[tuple[str, str]] = field(default_factory=list)
    # Blocks or items of thinking as they came.
    thinking: list[Any] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    schema: dict[str, Any] | None = None
    max_tokens: int | None = None
    is_streaming: bool = False
    has_usage: bool = True
    wants_thinking: bool = False
    problems: list[str] = field(default_factory=list)

    def add_text(self, role: str, text: str) -> None:
        """Notes text; what a role says in a row is one turn."""
        if role in ("system", "developer"):
            self.system = "\n\n".join(filter(None, (self.system, text)))
        elif self.turns and self.turns[-1][0] == role:
            self.turns[-1] = (role, f"{self.turns[-1][1]}\n{text}")
        else:
            self.turns.append((role, text))

    def need(self, is_right: bool, problem: str) -> None:
        """Notes a problem unless it is right."""
        if not is_right:
            self.problems.append(problem)


# What SDKs give back of an answer although requests have no such fields; the vendors let it pass.
_ECHOES = ("annotations", "parsed", "parsed_arguments", "index", "reasoning_content")


def without_echoes(value: Any) -> Any:
    """Returns JSON without what SDKs give back of answers."""
    if isinstance(value, list):
        return [without_echoes(item) for item in value]
    if isinstance(value, dict):
        return {name: without_echoes(item) for name, item in value.items() if name not in _ECHOES}
    return value
