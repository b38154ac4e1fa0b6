"""Reads requests as strictly as Anthropic Messages does."""

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from anthropic.types.beta.message_create_params import MessageCreateParams as BetaParams
from anthropic.types.message_create_params import MessageCreateParams
from tests.sdk_matrix.typed import problems_of
from tests.sdk_matrix.view import CALL_ID, View

# Fields that only the older version of the API knows.
OLD_VERSION = "2023-06-01"
OLD_FIELDS = ("temperature", "top_p", "top_k")


def read(body: dict[str, Any], headers: Mapping[str, str], signatures: frozenset[str]) -> View:
    """Returns what a request says, with all that is wrong with it.

    Args:
        body: parsed JSON.
        headers: of the request.
        signatures: the only ones that thinking may have.
    """
    view = View(is_streaming=body.get("stream") is True, max_tokens=body.get("max_tokens"))
    version = headers.get("anthropic-version", "")
    view.need(bool(re.fullmatch(r"\d{4}-\d\d-\d\d", version)), f"anthropic-version is {version!r}")
    params = BetaParams if "anthropic-beta" in headers else MessageCreateParams
    view.problems += problems_of(body, params, more=OLD_FIELDS if version == OLD_VERSION else ())
    if view.problems:
        return view
    _read_settings(view, body)
    for block in _blocks(body.get("system", [])):
        view.add_text("system", block["text"])
    _read_messages(view, body["messages"], signatures)
    return view


def _read_settings(view: View, body: dict[str, Any]) -> None:
    view.tools = [
        {"name": tool["name"], "schema": tool.get("input_schema"), "description": tool.get("description")}
        for tool in body.get("tools", ())
    ]
    view.schema = ((body.get("output_config") or {}).get("format") or {}).get("schema")
    thinking = body.get("thinking") or {}
    view.wants_thinking = thinking.get("type") in ("enabled", "adaptive")
    budget = thinking.get("budget_tokens", 1024)
    view.need(1024 <= budget < body["max_tokens"] or not view.wants_thinking, "budget_tokens out of range")
    if view.wants_thinking:
        view.need(body.get("temperature", 1) == 1, "temperature with thinking")
        view.need(
            (body.get("tool_choice") or {}).get("type") not in ("any", "tool"), "forced tool with thinking"
        )
    view.need(0 <= body.get("temperature", 1) <= 1, "temperature out of range")


def _read_messages(view: View, messages: list[dict[str, Any]], signatures: frozenset[str]) -> None:
    view.need(bool(messages) and messages[0]["role"] == "user", "the first message is not the user's")
    roles = [message["role"] for message in messages if message["role"] != "system"]
    view.need(
        all(one != two for one, two in pairwise(roles)),
        f"roles do not alternate: {roles}",
    )
    waiting: list[str] = []
    for at, message in enumerate(messages):
        blocks = _blocks(message["content"])
        view.need(bool(blocks), f"messages[{at}]: no content")
        if message["role"] == "user":
            _read_results(view, blocks, waiting, f"messages[{at}]")
            waiting = []
        else:
            view.need(not waiting, f"messages[{at}]: no results of {waiting}")
        for block in blocks:
            _read_block(view, message["role"], block, signatures, f"messages[{at}]")
        waiting += [block["id"] for block in blocks if block["type"] == "tool_use"]
    view.need(not waiting, f"no results of {waiting}")


def _read_results(view: View, blocks: list[dict[str, Any]], waiting: list[str], path: str) -> None:
    """Results answer all calls of the turn before, and stand before everything else."""
    kinds = [block["type"] for block in blocks]
    answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
    view.need(sorted(answered) == sorted(waiting), f"{path}: results {answered} of calls {waiting}")
    view.need("tool_result" not in kinds[len(answered) :], f"{path}: results behind other content")


def _read_block(view: View, role: str, block: dict[str, Any], signatures: frozenset[str], path: str) -> None:
    match block["type"]:
        case "text":
            view.need(bool(block["text"].strip()), f"{path}: text must contain non-whitespace")
            view.add_text(role, block["text"])
        case "image":
            source = block["source"]
            view.images.append(f"{source.get('media_type')};{source.get('data')}")
        case "tool_use":
            view.need(role == "assistant", f"{path}: a call in a turn of {role}")
            view.need(bool(re.fullmatch(CALL_ID, block["id"])), f"{path}: id {block['id']!r}")
            arguments = json.dumps(block["input"], ensure_ascii=False, separators=(",", ":"))
            view.calls.append((block["id"], block["name"], arguments))
        case "tool_result":
            texts = [part["text"] for part in _blocks(block.get("content", ""))]
            view.results.append((block["tool_use_id"], "\n".join(texts)))
        case "thinking":
            is_genuine = block["signature"] in signatures
            view.need(is_genuine, f"{path}: invalid signature {block['signature'][:60]!r}")
            view.thinking.append(block)
        case other:
            view.problems.append(f"{path}: the scripted provider does not know {other}")


def _blocks(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(content)
