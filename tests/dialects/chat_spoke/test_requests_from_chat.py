"""What is read of a chat client's request, and what others are sent for it (wire-contract C.1, E.4)."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lurus.provider.v1.provider_pb2 import ProviderQuirks
from lurus.routing.v1 import chat_pb2
from lurus_common.errors import InvalidRequest
from lurus_dialects import translate
from lurus_dialects.translation import Losses, Target
from tests.conformance.requests import (
    A_IMAGE,
    SCHEMA,
    assistant,
    c_request,
    c_result,
    c_tool,
    c_use,
    request_of,
    text,
    user,
)
from tests.dialects.chat_spoke.spoke import A, C, R, Sent, refused

GRAMMAR = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /.+/"}}
CUSTOM = {"type": "custom", "custom": {"name": "patch", "description": "d", "format": GRAMMAR}}
OWN = ProviderQuirks(has_mid_system=True, has_developer_role=True, has_custom_tools=True)


def read(**fields: Any) -> chat_pb2.StreamChatRequest:
    return translate.read_request(C, json.dumps(request_of(C, **fields)).encode(), Losses())


def kept(body: dict[str, Any]) -> Any:
    """Returns a request of this dialect after its way through the hub."""
    losses = Losses()
    request = translate.read_request(C, json.dumps(body).encode(), losses)
    written = translate.write_request(
        request, Target(C, body["model"], quirks=OWN), losses, is_streaming=False
    )
    assert losses.warned == [] and written.tool_names == {}
    return json.loads(written.body)


class TestToAnthropic:
    @pytest.mark.parametrize(
        ("asked", "place"),
        [({"logprobs": True}, "logprobs"), ({"logprobs": True, "top_logprobs": 2}, "top_logprobs")],
    )
    def test_T19_probabilities_are_refused_by_their_own_name(self, asked: Any, place: str) -> None:
        assert refused(C, A, request_of(C, **asked)) == place

    @pytest.mark.parametrize(
        ("stated", "person", "lost"),
        [
            ({"user": "u"}, "u", []),
            ({"safety_identifier": "s"}, "s", []),
            ({"user": "u", "safety_identifier": "s"}, "s", ["user"]),
        ],
    )
    def test_T20_who_asks_is_lost_only_if_nobody_is_told(self, stated: Any, person: str, lost: Any) -> None:
        sent = Sent(C, A, request_of(C, **stated))
        assert sent.body["metadata"] == {"user_id": person}
        assert [name for name in sent.losses.silent if name in ("user", "safety_identifier")] == lost

    def test_Q07_empty_and_broken_arguments(self) -> None:
        calls = [c_use("a", ""), c_use("b", '{"a":')]
        history = [user("do"), assistant(None, tool_calls=calls), c_result("a", "1"), c_result("b", "2")]
        sent = Sent(C, A, c_request(*history))
        one, two = sent.messages[1]["content"]
        assert (one["input"], two["input"]) == ({}, {"raw_arguments": '{"a":'})
        assert [path.partition(".arg")[0] for path in sent.losses.warned] == ["messages[1].tool_calls[1]"]

    def test_Q08_results_in_a_row_are_one_turn(self) -> None:
        calls = [c_use("a"), c_use("b"), c_use("c")]
        results = [c_result(name, name) for name in "abc"]
        sent = Sent(C, A, c_request(user("do"), assistant(None, tool_calls=calls), *results, user("go")))
        kinds = [block["type"] for block in sent.messages[2]["content"]]
        assert len(sent.messages) == 3 and kinds == ["tool_result"] * 3 + ["text"]

    def test_Q09_a_result_without_a_call_is_refused(self) -> None:
        request = c_request(user("do"), assistant("done"), c_result("nobody", "1"))
        assert refused(C, A, request) == "messages[2].tool_call_id"
        assert refused(C, R, request) == "messages[2].tool_call_id"

    def test_Q14_images(self) -> None:
        url = f"data:image/png;base64,{A_IMAGE['source']['data']}"  # type: ignore[index]  # nested
        part = {"type": "image_url", "image_url": {"url": url}}
        assert Sent(C, A, c_request(user([text("see"), part]))).messages[0]["content"][1] == A_IMAGE
        tiff = {"type": "image_url", "image_url": {"url": "data:image/tiff;base64,SUkq"}}
        assert refused(C, A, c_request(user([text("see"), tiff]))) == "messages[0].content[1]"

    def test_Q16_sound_is_refused(self) -> None:
        sound = {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}
        assert refused(C, A, c_request(user([text("hear"), sound]))) == "messages[0].content[1]"

    @pytest.mark.parametrize(("mode", "expected"), [("auto", "auto"), ("required", "any")])
    def test_Q17_only_the_allowed_tools_are_left(self, mode: str, expected: str) -> None:
        names = [{"type": "function", "function": {"name": "g"}}]
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": names}}
        sent = Sent(C, A, request_of(C, tools=[c_tool("f"), c_tool("g")], tool_choice=choice))
        assert [tool["name"] for tool in sent.body["tools"]] == ["g"]
        assert sent.body["tool_choice"]["type"] == expected

    def test_Q18_limits(self) -> None:
        fields = {"temperature": 1.7, "top_p": 0.9, "seed": 7}
        assert refused(C, A, request_of(C, **fields, n=2)) == "n"
        sent = Sent(C, A, request_of(C, **fields), max_output_tokens=4321)
        assert (sent.body["max_tokens"], sent.body["top_p"]) == (4321, 0.9)
        assert sorted(sent.losses.warned) == ["seed", "temperature"]

    def test_Q22_a_schema(self) -> None:
        shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
        sent = Sent(C, A, request_of(C, response_format=shape))
        assert sent.body["output_config"]["format"] == {"type": "json_schema", "schema": SCHEMA}
        assert sent.losses.warned == []

    @pytest.mark.parametrize("target", [A, R])
    def test_Q29_an_unknown_part_is_named_by_its_place(self, target: Any) -> None:
        turn = user([text("see"), {"type": "hologram"}])
        request = c_request(user("a"), assistant("b"), user("c"), turn)
        assert refused(C, target, request) == "messages[3].content[1]"

    def test_Q29_an_unknown_part_of_a_result_too(self) -> None:
        called = assistant(None, tool_calls=[c_use("a")])
        request = c_request(user("a"), called, c_result("a", [text("x"), {"type": "hologram"}]))
        assert refused(C, A, request) == "messages[2].content[1]"

    @pytest.mark.parametrize("target", [A, R])
    def test_T19_legacy_functions_are_refused(self, target: Any) -> None:
        assert refused(C, target, request_of(C, functions=[{"name": "f"}])) == "functions"
        result = {"role": "function", "name": "f", "content": "1"}
        called = assistant(None, function_call={"name": "f", "arguments": "{}"})
        assert refused(C, target, c_request(user("a"), called, result)) == "messages[1].function_call"
        assert refused(C, target, c_request(user("a"), result)) == "messages[1]"


class TestReading:
    def test_the_fields(self) -> None:
        request = read(
            max_completion_tokens=5,
            temperature=0.5,
            top_p=1,
            stop="X",
            reasoning_effort="high",
            verbosity="low",
            logprobs=True,
            top_logprobs=2,
            user="u",
            safety_identifier="s",
            metadata={"k": "v"},
            prompt_cache_key="p",
            service_tier="flex",
            store=True,
            parallel_tool_calls=False,
        )
        assert (request.max_output_tokens, request.temperature, request.top_p) == (5, 0.5, 1)
        assert (list(request.stop_sequences), request.reasoning.effort, request.verbosity) == (
            ["X"],
            "high",
            "low",
        )
        assert (request.top_logprobs, request.end_user_id, dict(request.metadata)) == (2, "s", {"k": "v"})
        assert (request.prompt_cache_key, request.service_tier, request.is_stored) == ("p", "flex", True)
        assert request.HasField("has_parallel_tool_calls") and not request.has_parallel_tool_calls
        assert {field.name for field in request.vendor_fields} == {"user", "safety_identifier"}

    def test_no_thinking_and_defaults(self) -> None:
        assert read(reasoning_effort="none").reasoning.mode == chat_pb2.CHAT_REASONING_MODE_DISABLED
        plain = read(logprobs=False, temperature=None, stop=None, tools=None)
        assert not plain.vendor_fields and not plain.HasField("top_logprobs")

    def test_a_grammar_stands_in_the_hub_as_responses_has_it(self) -> None:
        (tool,) = read(tools=[CUSTOM]).tools
        assert json.loads(tool.format) == {"type": "grammar", **GRAMMAR["grammar"]}  # type: ignore[dict-item]
        (sent,) = Sent(C, R, request_of(C, tools=[CUSTOM])).body["tools"]
        assert sent["format"] == {"type": "grammar", **GRAMMAR["grammar"]}  # type: ignore[dict-item]

    def test_a_cache_mark_is_a_hint(self) -> None:
        part = {**text("x"), "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}
        sent = Sent(C, A, c_request(user([part])))
        assert sent.messages[0]["content"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
        assert Sent(C, R, c_request(user([part]))).body["input"][0]["content"][0][
            "prompt_cache_breakpoint"
        ] == {"mode": "explicit", "ttl": "12h"}

    def test_half_a_character_is_replaced_not_lost(self) -> None:
        body = b'{"model":"m","messages":[{"role":"user","content":"a\\ud83d b \\ud83d\\ude00"}]}'
        request = translate.read_request(C, body, Losses())
        assert request.messages[0].blocks[0].text == "a\ufffd b \U0001f600"
        escaped = body.replace(b"a\\ud83d", b"a\\\\ud83d")
        assert translate.read_request(C, escaped, Losses()).messages[0].blocks[0].text[:7] == "a\\ud83d"

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"messages": []}, "messages"),
            ({"messages": {}}, "messages"),
            ({"messages": [1]}, "messages[0]"),
            ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"messages": [user(7)]}, "messages[0].content"),
            ({"messages": [user([{"type": "text", "text": 7}])]}, "messages[0].content[0].text"),
            ({"messages": [user([{"text": "x"}])]}, "messages[0].content[0].type"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
            ({"messages": [assistant(None, tool_calls=[{}])]}, "messages[0].tool_calls[0].id"),
            ({"messages": [assistant(None, tool_calls=[{"id": "a"}])]}, "messages[0].tool_calls[0].function"),
            ({"messages": [assistant(None, tool_calls=7)]}, "messages[0].tool_calls"),
            ({"temperature": "hot"}, "temperature"),
            ({"temperature": 3}, "temperature"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": True}, "max_tokens"),
            ({"stop": [7]}, "stop[0]"),
            ({"tools": [{"type": "function"}]}, "tools[0].function"),
            ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
            ({"tools": [c_tool(parameters=[])]}, "tools[0].function.parameters"),
            ({"tool_choice": "perhaps"}, "tool_choice"),
            ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
            ({"metadata": {"k": 7}}, "metadata.k"),
            ({"user": {}}, "user"),
            ({"stream": "yes"}, "stream"),
            ({"model": 7}, "model"),
        ],
    )
    def test_a_wrong_type_is_named_by_its_place(self, fields: dict[str, Any], param: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            read(**fields)
        assert caught.value.metadata["param"] == param

    @pytest.mark.parametrize(
        "body",
        [b"", b"[]", b"{", b'{"model":"\xff"}', b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"],
        ids=["nothing", "a list", "cut", "not UTF-8", "deep"],
    )
    def test_what_is_no_request_is_refused(self, body: bytes) -> None:
        with pytest.raises(InvalidRequest):
            translate.read_request(C, body, Losses())


class TestRoundTrip:
    @pytest.mark.parametrize(
        "fields",
        [
            {"tools": [c_tool(strict=True, extra=1), CUSTOM, {"type": "future", "x": 1.50}]},
            {"tools": [CUSTOM], "tool_choice": {"type": "custom", "custom": {"name": "patch"}}},
            {"tools": [c_tool("n" * 90)], "tool_choice": "required", "parallel_tool_calls": False},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            {"response_format": {"type": "future"}, "stop": ["A", "B"], "seed": 7, "n": 3},
            {"logprobs": True, "top_logprobs": 0, "logit_bias": {"5": -1}, "modalities": ["text", "audio"]},
            {"user": "u", "safety_identifier": "s", "store": False, "service_tier": "default"},
            {"max_completion_tokens": 9, "reasoning_effort": "none", "web_search_options": {"a": [None]}},
            {"unheard_of": {"deep": [1, {"x": "y"}]}, "prediction": {"type": "content", "content": "x"}},
        ],
    )
    def test_every_field_is_kept(self, fields: dict[str, Any]) -> None:
        body = request_of(C, **fields)
        if body.get("top_logprobs") == 0:
            body.pop("top_logprobs")
        assert kept(request_of(C, **fields)) == body

    def test_every_message_is_kept(self) -> None:
        calls = [
            c_use("a|b", ' {"a": 1.0}'),
            {"id": "c", "type": "custom", "custom": {"name": "p", "input": "x"}},
        ]
        history = [
            {"role": "developer", "content": [text("rules")], "name": "boss"},
            user([text("a"), {"type": "file", "file": {"file_id": "f"}}, {"type": "future", "x": 1}]),
            assistant(None, tool_calls=calls, reasoning_content="hm", extra=[1]),
            {"role": "system", "content": "amid"},
            c_result("a|b", [text("one"), {**text("two"), "prompt_cache_breakpoint": {"mode": "explicit"}}]),
            {**c_result("c", ""), "extra": 1},
            assistant(None, refusal="no"),
            assistant([text("x"), {"type": "refusal", "refusal": "y"}], audio={"id": "au"}),
            assistant("x", function_call={"name": "f", "arguments": "{"}),
            {"role": "function", "name": "f", "content": "1"},
            assistant("{"),
        ]
        assert _flat(kept(c_request(*history))["messages"]) == _flat(history)


def _flat(messages: list[Any]) -> list[Any]:
    """Returns messages with lone text parts and empty lists as strings, which mean the same."""
    flat = []
    for message in messages:
        content = message.get("content")
        is_lone = isinstance(content, list) and len(content) == 1 and content[0].keys() == {"type", "text"}
        flat.append(
            {**message, "content": content[0]["text"] if is_lone else "" if content == [] else content}
        )
    return flat


WORDS = st.text(max_size=6)
NAMES = st.sampled_from(["f", "n" * 70, "ä b"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)
TEXT = st.builds(lambda words: text(words), WORDS)
IMAGE = st.builds(
    lambda url, detail: {"type": "image_url", "image_url": {"url": url, **detail}},
    st.sampled_from(["https://x.example/a.png", "data:image/png;base64,aGk=", "data:,x", "data:a;b;base64,"]),
    st.sampled_from([{}, {"detail": "low"}, {"detail": "high", "extra": 1}]),
)
FILE = st.builds(
    lambda file: {"type": "file", "file": file},
    st.sampled_from(
        [
            {"file_id": "f"},
            {"file_data": "data:application/pdf;base64,aGk=", "filename": "T"},
            {"file_data": "aGk="},
        ]
    ),
)
SOUND = st.just({"type": "input_audio", "input_audio": {"data": "aGk=", "format": "mp3"}})
PARTS = st.lists(TEXT | IMAGE | FILE | SOUND, min_size=1, max_size=3)
CALL = st.builds(
    lambda call_id, name, arguments: c_use(call_id, arguments, name),
    st.text(min_size=1, max_size=4),
    NAMES,
    st.builds(json.dumps, JSON) | WORDS,
)
MESSAGE = st.one_of(
    st.builds(user, WORDS | PARTS),
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "developer"]),
        WORDS | st.lists(TEXT, min_size=1, max_size=2),
    ),
    st.builds(
        lambda content, calls: assistant(content, **({"tool_calls": calls} if calls else {})),
        st.none() | WORDS,
        st.lists(CALL, max_size=2),
    ),
    st.builds(c_result, st.text(min_size=1, max_size=4), WORDS | st.lists(TEXT, max_size=2)),
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0, 0.7, 2]),
        "top_p": st.sampled_from([0.25, 1]),
        "max_completion_tokens": st.integers(1, 2**40),
        "stop": st.lists(WORDS, min_size=1, max_size=6),
        "tools": st.lists(st.builds(c_tool, NAMES, strict=st.booleans()), min_size=1, max_size=2),
        "tool_choice": st.sampled_from(["auto", "none", "required"]),
        "parallel_tool_calls": st.booleans(),
        "reasoning_effort": st.sampled_from(["none", "minimal", "max", "novel"]),
        "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
        "user": WORDS,
        "safety_identifier": WORDS,
        "metadata": st.dictionaries(WORDS, WORDS, min_size=1, max_size=2),
        "unheard_of": JSON.filter(lambda value: value is not None),
        "store": st.booleans(),
        "n": st.integers(1, 3),
    },
)


@settings(max_examples=300, deadline=None)
@given(st.lists(MESSAGE, min_size=1, max_size=5), FIELDS)
def test_a_request_that_comes_back_is_the_same(messages: list[Any], fields: dict[str, Any]) -> None:
    given_ = c_request(*messages, **fields)
    returned = kept(given_)
    assert _flat(returned.pop("messages")) == _flat(given_.pop("messages"))
    assert returned == given_
