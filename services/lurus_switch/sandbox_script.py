"""What the sandbox provider answers: decided from the request alone, without I/O.

See `lurus_switch.sandbox` for the names of the models and the rule by which
tokens are counted.
"""

import hashlib
import json
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from lurus_dialects.usage import estimated_tokens, text_bytes
from lurus_switch.sandbox_request import Turn

MAX_DELAY_MILLISECONDS = 600_000
MAX_CHUNKS = 100_000
MAX_ECHO_CHARACTERS = 500
MAX_SCHEMA_DEPTH = 8
MAX_REMEMBERED_PREFIXES = 10_000

HARMLESS_COMMAND = "echo hello from the sandbox"

_WORDS = re.compile(r"\S+\s*")
_FAULT = re.compile(r"sandbox-(slow|error|cut|stall|long)-(\d{1,9})")
_ASKS_FOR_TOOL = re.compile(r"\b(tool|shell|bash|command|execute|run)\b", re.IGNORECASE)
_PREFERRED_TOOLS: Final = ("exec_command", "shell", "shell_command", "Bash", "bash")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the model's name asks for."""

    kind: str = "text"  # text, tools or thinking
    slow_seconds: float = 0.0
    error_status: int = 0
    cut_after: int | None = None
    stall_after: int | None = None
    chunk_count: int | None = None
    is_garbage: bool = False
    states_usage: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; `arguments` is JSON, or the free text of a custom tool."""

    name: str
    arguments: str
    is_custom: bool

    def fragments(self) -> list[str]:
        """Returns the arguments in pieces of 12 characters."""
        return [self.arguments[i : i + 12] for i in range(0, len(self.arguments), 12)]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the sandbox counts them; the three inputs do not overlap."""

    fresh: int
    cache_read: int
    cache_write: int
    output: int = 0
    reasoning: int = 0

    @property
    def total_input(self) -> int:
        """All input, cached or not."""
        return self.fresh + self.cache_read + self.cache_write


@dataclass(frozen=True, slots=True)
class Script:
    """An answer, piece by piece."""

    thinking: tuple[str, ...]
    text: tuple[str, ...]
    call: Call | None
    is_cut_short: bool  # max_tokens was reached
    usage: Usage

    @property
    def full_text(self) -> str:
        """The text in one piece."""
        return "".join(self.text)

    @property
    def full_thinking(self) -> str:
        """The thinking in one piece."""
        return "".join(self.thinking)

    @property
    def signature(self) -> str:
        """Stands for the seal that a vendor puts on its thinking."""
        return "sandbox" + hashlib.sha256(self.full_thinking.encode()).hexdigest()


@dataclass(slots=True)
class PromptCache:
    """Remembers the beginnings of prompts, as a provider's cache does, per key and model."""

    _seen: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def usage(self, owner: str, prompt: tuple[bytes, ...]) -> Usage:
        """Returns how the input divides: the last message is always fresh, a known beginning is read."""
        tokens = [estimated_tokens(len(unit)) for unit in prompt]
        digest = hashlib.sha256(owner.encode())
        known = 0
        for position, unit in enumerate(prompt):
            digest.update(len(unit).to_bytes(8, "big") + unit)
            prefix = digest.digest()
            if prefix in self._seen and position < len(prompt) - 1:
                known = position + 1
            self._seen[prefix] = None
            self._seen.move_to_end(prefix)
        while len(self._seen) > MAX_REMEMBERED_PREFIXES:
            self._seen.popitem(last=False)
        return Usage(
            fresh=sum(tokens[-1:]), cache_read=sum(tokens[:known]), cache_write=sum(tokens[known:-1])
        )


def behaviour_of(turn: Turn) -> Behaviour:
    """Returns what the model's name asks for."""
    fault = _FAULT.fullmatch(turn.model)
    if fault is None:
        return Behaviour(
            kind=_kind(turn),
            is_garbage=turn.model == "sandbox-garbage",
            states_usage=turn.model != "sandbox-no-usage",
            error_status={"sandbox-bad-credential": 401, "sandbox-throttle": 429}.get(turn.model, 0),
        )
    number = int(fault[2])
    match fault[1]:
        case "slow":
            return Behaviour(slow_seconds=min(number, MAX_DELAY_MILLISECONDS) / 1000)
        case "error":
            return Behaviour(error_status=number if 400 <= number <= 599 else 500)
        case "cut":
            return Behaviour(cut_after=number)
        case "stall":
            return Behaviour(stall_after=number)
        case _:
            return Behaviour(chunk_count=min(number, MAX_CHUNKS))


def write(turn: Turn, behaviour: Behaviour, prompt_usage: Usage) -> Script:
    """Returns the answer to a request."""
    call = _call(turn) if behaviour.kind == "tools" and turn.tool_result is None else None
    thinking = _WORDS.findall(_THINKING) if behaviour.kind == "thinking" else []
    text = _text(turn, behaviour, call)
    room = None if turn.max_tokens is None else turn.max_tokens * 4
    kept_thinking, room = _within(thinking, room)
    kept_text, room = _within(text, room)
    call_bytes = 0 if call is None else text_bytes(call.name + call.arguments)
    is_cut_short = len(kept_thinking) + len(kept_text) < len(thinking) + len(text)
    if room is not None and call_bytes > room:
        call, call_bytes, is_cut_short = None, 0, True
    reasoning_bytes = text_bytes("".join(kept_thinking))
    usage = Usage(
        prompt_usage.fresh,
        prompt_usage.cache_read,
        prompt_usage.cache_write,
        output=estimated_tokens(reasoning_bytes + text_bytes("".join(kept_text)) + call_bytes),
        reasoning=estimated_tokens(reasoning_bytes),
    )
    return Script(tuple(kept_thinking), tuple(kept_text), call, is_cut_short, usage)


_THINKING = "The sandbox does not think. These words stand where a model's thinking would be."
_INTRODUCTION = "This is the Lurus Switch sandbox, not a model: it answers without any vendor's key. "
_FAREWELL = "Your client, the gateway and the way back all work; add a provider to talk to a real model."


def _text(turn: Turn, behaviour: Behaviour, call: Call | None) -> list[str]:
    if behaviour.chunk_count is not None:
        return [f"chunk {number} of the sandbox\n" for number in range(1, behaviour.chunk_count + 1)]
    if call is not None:
        return _WORDS.findall("The Lurus Switch sandbox calls a tool. ")
    if turn.tool_result is not None:
        quoted = turn.tool_result.strip()[:MAX_ECHO_CHARACTERS]
        return _WORDS.findall(f"{_INTRODUCTION}The tool answered: {quoted}")
    quoted = turn.user_text.strip()[:MAX_ECHO_CHARACTERS]
    return _WORDS.findall(f"{_INTRODUCTION}You said: {quoted}\n{_FAREWELL}")


def _within(pieces: list[str], room: int | None) -> tuple[list[str], int | None]:
    """Returns the pieces that fit into `room` bytes, and what is left of it."""
    if room is None:
        return pieces, None
    kept: list[str] = []
    for piece in pieces:
        if text_bytes(piece) > room:
            break
        kept.append(piece)
        room -= text_bytes(piece)
    return kept, room


def _kind(turn: Turn) -> str:
    if turn.model == "sandbox-thinking":
        return "thinking"
    if not turn.tools:
        return "text"
    asks = not turn.model.startswith("sandbox-") and _ASKS_FOR_TOOL.search(turn.user_text) is not None
    return "tools" if "tools" in turn.model or asks else "text"


def _call(turn: Turn) -> Call | None:
    if not turn.tools:
        return None
    by_name = {tool.name: tool for tool in turn.tools}
    preferred = [by_name[name] for name in _PREFERRED_TOOLS if name in by_name]
    plain = [tool for tool in turn.tools if tool.schema is not None]
    tool = (preferred or plain or list(turn.tools))[0]
    if tool.schema is None:
        return Call(tool.name, "hello from the sandbox", True)
    return Call(tool.name, json.dumps(example(tool.schema), ensure_ascii=False), False)


def example(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments that satisfy a tool's JSON schema: what is required, and a harmless command."""
    value = _example(schema, schema, "", 0)
    return value if isinstance(value, dict) else {}


def _example(schema: Any, root: dict[str, Any], name: str, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > MAX_SCHEMA_DEPTH:
        return None
    if "$ref" in schema:
        return _example(_resolved(str(schema["$ref"]), root), root, name, depth + 1)
    for known in ("const", "default"):
        if known in schema:
            return schema[known]
    if schema.get("enum"):
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf", "allOf"):
        if schema.get(choice):
            return _example(schema[choice][0], root, name, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    return _example_of(kind, schema, root, name, depth)


def _example_of(kind: Any, schema: dict[str, Any], root: dict[str, Any], name: str, depth: int) -> Any:
    match kind:
        case "object":
            properties = schema.get("properties") or {}
            wanted = [n for n in properties if n in schema.get("required", ()) or n in ("cmd", "command")]
            return {n: _example(properties[n], root, n, depth + 1) for n in wanted}
        case "array":
            if name in ("cmd", "command"):
                return HARMLESS_COMMAND.split(" ", 1)
            return [_example(schema.get("items"), root, "", depth + 1)] * min(
                1, int(schema.get("minItems", 0))
            )
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return False
        case "null":
            return None
        case _:
            return HARMLESS_COMMAND if name in ("cmd", "command") else "sandbox"


def _resolved(reference: str, root: dict[str, Any]) -> Any:
    value: Any = root
    for name in reference.removeprefix("#/").split("/"):
        value = value.get(name) if isinstance(value, dict) else None
    return value
