"""Drives the vendors' Python SDKs: one function per API, a scenario in, what the client saw out."""

import json
from collections.abc import Callable
from typing import Any

import anthropic
import openai
from pydantic import BaseModel
from tests.sdk_matrix import facts

TIMEOUT_SECONDS = 20.0
MAX_TURNS = 4

Result = dict[str, Any]


class Report(BaseModel):
    """The structured answer."""

    city: str
    degrees: float


def run(client: str, scenario: str, base_url: str, key: str, model: str) -> Result:
    """Returns what a client saw; a failure is under `error`."""
    make, drive = _CLIENTS[client]
    with make(base_url, key) as sdk:
        try:
            found: Result = drive(sdk, scenario, model)
        except Exception as error:  # Whatever an SDK raises is what its user sees.
            return {"error": _failure(error)}
    return found


def _failure(error: Exception) -> Result:
    status = getattr(error, "status_code", None)
    headers = dict(error.response.headers) if isinstance(status, int) else {}  # type: ignore[attr-defined]
    return {
        "kind": type(error).__name__,
        "status": status,
        "message": str(error),
        "retry_after": headers.get("retry-after"),
    }


# Anthropic Messages


def _make_anthropic(base_url: str, key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=base_url, api_key=key, max_retries=0, timeout=TIMEOUT_SECONDS)


def _drive_anthropic(sdk: anthropic.Anthropic, scenario: str, model: str) -> Result:
    request: dict[str, Any] = {"model": model, "max_tokens": facts.MAX_TOKENS, "system": facts.SYSTEM}
    messages: list[Any] = [{"role": "user", "content": facts.QUESTION}]
    if scenario == "history":
        source = {"type": "base64", "media_type": "image/png", "data": facts.IMAGE}
        messages = [
            {"role": "user", "content": facts.EARLIER_QUESTION},
            {"role": "assistant", "content": facts.EARLIER_ANSWER},
            {
                "role": "user",
                "content": [{"type": "text", "text": facts.QUESTION}, {"type": "image", "source": source}],
            },
        ]
    if has_tools(scenario):
        request["tools"] = [
            {"name": tool["name"], "description": tool["description"], "input_schema": tool["schema"]}
            for tool in facts.TOOLS
        ]
    if scenario == "thinking":
        request["thinking"] = {"type": "enabled", "budget_tokens": 2048}
    elif scenario == "thinking_streamed":
        request["thinking"] = {"type": "adaptive", "display": "summarized"}
    if scenario == "schema":
        parsed = sdk.messages.parse(**request, messages=messages, output_format=Report)
        return {"parsed": parsed.parsed_output.model_dump() if parsed.parsed_output else None}
    return _loop_anthropic(sdk, request, messages, is_streamed(scenario))


def _loop_anthropic(
    sdk: anthropic.Anthropic, request: dict[str, Any], messages: list[Any], streams: bool
) -> Result:
    result = empty_result()
    for _ in range(MAX_TURNS):
        if streams:
            with sdk.messages.stream(**request, messages=messages) as stream:
                result["deltas"].append("".join(stream.text_stream))
                message: Any = stream.get_final_message()
        else:
            message = sdk.messages.create(**request, messages=messages)
        result["text"].append("".join(block.text for block in message.content if block.type == "text"))
        result["thinking"] += [block.thinking for block in message.content if block.type == "thinking"]
        calls = [block for block in message.content if block.type == "tool_use"]
        result["calls"] += [{"name": call.name, "arguments": call.input} for call in calls]
        usage = message.usage
        cached = usage.cache_read_input_tokens or 0
        result["usage"] = _usage(usage.input_tokens + cached, cached, usage.output_tokens)
        result["finish"] = "length" if message.stop_reason == "max_tokens" else message.stop_reason
        if message.stop_reason != "tool_use":
            break
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": facts.RESULTS[call.name]}
            for call in calls
        ]
        messages = [
            *messages,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": results},
        ]
    return result


# OpenAI Chat Completions


def _make_openai(base_url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0, timeout=TIMEOUT_SECONDS)


def _drive_chat(sdk: openai.OpenAI, scenario: str, model: str) -> Result:
    request: dict[str, Any] = {"model": model, "max_completion_tokens": facts.MAX_TOKENS}
    messages: list[Any] = [{"role": "system", "content": facts.SYSTEM}]
    last: dict[str, Any] = {"role": "user", "content": facts.QUESTION}
    if scenario == "history":
        url = {"url": f"data:image/png;base64,{facts.IMAGE}"}
        last["content"] = [
            {"type": "text", "text": facts.QUESTION},
            {"type": "image_url", "image_url": url},
        ]
        messages += [
            {"role": "user", "content": facts.EARLIER_QUESTION},
            {"role": "assistant", "content": facts.EARLIER_ANSWER},
        ]
    messages.append(last)
    if has_tools(scenario):
        request["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool["name"],
                    "description": tool["description"],
                    "parameters": tool["schema"],
                },
            }
            for tool in facts.TOOLS
        ]
    if scenario.startswith("thinking"):
        request["reasoning_effort"] = "medium"
    if scenario == "schema":
        parsed = sdk.chat.completions.parse(**request, messages=messages, response_format=Report)
        found = parsed.choices[0].message.parsed
        return {"parsed": found.model_dump() if found else None}
    return _loop_chat(sdk, request, messages, is_streamed(scenario))


def _loop_chat(sdk: openai.OpenAI, request: dict[str, Any], messages: list[Any], streams: bool) -> Result:
    result = empty_result()
    for _ in range(MAX_TURNS):
        if streams:
            options = {"include_usage": True}
            with sdk.chat.completions.stream(**request, messages=messages, stream_options=options) as stream:  # type: ignore[arg-type]
                result["deltas"].append(
                    "".join(event.delta for event in stream if event.type == "content.delta")
                )
                answer: Any = stream.get_final_completion()
        else:
            answer = sdk.chat.completions.create(**request, messages=messages)
        choice = answer.choices[0]
        result["text"].append(choice.message.content or "")
        if shown := getattr(choice.message, "reasoning_content", None):
            result["thinking"].append(shown)
        calls = choice.message.tool_calls or []
        result["calls"] += [
            {"name": call.function.name, "arguments": json.loads(call.function.arguments)} for call in calls
        ]
        details = answer.usage.prompt_tokens_details
        result["usage"] = _usage(
            answer.usage.prompt_tokens,
            (details.cached_tokens if details else 0) or 0,
            answer.usage.completion_tokens,
        )
        result["finish"] = choice.finish_reason
        if choice.finish_reason != "tool_calls":
            break
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": facts.RESULTS[call.function.name]}
            for call in calls
        ]
        messages = [*messages, choice.message, *results]
    return result


# OpenAI Responses


def _drive_responses(sdk: openai.OpenAI, scenario: str, model: str) -> Result:
    request: dict[str, Any] = {
        "model": model,
        "max_output_tokens": facts.MAX_TOKENS,
        "instructions": facts.SYSTEM,
        "store": False,
    }
    items: Any = [{"role": "user", "content": facts.QUESTION}]
    if scenario == "text":
        items = facts.QUESTION
    if scenario == "history":
        image = {"type": "input_image", "image_url": f"data:image/png;base64,{facts.IMAGE}", "detail": "auto"}
        items = [
            {"role": "user", "content": facts.EARLIER_QUESTION},
            {"role": "assistant", "content": facts.EARLIER_ANSWER},
            {"role": "user", "content": [{"type": "input_text", "text": facts.QUESTION}, image]},
        ]
    if has_tools(scenario):
        request["tools"] = [
            {
                "type": "function",
                "name": tool["name"],
                "description": tool["description"],
                "parameters": tool["schema"],
                "strict": True,
            }
            for tool in facts.TOOLS
        ]
    if scenario.startswith("thinking"):
        request |= {
            "reasoning": {"effort": "medium", "summary": "auto"},
            "include": ["reasoning.encrypted_content"],
        }
    if scenario == "schema":
        parsed = sdk.responses.parse(**request, input=items, text_format=Report)
        return {"parsed": parsed.output_parsed.model_dump() if parsed.output_parsed else None}
    return _loop_responses(sdk, request, items, is_streamed(scenario))


def _loop_responses(sdk: openai.OpenAI, request: dict[str, Any], items: Any, streams: bool) -> Result:
    result = empty_result()
    for _ in range(MAX_TURNS):
        if streams:
            with sdk.responses.stream(**request, input=items) as stream:
                deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
                result["deltas"].append("".join(deltas))
                answer: Any = stream.get_final_response()
        else:
            answer = sdk.responses.create(**request, input=items)
        result["text"].append(answer.output_text)
        result["thinking"] += [
            "".join(part.text for part in item.summary) for item in answer.output if item.type == "reasoning"
        ]
        calls = [item for item in answer.output if item.type == "function_call"]
        result["calls"] += [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls]
        usage = answer.usage
        result["usage"] = _usage(
            usage.input_tokens, usage.input_tokens_details.cached_tokens, usage.output_tokens
        )
        result["finish"] = _responses_finish(answer)
        if not calls:
            break
        outputs = [
            {"type": "function_call_output", "call_id": call.call_id, "output": facts.RESULTS[call.name]}
            for call in calls
        ]
        items = [*items, *answer.output, *outputs]
    return result


def _responses_finish(answer: Any) -> str:
    if answer.incomplete_details and answer.incomplete_details.reason == "max_output_tokens":
        return "length"
    return str(answer.status)


def empty_result() -> Result:
    """Returns a result before the first turn; texts are one a turn."""
    return {"text": [], "deltas": [], "thinking": [], "calls": [], "usage": {}, "finish": ""}


def has_tools(scenario: str) -> bool:
    """Whether tools are offered."""
    return scenario.startswith(("tools", "parallel", "thinking"))


def is_streamed(scenario: str) -> bool:
    """Whether the client asks for streams."""
    return scenario.endswith("streamed") or scenario in ("broken", "cut")


def _usage(total_input: int, cached: int, output: int) -> dict[str, int]:
    return {"input": total_input, "cached": cached, "output": output}


_CLIENTS: dict[str, tuple[Callable[[str, str], Any], Callable[[Any, str, str], Result]]] = {
    "py-anthropic": (_make_anthropic, _drive_anthropic),
    "py-chat": (_make_openai, _drive_chat),
    "py-responses": (_make_openai, _drive_responses),
}
