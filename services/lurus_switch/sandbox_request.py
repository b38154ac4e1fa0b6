"""What the sandbox provider reads of a request, in any of the three dialects."""

import json
from dataclasses import dataclass
from typing import Any, Final

from lurus_dialects.dialect import Dialect
from lurus_dialects.usage import estimated_tokens

_RESULT_TYPES: Final = frozenset({"function_call_output", "custom_tool_call_output"})


class BadRequest(Exception):
    """The request is not one of its dialect; `param` names the field."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the request offers; `schema` None stands for one that takes free text."""

    name: str
    schema: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Turn:
    """What the sandbox reads of a request, in no dialect."""

    dialect: Dialect
    model: str
    is_streaming: bool
    include_usage: bool
    max_tokens: int | None
    user_text: str
    tool_result: str | None
    tools: tuple[Tool, ...]
    prompt: tuple[bytes, ...]  # Tools, instructions, then each message, as compact JSON.
    shows_encrypted_reasoning: bool


def read(dialect: Dialect, body: Any) -> Turn:
    """Returns what a request says.

    Raises:
        BadRequest: it is not one of the dialect.
    """
    if not isinstance(body, dict):
        raise BadRequest("body", "must be an object")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("model", "the field is required")
    turns_name = "input" if dialect is Dialect.OPENAI_RESPONSES else "messages"
    turns = body.get(turns_name)
    if isinstance(turns, str) and turns and turns_name == "input":
        turns = [{"role": "user", "content": turns}]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise BadRequest(turns_name, "must be a list with at least one message")
    if dialect is Dialect.ANTHROPIC and not isinstance(body.get("max_tokens"), int):
        raise BadRequest("max_tokens", "the field is required")
    limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    options = body.get("stream_options")
    return Turn(
        dialect=dialect,
        model=model,
        is_streaming=body.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        max_tokens=next((limit for limit in limits if isinstance(limit, int)), None),
        user_text=_user_text(turns),
        tool_result=_tool_result(turns),
        tools=() if _forbids_tools(body.get("tool_choice")) else _tools(body),
        prompt=_prompt(body, turns),
        shows_encrypted_reasoning="reasoning.encrypted_content" in (body.get("include") or ()),
    )


def input_tokens(dialect: Dialect, body: dict[str, Any]) -> int:
    """Returns the tokens of a request's prompt, cached or not."""
    return sum(estimated_tokens(len(unit)) for unit in read(dialect, {"max_tokens": 1, **body}).prompt)


def _prompt(body: dict[str, Any], turns: list[Any]) -> tuple[bytes, ...]:
    beginnings = [body[name] for name in ("tools", "system", "instructions") if body.get(name)]
    return tuple(
        json.dumps(unit, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
        for unit in (*beginnings, *turns)
    )


def _forbids_tools(choice: Any) -> bool:
    return choice == "none" or (isinstance(choice, dict) and choice.get("type") == "none")


def _tools(body: dict[str, Any]) -> tuple[Tool, ...]:
    """Returns the tools that a client runs itself, the forced one only if one is forced."""
    found: list[Tool] = []
    for offered in body.get("tools") or ():
        if not isinstance(offered, dict):
            continue
        kind = offered.get("type", "custom")
        nested = offered.get(kind)
        inner: dict[str, Any] = nested if isinstance(nested, dict) else offered
        schema = inner.get("input_schema", inner.get("parameters"))
        is_free = kind == "custom" and "input_schema" not in inner and kind == offered.get("type")
        if kind in ("function", "custom") and isinstance(inner.get("name"), str):
            found.append(Tool(inner["name"], None if is_free else schema or {}))
    choice = body.get("tool_choice")
    forced_name = choice.get("function", choice).get("name") if isinstance(choice, dict) else None
    forced = [tool for tool in found if tool.name == forced_name]
    return tuple(forced or found)


def _last_turn(turns: list[Any]) -> dict[str, Any]:
    """Returns the last turn that is no instruction: clients append some behind the user's turn."""
    spoken = [turn for turn in turns if turn.get("role") not in ("system", "developer")]
    last: dict[str, Any] = spoken[-1] if spoken else {}
    return last


def _tool_result(turns: list[Any]) -> str | None:
    last = _last_turn(turns)
    if last.get("role") == "tool":
        return _joined(last.get("content"))
    if last.get("type") in _RESULT_TYPES:
        return _joined(last.get("output"))
    content = last.get("content")
    blocks = content if isinstance(content, list) else []
    results = [b for b in blocks if isinstance(b, dict) and b.get("type") == "tool_result"]
    return _joined(results[-1].get("content")) if results else None


def _user_text(turns: list[Any]) -> str:
    for turn in reversed(turns):
        content = turn.get("content")
        if turn.get("role") != "user":
            continue
        texts = [content] if isinstance(content, str) else _texts(content)
        spoken = [
            text for text in texts if text.strip() and not text.lstrip().startswith("<system-reminder>")
        ]
        if spoken:
            return spoken[-1]
    return ""


def _joined(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(_texts(content))


def _texts(content: Any) -> list[str]:
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
