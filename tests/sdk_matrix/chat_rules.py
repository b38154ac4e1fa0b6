"""Reads requests as strictly as OpenAI Chat Completions does."""

import json
import re
from typing import Any

from openai.types.chat.completion_create_params import CompletionCreateParams
from tests.sdk_matrix.typed import problems_of
from tests.sdk_matrix.view import CALL_ID, TOOL_NAME, View, without_echoes


def read(body: dict[str, Any], *, is_relayed: bool) -> View:
    """Returns what a request says, with all that is wrong with it.

    Args:
        body: parsed JSON.
        is_relayed: whether the client wrote it so; it may hold what SDKs give back of an answer.
    """
    if is_relayed:
        body = {**body, "messages": without_echoes(body["messages"])}
    view = View(is_streaming=body.get("stream") is True, problems=problems_of(body, CompletionCreateParams))
    if view.problems:
        return view
    view.max_tokens = body.get("max_completion_tokens") or body.get("max_tokens")
    options = body.get("stream_options") or {}
    view.need(view.is_streaming or not options, "stream_options without stream")
    view.has_usage = not view.is_streaming or options.get("include_usage") is True
    view.wants_thinking = body.get("reasoning_effort") not in (None, "none")
    _read_tools(view, body)
    _read_messages(view, body["messages"])
    return view


def _read_tools(view: View, body: dict[str, Any]) -> None:
    for tool in body.get("tools", ()):
        view.need(tool["type"] == "function", f"tools: {tool['type']} is not known here")
        function = tool.get("function") or {}
        view.need(bool(re.fullmatch(TOOL_NAME, function.get("name", ""))), f"tools: name of {function}")
        view.tools.append(
            {
                "name": function.get("name"),
                "schema": function.get("parameters"),
                "description": function.get("description"),
            }
        )
    view.need("tools" not in body or bool(body["tools"]), "tools: empty")
    view.need(bool(view.tools) or "tool_choice" not in body, "tool_choice without tools")
    view.need(bool(view.tools) or "parallel_tool_calls" not in body, "parallel_tool_calls without tools")
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        name = form["json_schema"].get("name", "")
        view.need(bool(re.fullmatch(TOOL_NAME, name)), f"response_format: name {name!r}")
        view.schema = form["json_schema"].get("schema")


def _read_messages(view: View, messages: list[dict[str, Any]]) -> None:
    view.need(bool(messages), "messages: empty")
    waiting: list[str] = []
    for at, message in enumerate(messages):
        path = f"messages[{at}]"
        if message["role"] == "tool":
            call_id = message["tool_call_id"]
            view.need(call_id in waiting, f"{path}: the tool message follows no call of {call_id!r}")
            waiting = [one for one in waiting if one != call_id]
            view.results.append((call_id, "\n".join(part["text"] for part in _parts(message["content"]))))
            continue
        view.need(not waiting, f"{path}: no tool message for {waiting}")
        _read_parts(view, message, path)
        for call in message.get("tool_calls") or ():
            waiting.append(call["id"])
            _read_call(view, call, path)
    view.need(not waiting, f"no tool message for {waiting}")


def _read_parts(view: View, message: dict[str, Any], path: str) -> None:
    role = message["role"]
    view.need(role != "function", f"{path}: role {role}")
    parts = _parts(message.get("content"))
    has_more = role == "assistant" and (message.get("tool_calls") or message.get("refusal"))
    view.need(bool(parts or has_more), f"{path}: no content")
    view.need("tool_calls" not in message or bool(message["tool_calls"]), f"{path}: tool_calls is empty")
    for part in parts:
        if part["type"] == "image_url":
            found = re.fullmatch(r"data:([^;]+);base64,(.*)", part["image_url"]["url"])
            view.images.append(f"{found[1]};{found[2]}" if found else part["image_url"]["url"])
        elif part["type"] == "text":
            view.add_text(role, part["text"])
        else:
            view.problems.append(f"{path}: the scripted provider does not know {part['type']}")


def _read_call(view: View, call: dict[str, Any], path: str) -> None:
    view.need(bool(re.fullmatch(CALL_ID, call["id"])), f"{path}: id {call['id']!r}")
    function = call.get("function") or {}
    try:
        is_object = isinstance(json.loads(function["arguments"]), dict)
    except (KeyError, ValueError):
        is_object = False
    view.need(is_object, f"{path}: arguments of {function}")
    view.calls.append((call["id"], function.get("name", ""), function.get("arguments", "")))


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(content or ())
