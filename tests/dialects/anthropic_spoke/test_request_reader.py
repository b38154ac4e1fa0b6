"""What a client of this dialect asks, and where it is told that it asks wrongly (wire-contract A.1.3)."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from lurus.routing.v1 import chat_pb2
from lurus.routing.v1.chat_pb2 import ChatThinking, StreamChatRequest
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import InvalidRequest, Untranslatable
from lurus_dialects import envelope
from lurus_dialects.anthropic import request_reader
from lurus_dialects.translation import Losses
from tests.dialects.anthropic_spoke.hub import read
from tests.dialects.anthropic_spoke.request_maker import RequestMaker

ODD: list[Any] = [3, -1, 1.5, True, "x", "", [], [3], ["x"], {}, {"type": 3}, {"type": "x"}, 10**400]
KNOWN: dict[str, Any] = {
    "model": "m",
    "max_tokens": 100,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a", "citations": [{"type": "c"}]},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                {
                    "type": "document",
                    "title": "t",
                    "source": {"type": "content", "content": [{"type": "text", "text": "p"}]},
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "d"},
                {"type": "tool_use", "id": "1", "name": "n", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "1",
                    "content": [{"type": "text", "text": "r"}],
                    "is_error": False,
                }
            ],
        },
        {"role": "system", "content": "later"},
    ],
    "tools": [
        {"name": "n", "description": "d", "input_schema": {"type": "object"}, "strict": True},
        {"type": "bash_1", "name": "bash"},
    ],
    "tool_choice": {"type": "tool", "name": "n", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 10000, "display": "omitted"},
    "output_config": {"effort": "max", "format": {"type": "json_schema", "schema": {}}},
    "metadata": {"user_id": "u"},
    "stop_sequences": ["X"],
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "service_tier": "auto",
    "cache_control": {"type": "ephemeral"},
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Gives the way to each value inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield (*path, name)
        yield from places(inner, (*path, name))


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    body = copy.deepcopy(KNOWN)
    place: Any = body
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return body


def kind(block: chat_pb2.ChatBlock) -> str:
    return block.WhichOneof("block") or ""


class TestRefusals:
    @pytest.mark.parametrize("path", list(places(KNOWN)), ids=lambda path: ".".join(map(str, path)))
    def test_a_value_of_any_type_anywhere_is_read_or_named(self, path: tuple[Any, ...]) -> None:
        for value in [*ODD, None]:
            try:
                hub = read(changed(path, value))
            except InvalidRequest as error:
                assert error.message.startswith(f"{error.metadata['param']}: ")
            except Untranslatable as error:
                assert error.metadata["param"] == "max_tokens"
            else:
                assert isinstance(hub, StreamChatRequest)

    @pytest.mark.parametrize(
        ("path", "value", "named"),
        [
            (("model",), 3, "model"),
            (("model",), "", "model"),
            (("max_tokens",), -1, "max_tokens"),
            (("max_tokens",), "9", "max_tokens"),
            (("messages",), [], "messages"),
            (("messages",), {}, "messages"),
            (("messages", 1), 3, "messages[1]"),
            (("messages", 0, "role"), "tool", "messages[0].role"),
            (("messages", 0, "content"), None, "messages[0].content"),
            (("messages", 0, "content", 0, "text"), 3, "messages[0].content[0].text"),
            (("messages", 0, "content", 1, "source"), None, "messages[0].content[1].source"),
            (("messages", 1, "content", 2, "input"), [], "messages[1].content[2].input"),
            (
                ("messages", 2, "content", 0, "content", 0, "type"),
                None,
                "messages[2].content[0].content[0].type",
            ),
            (("tools", 0, "name"), None, "tools[0].name"),
            (("tools", 0, "input_schema"), 3, "tools[0].input_schema"),
            (("tool_choice", "type"), "x", "tool_choice.type"),
            (("thinking",), 3, "thinking"),
            (("output_config", "effort"), 3, "output_config.effort"),
            (("temperature",), -0.1, "temperature"),
            (("top_p",), 1.1, "top_p"),
            (("system",), [{"type": "image", "source": {"type": "url", "url": "u"}}], "system"),
        ],
    )
    def test_the_fault_is_named_by_its_path(self, path: tuple[Any, ...], value: Any, named: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            read(changed(path, value))
        assert caught.value.metadata["param"] == named

    @pytest.mark.parametrize(
        "body", [b"", b"x", b"[]", b"3", b'{"model":"m"', b'{"a":"\xff"}', b"[" * 100_000]
    )
    def test_what_is_no_object_is_refused(self, body: bytes) -> None:
        with pytest.raises(InvalidRequest):
            read(body)

    @pytest.mark.parametrize("depth", [100, 100_000])
    def test_deep_nesting_is_no_crash(self, depth: int) -> None:
        deep = b'{"a":' * depth + b"1" + b"}" * depth
        for place in (b'"x":' + deep + b',"messages":[{"role":"user","content":"a"}]', b'"messages":' + deep):
            try:
                read(b'{"model":"m",' + place + b"}")
            except InvalidRequest:
                continue

    def test_T15_a_request_for_no_output_is_for_its_own_dialect_only(self) -> None:
        with pytest.raises(Untranslatable):
            read(changed(("max_tokens",), 0))

    def test_a_count_of_tokens_needs_no_limit(self) -> None:
        assert read({"model": "m", "messages": [{"role": "user", "content": "a"}]}).max_output_tokens == 0


class TestReading:
    def test_a_request(self) -> None:
        hub = read(KNOWN)
        assert hub.source_dialect == usage_pb2.DIALECT_ANTHROPIC
        assert [message.role for message in hub.messages] == [1, 2, 3, 2, 1]
        assert [message.source_path for message in hub.messages] == [
            "system",
            *(f"messages[{i}]" for i in range(4)),
        ]
        assert [kind(block) for block in hub.messages[2].blocks] == ["thinking", "thinking", "tool_call"]
        assert (
            hub.messages[3].blocks[0].tool_result.blocks[0].source_path == "messages[2].content[0].content[0]"
        )
        assert hub.messages[0].blocks[0].cache_hint.ttl == "1h"
        assert hub.has_parallel_tool_calls is False and hub.tool_choice.name == "n"
        assert hub.reasoning == chat_pb2.ChatReasoning(
            mode=chat_pb2.CHAT_REASONING_MODE_BUDGET, budget_tokens=10000, effort="max", summary="omitted"
        )
        assert (hub.end_user_id, hub.service_tier, hub.top_k) == ("u", "auto", 5)
        assert list(hub.vendor_fields) == []

    def test_Q06_arguments_are_as_the_client_wrote_them(self) -> None:
        text = '{"n":12345678901234567890,"s":"\\u00e9\\n"}'
        body = json.dumps(KNOWN).replace('{"a": 1}', text).encode()
        assert read(body).messages[2].blocks[2].tool_call.arguments.decode() == text

    def test_what_only_this_dialect_knows_has_its_path_for_a_name(self) -> None:
        more = {
            "safeguards": [1],
            "inference_geo": "us",
            "output_config": {"effort": "low", "task_budget": {}},
        }
        hub = read({**KNOWN, **more, "metadata": {"user_id": "u", "x": 1}})
        assert {field.name: field.json for field in hub.vendor_fields} == {
            "safeguards": b"[1]",
            "inference_geo": b'"us"',
            "output_config.task_budget": b"{}",
            "metadata.x": b"1",
        }

    def test_a_hosted_tool_is_chosen_by_its_type(self) -> None:
        hub = read({**KNOWN, "tool_choice": {"type": "tool", "name": "bash"}})
        assert (hub.tool_choice.name, hub.tool_choice.kind) == ("bash_1", chat_pb2.CHAT_TOOL_KIND_HOSTED)
        assert hub.tools[1].hosted.json == b'{"type": "bash_1", "name": "bash"}'

    def test_nothing_of_a_document_in_parts_is_lost(self) -> None:
        block = read(KNOWN).messages[1].blocks[2]
        assert (block.media.text, block.media.title) == ("p", "t")
        assert [field.name for field in block.vendor_fields] == ["source"]

    def test_many_requests_at_random_are_read(self) -> None:
        for seed in range(50):
            read(RequestMaker(seed).request())


class TestThinking:
    def block(self, block: dict[str, Any], losses: Losses | None = None) -> list[chat_pb2.ChatBlock]:
        return list(read(changed(("messages", 1, "content"), [block]), losses).messages[2].blocks)

    def test_Y15_an_envelope_is_opened(self) -> None:
        made = ChatThinking(
            dialect=usage_pb2.DIALECT_OPENAI_RESPONSES,
            provider_id="p",
            upstream_model="m",
            original=b'{"id":1}',
        )
        signature = envelope.seal(made)
        (block,) = self.block({"type": "thinking", "thinking": "hm", "signature": signature})
        made.text = "hm"
        assert block.thinking == made
        (redacted,) = self.block({"type": "redacted_thinking", "data": signature})
        assert redacted.thinking.is_redacted and redacted.thinking.original == b'{"id":1}'

    def test_an_envelope_that_cannot_be_opened_is_dropped(self) -> None:
        losses = Losses()
        assert self.block({"type": "thinking", "thinking": "hm", "signature": "lsw1.!"}, losses) == []
        assert losses.silent == ["thinking"]

    @pytest.mark.parametrize("signature", ["", "EqQB"])
    def test_the_vendor_s_own_block_is_kept_whole(self, signature: str) -> None:
        given = {"type": "thinking", "thinking": "", "signature": signature, "x": 1}
        (block,) = self.block(given)
        assert json.loads(block.thinking.original) == given
        assert (block.thinking.provider_id, block.thinking.dialect) == ("", usage_pb2.DIALECT_ANTHROPIC)


class TestPlainMessages:
    """The quick way and the thorough way read the same."""

    @pytest.mark.parametrize("seed", range(60))
    def test_both_ways_read_the_same(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        body = {**KNOWN, "messages": [*KNOWN["messages"], *RequestMaker(seed).request()["messages"]]}
        for message in body["messages"][-3:]:
            # Without what nobody knows, so that the quick way is taken.
            message.clear()
            message.update(plain(seed))
        text = json.dumps(body, separators=(",", ":")).encode()
        quick_losses, losses = Losses(), Losses()
        quick = read(text, quick_losses)
        monkeypatch.setattr(request_reader, "add_plain_message", lambda *_: False)
        assert read(text, losses) == quick
        assert losses.silent == quick_losses.silent

    def test_the_quick_way_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(request_reader, "_read_message", lambda *_: pytest.fail("the slow way"))
        for seed in range(60):
            read({"model": "m", "messages": [plain(seed)]})


def plain(seed: int) -> dict[str, Any]:
    """Returns a message of which everything is known."""
    text = {"type": "text", "text": f"a{seed}é"}
    cached = {**text, "cache_control": {"type": "ephemeral", **({"ttl": "1h"} if seed % 2 else {})}}
    sealed = envelope.seal(ChatThinking(dialect=usage_pb2.DIALECT_OPENAI_CHAT, provider_id="p"))
    blocks: list[dict[str, Any]] = [
        text,
        cached,
        {"type": "thinking", "thinking": "hm", "signature": ["", "Eq", sealed, "lsw1.!"][seed % 4]},
        {
            "type": "tool_use",
            "id": "1",
            "name": "n",
            "input": {"a": [1.10]},
            "cache_control": {"type": "ephemeral"},
        },
        {"type": "tool_result", "tool_use_id": "1", "content": "r", "is_error": True},
        {"type": "tool_result", "tool_use_id": "1", "content": [text, cached]},
        {"type": "tool_result", "tool_use_id": "1"},
    ]
    content: Any = blocks[seed % 7 :] if seed % 5 else "text"
    return {"role": ["user", "assistant", "system"][seed % 3], "content": content}
