"""Makes requests of each dialect in which every block holds a mark of its own."""

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from lurus_dialects.dialect import Dialect

_A, _C, _R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES


@dataclass(frozen=True, slots=True)
class Marked:
    """A block, where it stands, and what must be found of it."""

    marker: str
    path: str
    is_thinking: bool = False


@dataclass(slots=True)
class History:
    """A request and its blocks."""

    body: bytes
    blocks: list[Marked] = field(default_factory=list)


class _Maker:
    """Draws blocks and notes their marks."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.blocks: list[Marked] = []
        self._numbers = itertools.count()

    def chance(self) -> bool:
        return bool(self.draw(st.booleans()))

    def count(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def one_of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def mark(self, path: str, is_thinking: bool = False) -> str:
        """Returns a new mark; in base64 it stands as it is."""
        marker = f"mark{next(self._numbers):04d}"
        self.blocks.append(Marked(marker, path, is_thinking))
        return marker

    def letters(self) -> str:
        return str(self.draw(st.sampled_from(["", " é", "\n😀", '"\\', "\u2028"])))


@st.composite
def histories(draw: Any, dialect: Dialect) -> History:
    """Draws a request with marked blocks."""
    maker = _Maker(draw)
    body = {_A: _anthropic, _C: _chat, _R: _responses}[dialect](maker)
    return History(json.dumps({"model": "m", **body}).encode(), maker.blocks)


# Anthropic Messages


def _anthropic(maker: _Maker) -> dict[str, Any]:
    system = [
        {"type": "text", "text": maker.mark(f"system[{i}]") + maker.letters()}
        for i in range(maker.count(0, 2))
    ]
    messages: list[dict[str, Any]] = []
    for _ in range(maker.count(1, 3)):
        at = f"messages[{len(messages)}].content"
        blocks = [_a_block(maker, f"{at}[{i}]") for i in range(maker.count(1, 3))]
        messages.append({"role": "user", "content": blocks})
        if maker.chance():
            _a_answer(maker, messages)
    return {"max_tokens": 10, "messages": messages, **({"system": system} if system else {})}


def _a_answer(maker: _Maker, messages: list[dict[str, Any]]) -> None:
    at = f"messages[{len(messages)}].content"
    content: list[dict[str, Any]] = []
    if maker.chance():
        thought = maker.mark(f"{at}[0]", is_thinking=True)
        content.append({"type": "thinking", "thinking": thought, "signature": "sig"})
    content.append({"type": "text", "text": maker.mark(f"{at}[{len(content)}]")})
    calls = [f"toolu_{len(messages)}_{i}" for i in range(maker.count(0, 3))]
    for call in calls:
        mark = maker.mark(f"{at}[{len(content)}]")
        content.append({"type": "tool_use", "id": call, "name": "f", "input": {"a": mark, "n": 2**70}})
    messages.append({"role": "assistant", "content": content})
    if not calls:
        return
    at = f"messages[{len(messages)}].content"
    results = []
    for index, call in enumerate(calls):
        path = f"{at}[{index}]"
        if maker.chance():
            inner: Any = maker.mark(path) + maker.letters()
        else:
            inner = [_a_block(maker, f"{path}.content[{i}]") for i in range(maker.count(1, 2))]
        results.append({"type": "tool_result", "tool_use_id": call, "content": inner})
    messages.append({"role": "user", "content": results})


def _a_block(maker: _Maker, path: str) -> dict[str, Any]:
    mark = maker.mark(path)
    source = maker.one_of("text", "text", "image", "image url", "pdf", "plain", "search_result")
    if source == "image":
        data = {"type": "base64", "media_type": "image/png", "data": mark}
        return {"type": "image", "source": data}
    if source == "image url":
        return {"type": "image", "source": {"type": "url", "url": f"https://x.example/{mark}"}}
    if source == "pdf":
        data = {"type": "base64", "media_type": "application/pdf", "data": mark}
        return {"type": "document", "source": data, "title": "T.pdf"}
    if source == "plain":
        data = {"type": "text", "media_type": "text/plain", "data": mark}
        return {"type": "document", "source": data, "title": "T"}
    if source == "search_result":
        inner = [{"type": "text", "text": mark}]
        return {"type": "search_result", "source": "https://x.example", "title": "T", "content": inner}
    return {"type": "text", "text": mark + maker.letters()}


# OpenAI Chat Completions


def _chat(maker: _Maker) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for _ in range(maker.count(1, 3)):
        if maker.chance():
            role = maker.one_of("system", "developer")
            messages.append({"role": role, "content": maker.mark(f"messages[{len(messages)}]")})
        at = f"messages[{len(messages)}].content"
        parts: Any = [_c_part(maker, f"{at}[{i}]") for i in range(maker.count(1, 3))]
        messages.append({"role": "user", "content": parts})
        if maker.chance():
            _c_answer(maker, messages)
    return {"messages": messages}


def _c_answer(maker: _Maker, messages: list[dict[str, Any]]) -> None:
    at = f"messages[{len(messages)}]"
    mark = maker.mark(at)
    message: dict[str, Any] = {"role": "assistant", "content": mark}
    if maker.chance():
        message = {"role": "assistant", "content": None, "refusal": mark}
    calls = [f"call_{len(messages)}_{i}" for i in range(maker.count(0, 3))]
    if calls:
        message["tool_calls"] = [
            _c_call(maker, call, f"{at}.tool_calls[{i}]") for i, call in enumerate(calls)
        ]
    messages.append(message)
    for call in calls:
        mark = maker.mark(f"messages[{len(messages)}]") + maker.letters()
        content = maker.one_of(mark, [{"type": "text", "text": mark}])
        messages.append({"role": "tool", "tool_call_id": call, "content": content})


def _c_call(maker: _Maker, call: str, path: str) -> dict[str, Any]:
    mark = maker.mark(path)
    if maker.chance():
        return {"id": call, "type": "custom", "custom": {"name": "patch", "input": mark + maker.letters()}}
    arguments = maker.one_of(json.dumps({"a": mark}), f'{{"a":"{mark}')
    return {"id": call, "type": "function", "function": {"name": "f", "arguments": arguments}}


def _c_part(maker: _Maker, path: str) -> dict[str, Any]:
    mark = maker.mark(path)
    kind = maker.one_of("text", "text", "image", "image url", "file", "file id", "sound")
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{mark}", "detail": "low"}}
    if kind == "image url":
        return {"type": "image_url", "image_url": {"url": f"https://x.example/{mark}"}}
    if kind == "file":
        return {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{mark}", "filename": "T"}}
    if kind == "file id":
        return {"type": "file", "file": {"file_id": mark}}
    if kind == "sound":
        return {"type": "input_audio", "input_audio": {"data": mark, "format": "wav"}}
    return {"type": "text", "text": mark + maker.letters()}


# OpenAI Responses


def _responses(maker: _Maker) -> dict[str, Any]:
    items: list[dict[str, Any]] = []
    for _ in range(maker.count(1, 3)):
        at = f"input[{len(items)}].content"
        role = maker.one_of("user", "user", "developer", "system") if items else "user"
        count = maker.count(1, 3)
        if role == "user":
            parts = [_r_part(maker, f"{at}[{i}]") for i in range(count)]
        else:
            parts = [{"type": "input_text", "text": maker.mark(f"{at}[{i}]")} for i in range(count)]
        items.append({"type": "message", "role": role, "content": parts})
        if maker.chance():
            _r_answer(maker, items)
    body: dict[str, Any] = {"input": items}
    if maker.chance():
        body["instructions"] = maker.mark("instructions")
    return body


def _r_answer(maker: _Maker, items: list[dict[str, Any]]) -> None:
    if maker.chance():
        thought = maker.mark(f"input[{len(items)}]", is_thinking=True)
        summary = [{"type": "summary_text", "text": thought}]
        items.append({"type": "reasoning", "id": "rs", "summary": summary, "encrypted_content": "gAAAA"})
    part = {"type": "output_text", "text": maker.mark(f"input[{len(items)}]"), "annotations": []}
    items.append({"type": "message", "role": "assistant", "content": [part]})
    calls = [f"call_{len(items)}_{i}" for i in range(maker.count(0, 3))]
    kinds = [maker.one_of("function", "custom") for _ in calls]
    for call, kind in zip(calls, kinds, strict=True):
        mark = maker.mark(f"input[{len(items)}]")
        item = {"type": f"{kind}_call", "id": f"id_{call}", "call_id": call, "name": "f"}
        if kind == "function":
            items.append({**item, "arguments": json.dumps({"a": mark})})
        else:
            items.append({**item, "type": "custom_tool_call", "input": mark + maker.letters()})
    for call, kind in zip(calls, kinds, strict=True):
        items.append(_r_result(maker, call, kind, f"input[{len(items)}]"))


def _r_result(maker: _Maker, call: str, kind: str, path: str) -> dict[str, Any]:
    item = {"type": "function_call_output" if kind == "function" else "custom_tool_call_output"}
    if maker.chance():
        return {**item, "call_id": call, "output": maker.mark(path) + maker.letters()}
    output = [_r_part(maker, f"{path}.output[{i}]") for i in range(maker.count(1, 2))]
    return {**item, "call_id": call, "output": output}


def _r_part(maker: _Maker, path: str) -> dict[str, Any]:
    mark = maker.mark(path)
    kind = maker.one_of("text", "text", "image", "image url", "file", "file url")
    if kind == "image":
        return {"type": "input_image", "image_url": f"data:image/png;base64,{mark}", "detail": "auto"}
    if kind == "image url":
        return {"type": "input_image", "image_url": f"https://x.example/{mark}"}
    if kind == "file":
        return {"type": "input_file", "file_data": f"data:application/pdf;base64,{mark}", "filename": "T.pdf"}
    if kind == "file url":
        return {"type": "input_file", "file_url": f"https://x.example/{mark}.pdf"}
    return {"type": "input_text", "text": mark + maker.letters()}
