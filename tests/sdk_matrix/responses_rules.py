"""Reads requests as strictly as OpenAI Responses does, of a provider that keeps nothing."""

import json
import re
from typing import Any

from openai.types.responses.response_create_params import ResponseCreateParams
from tests.sdk_matrix.typed import problems_of
from tests.sdk_matrix.view import CALL_ID, TOOL_NAME, View, without_echoes


def read(body: dict[str, Any], encrypted: frozenset[str], *, is_relayed: bool) -> View:
    """Returns what a request says, with all that is wrong with it.

    Args:
        body: parsed JSON.
        encrypted: the only contents that items of reasoning may have.
        is_relayed: whether the client wrote it so; it may hold what SDKs give back of an answer.
    """
    items = body.get("input")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if is_relayed:
        items = without_echoes(items)
    view = View(is_streaming=body.get("stream") is True)
    view.problems = problems_of({**body, "input": items}, ResponseCreateParams)
    if view.problems:
        return view
    view.max_tokens = body.get("max_output_tokens")
    view.need("previous_response_id" not in body, "previous_response_id: nothing is kept here")
    reasoning = body.get("reasoning") or {}
    asks = reasoning.get("effort") not in (None, "none") or bool(reasoning.get("summary"))
    view.wants_thinking = asks and "reasoning.encrypted_content" in (body.get("include") or ())
    _read_tools(view, body)
    if body.get("instructions"):
        view.add_text("system", body["instructions"])
    _read_items(view, items, encrypted)
    return view


def _read_tools(view: View, body: dict[str, Any]) -> None:
    for tool in body.get("tools", ()):
        view.need(tool["type"] == "function", f"tools: {tool['type']} is not known here")
        view.need(bool(re.fullmatch(TOOL_NAME, tool.get("name", ""))), f"tools: name of {tool}")
        if tool.get("strict", True) is not False:
            is_closed = (tool.get("parameters") or {}).get("additionalProperties") is False
            view.need(is_closed, f"tools: a strict {tool['name']} needs additionalProperties: false")
        view.tools.append(
            {"name": tool["name"], "schema": tool.get("parameters"), "description": tool.get("description")}
        )
    view.need(
        bool(view.tools) or body.get("tool_choice") in (None, "auto", "none"), "tool_choice without tools"
    )
    form = (body.get("text") or {}).get("format") or {}
    if form.get("type") == "json_schema":
        view.need(bool(re.fullmatch(TOOL_NAME, form["name"])), f"text.format.name: {form['name']!r}")
        view.schema = form["schema"]


def _read_items(view: View, items: list[dict[str, Any]], encrypted: frozenset[str]) -> None:
    view.need(bool(items), "input: empty")
    waiting: list[str] = []
    previous = ""
    for at, item in enumerate(items):
        path, kind = f"input[{at}]", item.get("type", "message")
        if previous == "reasoning":
            is_followed = kind in ("reasoning", "function_call", "message") and item.get("role") != "user"
            view.need(is_followed, f"input[{at - 1}]: reasoning without the item that follows it")
        previous = kind
        match kind:
            case "message":
                _read_message(view, item, path)
            case "function_call":
                waiting.append(item["call_id"])
                _read_call(view, item, path)
            case "function_call_output":
                view.need(item["call_id"] in waiting, f"{path}: no call of {item['call_id']!r}")
                waiting = [one for one in waiting if one != item["call_id"]]
                texts = [part["text"] for part in _parts(item["output"])]
                view.results.append((item["call_id"], "\n".join(texts)))
            case "reasoning":
                found = item.get("encrypted_content")
                view.need(found in encrypted, f"{path}: invalid encrypted_content {str(found)[:60]!r}")
                view.thinking.append(item)
            case other:
                view.problems.append(f"{path}: the scripted provider does not know {other}")
    view.need(not waiting, f"no tool output found for {waiting}")


def _read_message(view: View, item: dict[str, Any], path: str) -> None:
    parts = _parts(item["content"])
    view.need(bool(parts), f"{path}: no content")
    for part in parts:
        if part["type"] == "input_image":
            found = re.fullmatch(r"data:([^;]+);base64,(.*)", part.get("image_url") or "")
            view.images.append(f"{found[1]};{found[2]}" if found else str(part))
            continue
        allowed = ("output_text", "refusal") if item["role"] == "assistant" else ("input_text",)
        is_plain = isinstance(item["content"], str)
        view.need(is_plain or part["type"] in allowed, f"{path}: {part['type']} of {item['role']}")
        view.add_text(item["role"], part.get("text") or part.get("refusal") or "")


def _read_call(view: View, item: dict[str, Any], path: str) -> None:
    view.need(bool(re.fullmatch(CALL_ID, item["call_id"])), f"{path}: call_id {item['call_id']!r}")
    view.need(
        item.get("id", "fc_").startswith("fc_"), f"{path}: id {item.get('id')!r} does not begin with fc_"
    )
    try:
        is_object = isinstance(json.loads(item["arguments"]), dict)
    except ValueError:
        is_object = False
    view.need(is_object, f"{path}: arguments {item['arguments']!r}")
    view.calls.append((item["call_id"], item["name"], item["arguments"]))


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}] if content else []
    return list(content)
