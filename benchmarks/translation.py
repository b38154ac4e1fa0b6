"""What a translation costs: microseconds for an event of 250 bytes, milliseconds for a request of 100 KB.

    python -m benchmarks.translation [--json]

CPU time of one thread, the best of several rounds: the machine's other work
can only add to it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import msgspec

from lurus.routing.v1.chat_pb2 import StreamChatRequest
from lurus_dialects.dialect import Dialect
from lurus_dialects.sse import SseParser
from lurus_dialects.translate import read_request, stream_reader, stream_writer, write_request
from lurus_dialects.translation import Asked, Losses, Target

ROUNDS = 7
EVENTS = 2_000
REQUESTS = 20
AIM_EVENT_MICROSECONDS = 5.0
AIM_REQUEST_MILLISECONDS = 2.0
EVENT_BYTES = 250
REQUEST_BYTES = 100_000

Row = tuple[Dialect, Dialect, float, float]


def main() -> int:
    """Measures every direction and prints a table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    as_json = parser.parse_args().json
    if not as_json:
        print(f"{'client':<18}{'provider':<18}{'event, us':>12}{'request, ms':>13}")
    for client in Dialect:
        for provider in Dialect:
            if client is not provider:
                _print(
                    (client, provider, _event_cost(client, provider), _request_cost(client, provider)),
                    as_json,
                )
    if not as_json:
        print(f"{'aim':<36}{AIM_EVENT_MICROSECONDS:>12.1f}{AIM_REQUEST_MILLISECONDS:>13.1f}")
    return 0


def _print(row: Row, as_json: bool) -> None:
    client, provider, event, request = row
    if as_json:
        fields = {"client": client, "provider": provider, "event_us": event, "request_ms": request}
        print(json.dumps(fields), flush=True)
    else:
        print(f"{client:<18}{provider:<18}{event:>12.2f}{request:>13.2f}", flush=True)


def _event_cost(client: Dialect, provider: Dialect) -> float:
    """Returns the microseconds to parse, read and write one text event of a provider."""
    begin, event = _stream(provider)

    def run() -> None:
        parser, reader = SseParser(), stream_reader(provider, {})
        writer = stream_writer(client, Asked(StreamChatRequest(model="m"), "answer-1", 1_800_000_000))
        for chunk in [*begin, *[event] * EVENTS]:
            for block in parser.feed(chunk):
                for said in reader.read(block.name, block.data):
                    writer.write(said)

    return _best(run) / EVENTS * 1e6


def _request_cost(client: Dialect, provider: Dialect) -> float:
    """Returns the milliseconds to read one request and to write it for a provider."""
    body = _request(client)
    target = Target(provider, "upstream-model", max_output_tokens=64_000)

    def run() -> None:
        for _ in range(REQUESTS):
            losses = Losses()
            write_request(read_request(client, body, losses), target, losses, is_streaming=True)

    return _best(run) / REQUESTS * 1e3


def _best(run: Callable[[], None]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        run()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def _stream(provider: Dialect) -> tuple[list[bytes], bytes]:
    """Returns how a provider begins an answer, and an event of text of 250 bytes."""
    if provider is Dialect.ANTHROPIC:
        usage = {"input_tokens": 10, "output_tokens": 1}
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [],
            "usage": usage,
        }
        begin = [
            _event("message_start", message=message),
            _event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        ]
        return begin, _padded(
            lambda text: _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
        )
    if provider is Dialect.OPENAI_CHAT:
        return [_chunk({"role": "assistant", "content": ""})], _padded(lambda text: _chunk({"content": text}))
    response = {"id": "resp_1", "object": "response", "status": "in_progress", "model": "m", "output": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    begin = [
        _event("response.created", sequence_number=0, response=response),
        _event("response.output_item.added", sequence_number=1, output_index=0, item=item),
        _event(
            "response.content_part.added",
            sequence_number=2,
            part={"type": "output_text", "text": ""},
            **place,
        ),
    ]
    return begin, _padded(
        lambda text: _event("response.output_text.delta", sequence_number=3, delta=text, **place)
    )


def _padded(make: Callable[[str], bytes]) -> bytes:
    return make("x" * (EVENT_BYTES - len(make(""))))


def _event(name: str, **fields: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode({"type": name, **fields}))


def _chunk(delta: dict[str, str]) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: %s\n\n" % msgspec.json.encode(chunk)


def _request(client: Dialect) -> bytes:
    """Returns a request of an agent in mid-work: instructions, tools, calls and their results."""
    schema = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
    names = [f"tool_{number}" for number in range(12)]
    result = "one line of a file that was read, more or less\n" * 40
    turns = [(f"call_{number}", names[number % 12], result) for number in range(45)]
    body = _MAKERS[client](names, schema, turns)
    encoded = msgspec.json.encode(body)
    if abs(len(encoded) - REQUEST_BYTES) > REQUEST_BYTES * 0.15:
        sys.exit(f"the request of {client} has {len(encoded)} bytes")
    return encoded


def _anthropic(names: list[str], schema: object, turns: list[tuple[str, str, str]]) -> dict[str, object]:
    messages: list[object] = [{"role": "user", "content": "Read all of them."}]
    for call_id, name, result in turns:
        use = {"type": "tool_use", "id": call_id, "name": name, "input": {"path": "a.py"}}
        answer = {"type": "tool_result", "tool_use_id": call_id, "content": result}
        messages += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [answer]}]
    tools = [{"name": name, "description": "Reads a file.", "input_schema": schema} for name in names]
    return {"model": "m", "max_tokens": 1000, "system": "Be brief.", "messages": messages, "tools": tools}


def _chat(names: list[str], schema: object, turns: list[tuple[str, str, str]]) -> dict[str, object]:
    messages: list[object] = [{"role": "user", "content": "Read all of them."}]
    for call_id, name, result in turns:
        function = {"name": name, "arguments": '{"path":"a.py"}'}
        call = {"id": call_id, "type": "function", "function": function}
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call_id, "content": result},
        ]
    functions = [{"name": name, "description": "Reads a file.", "parameters": schema} for name in names]
    tools = [{"type": "function", "function": function} for function in functions]
    return {"model": "m", "messages": messages, "tools": tools}


def _responses(names: list[str], schema: object, turns: list[tuple[str, str, str]]) -> dict[str, object]:
    items: list[object] = [{"role": "user", "content": "Read all of them."}]
    for call_id, name, result in turns:
        items += [
            {"type": "function_call", "call_id": call_id, "name": name, "arguments": '{"path":"a.py"}'},
            {"type": "function_call_output", "call_id": call_id, "output": result},
        ]
    tools = [
        {"type": "function", "name": name, "description": "Reads a file.", "parameters": schema}
        for name in names
    ]
    return {"model": "m", "input": items, "tools": tools, "stream": True}


_MAKERS = {
    Dialect.ANTHROPIC: _anthropic,
    Dialect.OPENAI_CHAT: _chat,
    Dialect.OPENAI_RESPONSES: _responses,
}

if __name__ == "__main__":
    raise SystemExit(main())
