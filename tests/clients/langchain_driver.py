"""Drives LangChain's models of both vendors; speaks with the tests as the scripts of Node do.

Runs in the environment of `requirements.lock`: what LangChain needs is no business of the gateway's.
"""

import concurrent.futures
import json
import sys
from collections.abc import Callable
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI

JOBS_AT_ONCE = 3
MAX_TURNS = 4
TIMEOUT_SECONDS = 20.0

TASK = json.load(sys.stdin)
FACTS = TASK["facts"]
KEY = TASK["key"]

Result = dict[str, Any]


def anthropic(scenario: str, model: str) -> Any:
    """Returns a model that speaks Messages."""
    more: dict[str, Any] = {}
    if scenario.startswith("thinking"):
        more["thinking"] = {"type": "enabled", "budget_tokens": 2048}
    return ChatAnthropic(
        model=model,
        base_url=TASK["base_url"],
        api_key=KEY,
        max_tokens=FACTS["max_tokens"],
        max_retries=0,
        timeout=TIMEOUT_SECONDS,
        **more,
    )


def chat(scenario: str, model: str) -> Any:
    """Returns a model that speaks Chat Completions."""
    more: dict[str, Any] = {"reasoning_effort": "medium"} if scenario.startswith("thinking") else {}
    return _openai(model, use_responses_api=False, stream_usage=True, **more)


def responses(scenario: str, model: str) -> Any:
    """Returns a model that speaks Responses."""
    more: dict[str, Any] = {"store": False}
    if scenario.startswith("thinking"):
        more |= {
            "reasoning": {"effort": "medium", "summary": "auto"},
            "include": ["reasoning.encrypted_content"],
        }
    return _openai(model, use_responses_api=True, output_version="responses/v1", **more)


def _openai(model: str, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=model,
        base_url=f"{TASK['base_url']}/v1",
        api_key=KEY,
        max_tokens=FACTS["max_tokens"],
        max_retries=0,
        timeout=TIMEOUT_SECONDS,
        **more,
    )


def drive(make: Callable[[str, str], Any], scenario: str, model: str) -> Result:
    """Returns what a client saw of a scenario."""
    llm = make(scenario, model)
    messages = _first_messages(scenario)
    if scenario == "schema":
        schema = {"title": "report", "description": "A report.", **FACTS["schema"]}
        return {"parsed": llm.with_structured_output(schema, method="json_schema").invoke(messages)}
    if scenario.startswith(("tools", "parallel", "thinking")):
        llm = llm.bind_tools([_tool(tool) for tool in FACTS["tools"]])
    streams = scenario.endswith("streamed") or scenario in ("broken", "cut")
    result: Result = {"text": [], "deltas": [], "thinking": [], "calls": [], "usage": {}, "finish": ""}
    for _ in range(MAX_TURNS):
        answer = _streamed(llm, messages, result) if streams else llm.invoke(messages)
        _note(answer, result)
        if not answer.tool_calls:
            break
        results = [
            ToolMessage(FACTS["results"][call["name"]], tool_call_id=call["id"]) for call in answer.tool_calls
        ]
        messages = [*messages, answer, *results]
    if make is chat:
        # Its answers have no place for thinking.
        result["thinking"] = None
    return result


def _first_messages(scenario: str) -> list[Any]:
    content: Any = FACTS["question"]
    earlier: list[Any] = []
    if scenario == "history":
        image = {"type": "image", "base64": FACTS["image"], "mime_type": "image/png"}
        content = [{"type": "text", "text": content}, image]
        earlier = [HumanMessage(FACTS["earlier"][0]), AIMessage(FACTS["earlier"][1])]
    return [SystemMessage(FACTS["system"]), *earlier, HumanMessage(content)]


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {"name": tool["name"], "description": tool["description"], "parameters": tool["schema"]}
    return {"type": "function", "function": function}


def _streamed(llm: Any, messages: list[Any], result: Result) -> AIMessageChunk:
    whole: AIMessageChunk | None = None
    deltas = ""
    for chunk in llm.stream(messages):
        deltas += str(chunk.text)
        whole = chunk if whole is None else whole + chunk
    assert whole is not None, "an empty stream"
    result["deltas"].append(deltas)
    return whole


def _note(answer: Any, result: Result) -> None:
    result["text"].append(str(answer.text))
    result["thinking"] += [block["reasoning"] for block in answer.content_blocks if block.get("reasoning")]
    result["calls"] += [{"name": call["name"], "arguments": call["args"]} for call in answer.tool_calls]
    usage = answer.usage_metadata or {}
    result["usage"] = {
        "input": usage.get("input_tokens"),
        "cached": (usage.get("input_token_details") or {}).get("cache_read") or 0,
        "output": usage.get("output_tokens"),
    }
    result["finish"] = _finish(answer.response_metadata)


def _finish(metadata: dict[str, Any]) -> str:
    incomplete = metadata.get("incomplete_details") or {}
    words = (metadata.get("stop_reason"), metadata.get("finish_reason"), incomplete.get("reason"))
    if any(word in ("max_tokens", "length", "max_output_tokens") for word in words):
        return "length"
    return next((str(word) for word in words if word), "")


CLIENTS = {"lang-anthropic": anthropic, "lang-chat": chat, "lang-responses": responses}


def attempt(job: dict[str, str]) -> Result:
    """Returns what a job came to; a failure is under `error`."""
    try:
        return drive(CLIENTS[job["client"]], job["scenario"], job["model"])
    except Exception as error:
        status = getattr(error, "status_code", None)
        return {"error": {"kind": type(error).__name__, "status": status, "message": str(error)}}


with concurrent.futures.ThreadPoolExecutor(JOBS_AT_ONCE) as pool:
    results = pool.map(attempt, TASK["jobs"])
    json.dump({job["id"]: result for job, result in zip(TASK["jobs"], results, strict=True)}, sys.stdout)
