"""Requests of Responses clients, into the hub and back (wire-contract A.3.3, E.4)."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lurus.routing.v1 import chat_pb2
from lurus_common.errors import InvalidRequest, Untranslatable
from lurus_dialects import envelope
from lurus_dialects.openai_responses import item_reader
from lurus_dialects.openai_responses.request_reader import read_request
from lurus_dialects.translation import Losses
from tests.dialects.responses_spoke import codex, spoke

R = spoke.read({"model": "m", "input": "x"}).messages[0]


def there_and_back(body: dict[str, Any]) -> dict[str, Any]:
    losses = Losses(is_strict=True)
    is_streaming = body.get("stream", False)
    out = spoke.write(spoke.read(body, losses), losses, is_streaming=is_streaming)
    assert not losses.silent
    return out


def test_Q10_a_codex_body_comes_back_as_it_was() -> None:
    body = codex.request()
    out = there_and_back(body)
    for item in body["input"]:
        if item["type"] == "reasoning":
            # It is kept as the client wrote it, null and all.
            assert item in out["input"]
    assert out == body | {"model": spoke.MODEL}


def test_Q10_namespaces_are_flattened_and_hosted_tools_are_kept_whole() -> None:
    request = spoke.read(codex.request())
    kinds = {(t.namespace, t.name): t.kind for t in request.tools}
    assert kinds[("mcp__gh", "search")] == chat_pb2.CHAT_TOOL_KIND_FUNCTION
    assert kinds[("", "apply_patch")] == chat_pb2.CHAT_TOOL_KIND_CUSTOM
    assert kinds[("", "web_search")] == kinds[("", "tool_search")] == chat_pb2.CHAT_TOOL_KIND_HOSTED
    odd = {
        "type": "function_call",
        "call_id": "c",
        "name": "f",
        "arguments": "",
        "namespace": "ns",
        "id": "fc",
    }
    found = spoke.read(codex.request() | {"input": [*codex.request()["input"], odd]}).messages
    calls = [block.tool_call for message in found for block in message.blocks if block.HasField("tool_call")]
    assert [call.namespace for call in calls] == ["", "", "mcp__gh", "ns"]
    assert request.tools[-1].source_path == "tools[4].tools[0]"
    assert [f.name for f in request.vendor_fields] == ["client_metadata"]


# Generated requests

NAMES = st.from_regex(r"[a-z_]{1,12}\Z")
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=3)
EXTRAS = st.dictionaries(st.from_regex(r"x_[a-z]{1,8}\Z"), JSON, max_size=2)


def shape(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    built = st.fixed_dictionaries({"type": st.just(kind), **fields})
    return st.builds(lambda value, extra: value | extra, built, EXTRAS)


MARK = {"mode": "explicit", "ttl": "30m"}
INPUT_PARTS = st.one_of(
    shape("input_text", text=TEXTS),
    shape("input_text", text=TEXTS, prompt_cache_breakpoint=st.just(MARK)),
    shape("input_image", image_url=st.just("data:image/png;base64,AAAA"), detail=st.just("low")),
    shape("input_image", image_url=st.sampled_from(["https://x/y.png", "data:,x", "data:a;b=c;base64,AA"])),
    shape("input_image", file_id=NAMES),
    shape("input_file", file_data=st.just("data:application/pdf;base64,AAAA"), filename=NAMES),
    shape("input_file", file_url=st.just("https://x/y.pdf")),
    shape("input_file", file_id=NAMES),
    shape("input_audio", input_audio=st.just({"data": "AAAA", "format": "mp3"})),
    shape("input_future", anything=JSON),
)
OUTPUT_PARTS = shape("output_text", text=TEXTS, annotations=st.just([])) | shape("refusal", refusal=TEXTS)
ITEMS = st.one_of(
    shape(
        "message",
        role=st.sampled_from(["user", "system", "developer"]),
        content=st.lists(INPUT_PARTS, max_size=3),
    ),
    shape(
        "message",
        role=st.just("assistant"),
        content=st.lists(OUTPUT_PARTS, max_size=2),
        id=NAMES,
        phase=NAMES,
    ),
    shape(
        "reasoning",
        id=NAMES,
        summary=st.lists(shape("summary_text", text=TEXTS), max_size=2),
        encrypted_content=NAMES,
    ),
    shape(
        "function_call",
        call_id=NAMES,
        name=NAMES,
        arguments=TEXTS,
        namespace=NAMES,
        status=st.just("completed"),
    ),
    shape("custom_tool_call", call_id=NAMES, name=NAMES, input=TEXTS),
    shape("function_call_output", call_id=NAMES, output=TEXTS),
    shape("function_call_output", call_id=NAMES, output=st.lists(INPUT_PARTS, min_size=2, max_size=3)),
    shape("custom_tool_call_output", call_id=NAMES, output=TEXTS),
    shape("web_search_call", id=NAMES, action=OBJECTS),
    shape("future_item", payload=JSON),
)
FUNCTIONS = shape("function", name=NAMES, parameters=OBJECTS, strict=st.booleans())
CUSTOMS = shape("custom", name=NAMES, description=NAMES, format=OBJECTS)
TOOLS = st.one_of(
    FUNCTIONS,
    CUSTOMS,
    shape("web_search"),
    shape("mcp", server_label=NAMES),
    shape(
        "namespace",
        name=NAMES,
        description=NAMES,
        tools=st.lists(FUNCTIONS | CUSTOMS, min_size=1, max_size=3),
    ),
)
CHOICES = st.one_of(
    st.sampled_from(["auto", "none", "required"]),
    shape("function", name=NAMES),
    shape("custom", name=NAMES),
    shape("web_search"),
    shape("mcp", server_label=NAMES),
    shape(
        "allowed_tools", mode=st.sampled_from(["auto", "required"]), tools=st.lists(shape("mcp"), max_size=2)
    ),
)
FORMATS = st.one_of(
    st.just({"type": "text"}),
    shape("json_object"),
    shape("json_schema", name=NAMES, schema=OBJECTS, strict=st.booleans()),
    shape("grammar", definition=TEXTS),
)
REQUESTS = st.fixed_dictionaries(
    {"model": st.just(spoke.MODEL), "input": st.lists(ITEMS, max_size=5)},
    optional={
        "instructions": TEXTS,
        "tools": st.lists(
            TOOLS, min_size=1, max_size=4, unique_by=lambda tool: json.dumps(tool.get("name", id(tool)))
        ),
        "tool_choice": CHOICES,
        "parallel_tool_calls": st.booleans(),
        "max_output_tokens": st.integers(1, 10**6),
        "temperature": st.sampled_from([0, 0.5, 1, 2]),
        "top_p": st.sampled_from([0, 0.9, 1]),
        "reasoning": st.fixed_dictionaries(
            {},
            optional={
                "effort": st.sampled_from(["none", "low", "max"]),
                "summary": st.sampled_from([None, "auto"]),
                "context": JSON,
            },
        ).filter(bool),
        "text": st.fixed_dictionaries(
            {}, optional={"format": FORMATS, "verbosity": st.just("low"), "x": JSON}
        ).filter(bool),
        "include": st.just(
            ["message.output_text.logprobs", "reasoning.encrypted_content", "file_search_call.results"]
        ),
        "top_logprobs": st.integers(1, 20),
        "store": st.booleans(),
        "previous_response_id": st.just("resp_1"),
        "conversation": NAMES,
        "background": st.booleans(),
        "user": NAMES,
        "safety_identifier": st.just("A B"),
        "service_tier": st.sampled_from(["auto", "flex"]),
        "metadata": st.dictionaries(NAMES, TEXTS, min_size=1, max_size=2),
        "prompt_cache_key": st.just("k"),
        "truncation": st.just("auto"),
        "max_tool_calls": st.integers(1, 9),
        "client_metadata": OBJECTS,
        "x_new": JSON,
    },
)


@settings(max_examples=300, deadline=None)
@given(REQUESTS)
def test_a_request_comes_back_with_everything_in_it(body: dict[str, Any]) -> None:
    out = there_and_back(body)
    assert normal(out) == normal(body)


@settings(max_examples=150, deadline=None)
@given(REQUESTS)
def test_plain_items_are_read_alike_in_one_go_and_member_by_member(body: dict[str, Any]) -> None:
    at_once = spoke.read(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_reader, "read_plain", lambda raw, path: None)
        assert spoke.read(body) == at_once


def normal(body: dict[str, Any]) -> dict[str, Any]:
    body = json.loads(json.dumps(body))
    if "include" in body:
        body["include"].sort()
    body["input"] = body.get("input", [])
    body["tools"] = merged_namespaces(body.get("tools", []))
    return body


def merged_namespaces(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns tools with their namespace at each of them, since neighbours of one name are one."""
    found: list[dict[str, Any]] = []
    for tool in tools:
        if tool["type"] == "namespace":
            outer = {key: value for key, value in tool.items() if key != "tools"}
            found += [{"outer": outer, "inner": inner} for inner in tool["tools"]]
        else:
            found.append(tool)
    return found


# Forms of input


def test_a_string_and_easy_messages_are_read() -> None:
    request = spoke.read({"model": "m", "input": "hi", "instructions": "be brief"})
    assert [(m.role, m.blocks[0].text) for m in request.messages] == [
        (chat_pb2.CHAT_ROLE_SYSTEM, "be brief"),
        (chat_pb2.CHAT_ROLE_USER, "hi"),
    ]
    easy = spoke.read(
        {
            "model": "m",
            "input": [{"role": "developer", "content": "d"}, {"role": "assistant", "content": "a"}],
        }
    )
    out = spoke.write(easy)
    assert out["input"][0]["content"] == [{"type": "input_text", "text": "d"}]
    assert out["input"][1]["content"] == [{"type": "output_text", "text": "a"}]


def test_Q12_a_list_output_becomes_blocks() -> None:
    item = codex.request()["input"][9]
    assert item["type"] == "function_call_output"
    blocks = spoke.read({"model": "m", "input": [item]}).messages[0].blocks[0].tool_result.blocks
    assert [b.WhichOneof("block") for b in blocks] == ["text", "media"]
    assert blocks[1].source_path == "input[0].output[1]" and blocks[1].media.base64_data == "iVBORw0KGgo="


def test_Q24_the_previous_response_is_a_field_of_the_hub() -> None:
    assert (
        spoke.read({"model": "m", "input": "x", "previous_response_id": "resp_1"}).previous_response_id
        == "resp_1"
    )


def test_Q29_an_unknown_item_keeps_its_path() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "odd", "n": 1.10}]},
        {"id": "m1"},
    ]
    request = spoke.read({"model": "m", "input": items})
    odd = request.messages[0].blocks[1]
    assert (odd.source_path, odd.vendor_block.name) == ("input[0].content[1]", "odd")
    assert request.messages[1].blocks[0].vendor_block.name == "item_reference"
    assert request.messages[1].blocks[0].source_path == "input[1]"


def test_numbers_and_surrogates_survive() -> None:
    text = rb'"\ud83d\ude00 \ud83d"'
    numbers = b'{"a":1E400,"b":12345678901234567890.10}'
    body = b'{"model":"m","input":[{"role":"user","content":%b}],"x":%b}' % (text, numbers)
    request = read_request(body, Losses())
    assert request.messages[0].blocks[0].text == "😀 \ufffd"
    assert request.vendor_fields[0].json == numbers


def test_an_envelope_is_opened_and_goes_back_only_to_its_maker() -> None:
    original = b'{"type":"reasoning","id":"rs_9","summary":[],"encrypted_content":"gAAA"}'
    sealed = envelope.seal(
        chat_pb2.ChatThinking(original=original, dialect=3, provider_id="prov_r", upstream_model=spoke.MODEL)
    )
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed}
    request = spoke.read({"model": "m", "input": [item]})
    assert spoke.write(request)["input"] == [json.loads(original)]
    request.messages[0].blocks[0].thinking.provider_id = "other"
    losses = Losses()
    assert "input" not in spoke.write(request, losses) and losses.silent == ["input[0]"]
    losses = Losses()
    broken = spoke.read({"model": "m", "input": [item | {"encrypted_content": "lsw1.%%"}]}, losses)
    assert not broken.messages and losses.silent == ["input[0].encrypted_content"]


# Hostile input

BAD = [
    ({"input": "x"}, "model"),
    ({"model": 1, "input": "x"}, "model"),
    ({"model": "m"}, "input"),
    ({"model": "m", "input": 7}, "input"),
    ({"model": "m", "input": [3]}, "input[0]"),
    ({"model": "m", "input": [{}]}, "input[0].type"),
    ({"model": "m", "input": [{"role": "king", "content": "x"}]}, "input[0].role"),
    ({"model": "m", "input": [{"role": "user"}]}, "input[0].content"),
    (
        {"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": 4}]}]},
        "input[0].content[0].text",
    ),
    (
        {"model": "m", "input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]},
        "input[0].arguments",
    ),
    ({"model": "m", "input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
    ({"model": "m", "input": "x", "tools": {}}, "tools"),
    (
        {"model": "m", "input": "x", "tools": [{"type": "function", "name": "f", "parameters": []}]},
        "tools[0].parameters",
    ),
    ({"model": "m", "input": "x", "tool_choice": "maybe"}, "tool_choice"),
    ({"model": "m", "input": "x", "temperature": "hot"}, "temperature"),
    ({"model": "m", "input": "x", "max_output_tokens": -1}, "max_output_tokens"),
    ({"model": "m", "input": "x", "metadata": {"a": 1}}, "metadata.a"),
    ({"model": "m", "input": "x", "reasoning": []}, "reasoning"),
    ({"model": "m", "input": "x", "include": [1]}, "include[0]"),
]


@pytest.mark.parametrize(("body", "path"), BAD, ids=[path for _, path in BAD])
def test_a_wrong_type_is_named_by_its_path(body: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        spoke.read(body)
    assert caught.value.metadata["param"] == path


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_json_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    body = codex.request()
    place: Any = body
    for _ in range(data.draw(st.integers(0, 4))):
        keys = (
            list(place) if isinstance(place, dict) else range(len(place)) if isinstance(place, list) else []
        )
        if not keys:
            break
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(JSON | st.none())
            break
        place = place[key]
    try:
        request = spoke.read(body)
        spoke.write(request)
    except (InvalidRequest, Untranslatable):
        pass


def test_deep_nesting_is_refused() -> None:
    for deep in (
        b'{"model":"m","input":' + b"[" * 100_000,
        b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ):
        with pytest.raises(InvalidRequest):
            read_request(deep, Losses())
