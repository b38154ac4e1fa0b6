"""Writes the answers of the scripted provider in its three dialects."""

import json
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from tests.sdk_matrix import facts
from tests.support import provider_streams as streams

SIGNATURE = "ErUBCkYIBxgCIkDmatrix+signature/of==the=provider"
ENCRYPTED = "gAAAAABmatrix-encrypted-reasoning_of-the_provider=="
REASONING_ID = "rs_0"

A_USAGE = {
    "input_tokens": facts.INPUT_TOKENS,
    "cache_read_input_tokens": facts.CACHED_TOKENS,
    "cache_creation_input_tokens": 0,
    "output_tokens": 1,
}
_PROMPT = facts.INPUT_TOKENS + facts.CACHED_TOKENS
C_USAGE = {
    "prompt_tokens": _PROMPT,
    "prompt_tokens_details": {"cached_tokens": facts.CACHED_TOKENS},
    "completion_tokens": facts.OUTPUT_TOKENS,
    "total_tokens": _PROMPT + facts.OUTPUT_TOKENS,
}
# What the answer says of its settings; the SDKs want them.
R_ECHO = {
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
}


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool; the arguments of a custom one are free text."""

    number: int
    name: str
    arguments: str
    is_custom: bool = False

    @property
    def wrapped(self) -> str:
        """The arguments as JSON, for dialects that have no custom tools."""
        return json.dumps({"input": self.arguments}) if self.is_custom else self.arguments

    def fragments(self, *, is_wrapped: bool = True) -> list[str]:
        """Returns the arguments in pieces of 7 characters."""
        text = self.wrapped if is_wrapped else self.arguments
        return [text[at : at + 7] for at in range(0, len(text), 7)]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the provider says."""

    text: tuple[str, ...] = ()
    thinking: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    is_cut_short: bool = False
    # After the text: `error` is the dialect's event, `cut` ends the connection.
    fault: str = ""


def body(dialect: str, answer: Answer) -> dict[str, Any]:
    """Returns a plain answer of the dialect A, C or R."""
    return {"A": _a_body, "C": _c_body, "R": _r_body}[dialect](answer)


def pieces(dialect: str, answer: Answer, *, has_usage: bool, interleaves: bool) -> list[bytes]:
    """Returns a streamed answer; without its end if a fault cuts it.

    Args:
        dialect: A, C or R.
        answer: what is said.
        has_usage: of C: whether the client asked for it.
        interleaves: of C: whether fragments of parallel calls come by turns, as some servers send them
            and no SDK of the vendor's understands.
    """
    if dialect == "C":
        return _c_pieces(answer, has_usage, interleaves)
    return _a_pieces(answer) if dialect == "A" else _r_pieces(answer)


def call_id(dialect: str, number: int) -> str:
    """Returns the id that a call has."""
    return f"{'toolu' if dialect == 'A' else 'call'}_matrix_{number}"


def original_thinking(dialect: str, answer: Answer) -> dict[str, Any]:
    """Returns the block or item that a client must give back for this answer's thinking."""
    text = "".join(answer.thinking)
    if dialect == "A":
        return {"type": "thinking", "thinking": text, "signature": SIGNATURE}
    summary = [{"type": "summary_text", "text": text}]
    return {"id": REASONING_ID, "type": "reasoning", "summary": summary, "encrypted_content": ENCRYPTED}


# Anthropic Messages


def _a_body(answer: Answer) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if answer.thinking:
        content.append(original_thinking("A", answer))
    if answer.text:
        content.append({"type": "text", "text": "".join(answer.text)})
    content += [
        {
            "type": "tool_use",
            "id": call_id("A", call.number),
            "name": call.name,
            "input": json.loads(call.arguments),
        }
        for call in answer.calls
    ]
    usage = {**A_USAGE, "output_tokens": facts.OUTPUT_TOKENS}
    return streams.a_body(content, _a_stop(answer), usage=usage)


def _a_pieces(answer: Answer) -> list[bytes]:
    found, index = [streams.a_start(A_USAGE), streams.named("ping")], 0
    if answer.thinking:
        found.append(streams.a_open(index, {"type": "thinking", "thinking": "", "signature": ""}))
        found += [streams.a_delta(index, "thinking_delta", thinking=part) for part in answer.thinking]
        found += [streams.a_delta(index, "signature_delta", signature=SIGNATURE), streams.a_close(index)]
        index += 1
    if answer.text:
        found.append(streams.a_open(index, {"type": "text", "text": ""}))
        found += [streams.a_delta(index, "text_delta", text=part) for part in answer.text]
        if answer.fault:
            event = streams.a_error("overloaded_error", "Overloaded")
            return [*found, event] if answer.fault == "error" else found
        found.append(streams.a_close(index))
        index += 1
    for call in answer.calls:
        found.append(streams.a_tool(index, call_id("A", call.number), call.name, "", *call.fragments()))
        index += 1
    change = {"stop_reason": _a_stop(answer), "stop_sequence": None}
    usage = {**A_USAGE, "output_tokens": facts.OUTPUT_TOKENS}
    return [*found, streams.named("message_delta", delta=change, usage=usage), streams.named("message_stop")]


def _a_stop(answer: Answer) -> str:
    return "max_tokens" if answer.is_cut_short else "tool_use" if answer.calls else "end_turn"


# OpenAI Chat Completions


def _c_body(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"content": "".join(answer.text) or None, "refusal": None}
    if answer.thinking:
        message["reasoning_content"] = "".join(answer.thinking)
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": call_id("C", call.number),
                "type": "function",
                "function": {"name": call.name, "arguments": call.wrapped},
            }
            for call in answer.calls
        ]
    return streams.c_body(message, _c_finish(answer), usage=C_USAGE)


def _c_pieces(answer: Answer, has_usage: bool, interleaves: bool) -> list[bytes]:
    found = [streams.c_start()]
    found += [streams.c_chunk({"reasoning_content": part}) for part in answer.thinking]
    found += [streams.c_text(part) for part in answer.text]
    if answer.fault:
        event = b'data: {"error":{"message":"Overloaded","type":"server_error","param":null,"code":null}}\n\n'
        return [*found, event] if answer.fault == "error" else found
    calls = [_c_fragments(at, call) for at, call in enumerate(answer.calls)]
    rows = zip_longest(*calls, fillvalue=b"") if interleaves else calls
    found += [fragment for row in rows for fragment in row if fragment]
    return [*found, streams.c_finish(_c_finish(answer), C_USAGE if has_usage else None)]


def _c_fragments(at: int, call: Call) -> list[bytes]:
    first = streams.c_call(at, call_id("C", call.number), call.name)
    return [first, *(streams.c_arguments(at, part) for part in call.fragments())]


def _c_finish(answer: Answer) -> str:
    return "length" if answer.is_cut_short else "tool_calls" if answer.calls else "stop"


# OpenAI Responses


def _r_body(answer: Answer) -> dict[str, Any]:
    stream = streams.ResponsesStream()
    _r_items(stream, answer)
    return streams.r_body(stream.items, **_r_end(answer))


def _r_pieces(answer: Answer) -> list[bytes]:
    stream = streams.ResponsesStream()
    found = [_echoing(stream.start())]
    if not answer.fault:
        return [*found, *_r_items(stream, answer), stream.end(**_r_end(answer))]
    whole = stream.text(*answer.text)
    # Up to the last delta.
    found.append(whole[: whole.index(b"event: response.output_text.done")])
    if answer.fault == "error":
        error = {"code": "server_error", "message": "Overloaded"}
        found.append(stream.end("failed", error=error, usage=None, **R_ECHO))
    return found


def _r_items(stream: streams.ResponsesStream, answer: Answer) -> list[bytes]:
    found = []
    if answer.thinking:
        found.append(stream.reasoning("".join(answer.thinking), encrypted=ENCRYPTED))
    if answer.text:
        found.append(stream.text(*answer.text))
    for call in answer.calls:
        parts = call.fragments(is_wrapped=False)
        found.append(stream.call(call_id("R", call.number), call.name, *parts, is_custom=call.is_custom))
    return found


def _r_end(answer: Answer) -> dict[str, Any]:
    if not answer.is_cut_short:
        return {"status": "completed", **R_ECHO}
    return {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, **R_ECHO}


def _echoing(events: bytes) -> bytes:
    """Returns the first events with the settings in their responses."""
    lines = []
    for line in events.split(b"\n"):
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            event["response"] |= R_ECHO
            line = b"data: " + json.dumps(event).encode()
        lines.append(line)
    return b"\n".join(lines)
