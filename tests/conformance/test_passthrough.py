"""Requests that reach a provider of the client's own dialect as they were sent (wire-contract E.3)."""

import json
from typing import Any

import pytest
from tests.conformance.rig import MODEL_MARK, UPSTREAM_MODEL, Gateway, Provider
from tests.conformance.streams import C_USAGE, OUTPUT, begin, deltas, plain_body, whole
from tests.support import provider_streams as streams
from tests.support.scripted_upstream import plain

from lurus.routing.v1.chat_pb2 import ChatThinking
from lurus.usage.v1 import usage_pb2
from lurus_dialects import envelope

pytestmark = pytest.mark.anyio

UPSTREAM = UPSTREAM_MODEL.encode()
ODD_BODY = (
    b'{ "max_tokens":\t64 ,"future_0" : 1e3,"future_1":{"a":[1.0,{"future_3":12345678901234567890}]},\r\n'
    b'  "model"  :  "$MODEL", "temperature": 1.0, "messages":[ {"role":"user","future_2":null,\n'
    b'"content":[{"type":"text","text":"\\u00e9\\u0000\\/\\ud83d\\ude00 \xe4\xb8\x96"}]}],'
    b'"metadata":{"user_id":"a","user_id":"b"} , "future_1":-0.0E+01 }\n'
)
SIGNATURE = "EqQBCkYIBBgCKkDh" + "x" * 300


async def relayed(gateway: Gateway, dialect: str, body: bytes) -> bytes:
    """Sends a body, and returns what the provider got."""
    told = await gateway.given(dialect, dialect, body=plain_body(dialect), request=body)
    assert told.status == 200, told.body
    return told.upstream.body


def message_body(*messages: dict[str, Any], **more: Any) -> bytes:
    """A request of Anthropic, without spaces."""
    body = {"model": MODEL_MARK.decode(), "max_tokens": 9, "messages": list(messages), **more}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


class TestBodies:
    @pytest.mark.parametrize("dialect", ["A", "C", "R"])
    async def test_P01_only_the_name_of_the_model_changes(self, gateway: Gateway, dialect: str) -> None:
        body = ODD_BODY
        if dialect == "R":
            body = body.replace(b'"messages"', b'"input"').replace(b'"text","text"', b'"input_text","text"')
        assert await relayed(gateway, dialect, body) == body.replace(MODEL_MARK, UPSTREAM)

    async def test_P01_a_name_spelled_with_escapes_is_replaced(self, gateway: Gateway) -> None:
        provider = await gateway.default("A")
        spelled = provider.model.replace("c", "\\u0063", 1).encode()
        body = ODD_BODY.replace(MODEL_MARK, spelled)
        assert spelled in body and b"\\u0063onf" in body
        assert await relayed(gateway, "A", body) == body.replace(spelled, UPSTREAM)

    async def test_P02_the_name_elsewhere_stays(self, gateway: Gateway) -> None:
        text = '{"model": "$MODEL", "x": "model"}'
        body = message_body(
            {"role": "user", "content": text},
            fallbacks=[{"model": "$MODEL"}],
            metadata={"model": "$MODEL"},
        )
        alias = (await gateway.default("A")).model.encode()
        sent = body.replace(MODEL_MARK, alias)
        expected = sent.replace(b'{"model":"' + alias, b'{"model":"' + UPSTREAM, 1)
        assert expected.count(alias) == 3
        assert await relayed(gateway, "A", body) == expected

    @pytest.mark.parametrize("dialect", ["A", "C", "R"])
    async def test_P03_without_an_alias_nothing_changes(self, gateway: Gateway, dialect: str) -> None:
        provider = await gateway.add(dialect)
        same = await gateway.add(
            dialect, model=f"{provider.model}-x", supported_models=[f"{provider.model}-x"], model_mappings=[]
        )
        same.upstream.script = plain(plain_body(dialect))
        body = ODD_BODY.replace(MODEL_MARK, same.model.encode())
        if dialect == "R":
            body = body.replace(b'"messages"', b'"input"').replace(b'"text","text"', b'"input_text","text"')
        assert (await gateway.ask(dialect, same, body)).upstream.body == body

    async def test_P04_system_blocks_keep_order_count_and_bytes(self, gateway: Gateway) -> None:
        attribution = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.330; cch=1;"}
        cached = {"type": "text", "text": "You are…", "cache_control": {"type": "ephemeral"}}
        body = message_body({"role": "user", "content": "hi"}, system=[attribution, cached, cached])
        assert await relayed(gateway, "A", body) == body.replace(MODEL_MARK, UPSTREAM)

    async def test_P05_thinking_is_kept(self, gateway: Gateway) -> None:
        thought = [
            {"type": "thinking", "thinking": "", "signature": SIGNATURE},
            {"type": "redacted_thinking", "data": SIGNATURE[::-1]},
            {"type": "thinking", "thinking": "Hm", "signature": ""},
            {"type": "text", "text": "so"},
        ]
        body = message_body(
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": thought},
            {"role": "user", "content": "go on"},
        )
        assert await relayed(gateway, "A", body) == body.replace(MODEL_MARK, UPSTREAM)

    async def test_P06_unknown_items_and_large_encrypted_ones_are_kept(self, gateway: Gateway) -> None:
        items = [
            {"type": "future_item", "payload": {"a": [1, 2]}},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA" + "x" * 100_000},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        ]
        given = {
            "model": "$MODEL",
            "input": items,
            "include": ["reasoning.encrypted_content", "future.thing"],
        }
        body = json.dumps({**given, "store": False}).encode()
        assert await relayed(gateway, "R", body) == body.replace(MODEL_MARK, UPSTREAM)

    async def test_P07_a_refusal_keeps_its_status_and_bytes(self, gateway: Gateway) -> None:
        text = "thinking.adaptive.display: Extra inputs are not permitted"
        error = b'"error":{"type":"invalid_request_error","message":"%b"}' % text.encode()
        body = b'{"type":"error", ' + error + b',"request_id":"req_up"}\n'
        for status in (400, 404, 413, 422):
            told = await gateway.given("A", "A", body=body.decode(), status=status)
            assert (told.status, told.body) == (status, body)
            assert told.header("content-type") == "application/json"
            assert (await told.record()).terminal == usage_pb2.TERMINAL_UPSTREAM_ERROR

    @pytest.mark.parametrize("kind", ["thinking", "redacted_thinking"])
    async def test_P08_thinking_that_another_provider_made_is_cut_out(
        self, gateway: Gateway, kind: str
    ) -> None:
        sealed = envelope.seal(
            ChatThinking(
                original=b'{"type":"reasoning","summary":[]}',
                dialect=usage_pb2.DIALECT_OPENAI_RESPONSES,
                provider_id="another",
                upstream_model="gpt-x",
            )
        )
        ours = f'{{"type":"thinking", "thinking":"Hm","signature":"{sealed}"}}'
        if kind == "redacted_thinking":
            ours = f'{{ "type":"redacted_thinking","data":"{sealed}"}}'
        kept = f'{{"type":"thinking","thinking":"","signature":"{SIGNATURE}"}}'
        body = (
            '{"model":"$MODEL","max_tokens":9, "messages":[{"role":"user","content":"hi"},'
            f' {{"role":"assistant","content":[ {kept} , {ours}, {{"type":"text","text":"so"}}]}},'
            '{"role":"user","content":"go"}]}'
        ).encode()
        found = await relayed(gateway, "A", body)
        assert b"lsw1." not in found
        given = json.loads(body.replace(MODEL_MARK, UPSTREAM))
        del given["messages"][1]["content"][1]
        assert json.loads(found) == given
        # All bytes that are left are the client's own, in their order.
        head, _, tail = body.replace(MODEL_MARK, UPSTREAM).partition(ours.encode())
        assert found.startswith(head.rstrip(b", ")) and found.endswith(tail.lstrip(b", "))


class TestStreamOptions:
    async def asked(self, gateway: Gateway, events: list[bytes], quirks: Any = None, **request: Any) -> Any:
        return await gateway.given(
            "C", "C", events=events, quirks=quirks, request={"stream": True, **request}
        )

    async def test_P09_usage_is_asked_for_and_hidden(self, gateway: Gateway) -> None:
        sent = whole("C", "one", "two")
        told = await self.asked(gateway, sent)
        assert told.upstream.json()["stream_options"] == {"include_usage": True}
        usage_chunk = streams.c_chunk(usage=C_USAGE)
        assert usage_chunk in sent
        assert told.body == b"".join(sent).replace(usage_chunk, b"")
        assert told.events[-1].data == "[DONE]"
        record = await told.record()
        assert (record.tokens.output, record.token_source) == (OUTPUT, usage_pb2.TOKEN_SOURCE_PROVIDER)

    async def test_P10_other_options_of_the_client_are_kept(self, gateway: Gateway) -> None:
        sent = whole("C", "one")
        options = {"include_usage": False, "include_obfuscation": False}
        told = await self.asked(gateway, sent, stream_options=options)
        assert told.upstream.json()["stream_options"] == {"include_usage": True, "include_obfuscation": False}
        assert told.body == b"".join(sent).replace(streams.c_chunk(usage=C_USAGE), b"")
        assert (await told.record()).tokens.output == OUTPUT

    async def test_P11_usage_that_was_asked_for_is_relayed(self, gateway: Gateway) -> None:
        sent = [streams.c_chunk({"content": "x"}, usage=None), *whole("C", "one")]
        told = await self.asked(gateway, sent, stream_options={"include_usage": True})
        assert told.body == b"".join(sent)
        assert told.upstream.json()["stream_options"] == {"include_usage": True}
        assert (await told.record()).tokens.output == OUTPUT

    async def test_P12_usage_beside_a_choice_is_relayed_and_metered(self, gateway: Gateway) -> None:
        last = streams.c_chunk({}, usage=C_USAGE)
        sent = [*begin("C"), *deltas("C", "one"), streams.c_chunk({}, "stop"), last, streams.DONE]
        told = await self.asked(gateway, sent)
        assert told.body == b"".join(sent)
        record = await told.record()
        assert (record.tokens.output, record.token_source) == (OUTPUT, usage_pb2.TOKEN_SOURCE_PROVIDER)

    async def test_P13_null_usage_is_relayed(self, gateway: Gateway) -> None:
        sent = [streams.c_chunk({"content": word}, usage=None) for word in ("one", "two")]
        sent += [streams.c_chunk({}, "stop", usage=None), streams.c_chunk(usage=None), streams.DONE]
        told = await self.asked(gateway, sent)
        assert told.body == b"".join(sent)

    async def test_P14_a_provider_without_the_option_is_not_asked(self, gateway: Gateway) -> None:
        sent = [*begin("C"), *deltas("C", "one two three " * 20), streams.c_chunk({}, "stop"), streams.DONE]
        told = await self.asked(gateway, sent, quirks={"no_stream_options": True})
        assert told.body == b"".join(sent)
        assert "stream_options" not in told.upstream.json()
        record = await told.record()
        assert record.token_source == usage_pb2.TOKEN_SOURCE_ESTIMATED
        assert record.tokens.output > 20 and record.tokens.input > 0


class TestAffinity:
    async def three(self, gateway: Gateway) -> list[Provider]:
        first = await gateway.add("R")
        providers = [first, *[await gateway.add("R", model=first.model) for _ in range(2)]]
        for number, provider in enumerate(providers):
            provider.upstream.script = plain(
                {**plain_body("R"), "id": f"resp_{number}_{provider.provider_id}"}
            )
        return providers

    async def test_P15_an_answer_is_continued_where_it_was_made(self, gateway: Gateway) -> None:
        providers = await self.three(gateway)
        told = await gateway.ask("R", providers[0], {"input": "first"})
        maker = next(provider for provider in providers if provider.upstream.requests)
        for number in range(12):
            request = {
                "previous_response_id": told.json()["id"],
                "input": f"more {number}",
                # Nothing else leads to the same provider.
                "prompt_cache_key": f"key-{number}",
                "instructions": f"be {number}",
            }
            assert (await gateway.ask("R", providers[0], request)).status == 200
        assert len(maker.upstream.requests) == 13
        assert sum(len(provider.upstream.requests) for provider in providers) == 13

    async def test_P15_when_its_maker_is_gone_nobody_else_is_asked(self, gateway: Gateway) -> None:
        providers = await self.three(gateway)
        told = await gateway.ask("R", providers[0], {"input": "first"})
        maker = next(provider for provider in providers if provider.upstream.requests)
        await gateway.remove(maker)
        request = {"previous_response_id": told.json()["id"], "input": "more"}
        refused = await gateway.ask("R", providers[0], request)
        assert refused.status == 400
        error = refused.json()["error"]
        assert error["code"] == "previous_response_not_found"
        assert error["param"] == "previous_response_id"
        assert refused.upstreams == []

    async def test_P15_an_answer_of_another_account_is_not_continued(self, gateway: Gateway) -> None:
        providers = await self.three(gateway)
        told = await gateway.ask("R", providers[0], {"input": "first"})
        _, key = await gateway.account()
        request = {"previous_response_id": told.json()["id"], "input": "more"}
        refused = await gateway.ask("R", providers[0], request, [f"authorization: Bearer {key}"])
        assert refused.status == 400
        assert refused.json()["error"]["code"] == "previous_response_not_found"
