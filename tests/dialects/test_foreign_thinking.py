"""Our envelopes are cut out of a client's bytes; nothing else of them changes (P08)."""

import json

import pytest

from lurus.routing.v1.chat_pb2 import ChatThinking
from lurus.usage.v1 import usage_pb2
from lurus_dialects.dialect import Dialect
from lurus_dialects.envelope import seal
from lurus_dialects.foreign_thinking import without_foreign_thinking

A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES
ORIGINAL = b'{"type": "thinking", "thinking": "hm",  "signature": "genuine"}'


def sealed(dialect: int = usage_pb2.DIALECT_OPENAI_RESPONSES, provider: str = "other") -> str:
    thinking = ChatThinking(
        original=ORIGINAL,
        dialect=dialect,
        provider_id=provider,
        upstream_model="up",  # type: ignore[arg-type]
    )
    return seal(thinking)


def block(signature: str) -> str:
    return f'{{ "type":"thinking","thinking":"","signature":"{signature}" }}'


TEXT = '{"type":"text", "text":"\\u00e9 lsw1.nothing", "n":1.0}'


def cleaned(body: str, dialect: Dialect = A) -> str:
    return without_foreign_thinking(dialect, body.encode(), "mine", "up").decode()


HISTORY = """{"x":1e3, "messages" : [ {"role":"user","content":"hi"}, {"role":"assistant",
"content": [ CONTENT ],"z":0} ,{"role":"user","content":[]} ], "model":"m"}"""


def history(*blocks: str) -> str:
    return HISTORY.replace("CONTENT", " ,\n".join(blocks))


class TestMessages:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ((block(sealed()), TEXT), (TEXT,)),
            ((TEXT, block(sealed())), (TEXT,)),
            ((TEXT, block(sealed()), TEXT), (TEXT, TEXT)),
            ((block(sealed()), block(sealed()), TEXT, block("genuine")), (TEXT, block("genuine"))),
            ((TEXT, '{"type":"redacted_thinking","data":"' + sealed() + '"}'), (TEXT,)),
            ((TEXT, block("lsw1.not an envelope")), (TEXT,)),
        ],
    )
    def test_exactly_such_blocks_are_removed(self, before: tuple[str, ...], after: tuple[str, ...]) -> None:
        assert cleaned(history(*before)) == history(*after)

    def test_the_maker_gets_its_own_back(self) -> None:
        own = sealed(usage_pb2.DIALECT_ANTHROPIC, "mine")
        assert cleaned(history(block(own), TEXT)) == history(ORIGINAL.decode(), TEXT)

    def test_a_message_of_nothing_else_goes_as_a_whole(self) -> None:
        body = json.loads(cleaned(history(block(sealed()))))
        assert [message["role"] for message in body["messages"]] == ["user", "user"]

    def test_what_has_none_is_the_same_object(self) -> None:
        body = history(TEXT, block("genuine")).replace("lsw1.nothing", "").encode()
        assert without_foreign_thinking(A, body, "mine", "up") is body

    @pytest.mark.parametrize(
        "body",
        [
            '{"messages":"lsw1."}',
            '{"messages":["lsw1.",1,null,[]]}',
            '{"messages":[{"content":"lsw1."},{"content":{"signature":"lsw1."}}]}',
            '{"messages":[{"content":["lsw1.",{"signature":1,"data":["lsw1."]}]}]}',
            '{"other":["lsw1."]}',
            '{"messages":[]  ,"x":"lsw1."}',
        ],
    )
    def test_other_shapes_pass_as_they_are(self, body: str) -> None:
        assert cleaned(body) == body


class TestItems:
    def test_foreign_reasoning_is_removed_and_own_comes_back(self) -> None:
        item = '{"type":"reasoning","summary":[],"encrypted_content":"SEALED"}'
        foreign, own = (item.replace("SEALED", text) for text in (sealed(), sealed(provider="mine")))
        body = '{"input":[{"a":1.10}, FOREIGN,OWN ,{"b":2}]}'
        given = body.replace("FOREIGN", foreign).replace("OWN", own)
        assert cleaned(given, R) == body.replace(" FOREIGN,OWN", ORIGINAL.decode())

    def test_chat_has_none(self) -> None:
        body = '{"messages":[{"content":"lsw1."}]}'
        assert cleaned(body, C) == body
