"""What routing reads of a request, and the two edits that change nothing else."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lurus_common.errors import InvalidRequest
from lurus_dialects.dialect import Dialect
from lurus_dialects.request import peek, request_include_usage, splice_model

A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES

TURNS: dict[Dialect, dict[str, Any]] = {
    A: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
    C: {"messages": [{"role": "user", "content": "hi"}]},
    R: {"input": "hi"},
}


def request(dialect: Dialect, **fields: object) -> bytes:
    given = {"model": "alias", **TURNS[dialect], **fields}
    return json.dumps({name: value for name, value in given.items() if value is not ...}).encode()


def refusal(dialect: Dialect, body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        peek(dialect, body)
    return caught.value


class TestPeek:
    @pytest.mark.parametrize("dialect", list(Dialect))
    def test_defaults(self, dialect: Dialect) -> None:
        body = request(dialect)
        found = peek(dialect, body)
        assert (found.model, found.is_streaming, found.has_tools, found.asks_for_usage) == (
            "alias",
            False,
            False,
            False,
        )
        assert found.max_tokens == (100 if dialect is A else None)
        assert found.body_bytes == len(body)
        assert found.estimated_input_tokens() == -(-len(body) // 4)

    def test_session_hints(self) -> None:
        assert peek(A, request(A, metadata={"user_id": "u_1"})).user_id == "u_1"
        assert peek(C, request(C, prompt_cache_key="k", metadata={"user_id": "x"})).user_id == ""
        assert peek(C, request(C, prompt_cache_key="k")).prompt_cache_key == "k"
        assert peek(R, request(R, previous_response_id="resp_1")).previous_response_id == "resp_1"
        thread = {"type": "continue", "previous_message_id": "msg_1"}
        assert peek(A, request(A, thread=thread)).previous_response_id == "msg_1"

    def test_token_limits_of_openai_may_be_null_and_have_two_names(self) -> None:
        assert peek(C, request(C, max_tokens=None)).max_tokens is None
        assert peek(C, request(C, max_tokens=5, max_completion_tokens=7)).max_tokens == 7
        assert peek(R, request(R, max_output_tokens=9)).max_tokens == 9

    def test_anthropic_may_ask_for_no_output_to_warm_the_cache(self) -> None:
        assert peek(A, request(A, max_tokens=0)).max_tokens == 0

    def test_responses_without_input_need_something_that_stands_in(self) -> None:
        assert peek(R, request(R, input=..., previous_response_id="resp_1")).model == "alias"
        assert refusal(R, request(R, input=...)).metadata["param"] == "input"

    def test_prefix_is_the_same_on_every_turn_and_differs_between_agents(self) -> None:
        def prefix(dialect: Dialect, **fields: object) -> bytes:
            return peek(dialect, request(dialect, **fields)).prefix()

        first = [{"role": "system", "content": "s"}]
        assert prefix(A, system="s", tools=[{"name": "t"}]) == b'"s"\n[{"name": "t"}]'
        assert prefix(C, messages=first) == prefix(C, messages=[*first, {"role": "user", "content": "x"}])
        assert prefix(R, instructions="a") != prefix(R, instructions="b")


class TestBadInput:
    """Reliability §10. No message quotes the body."""

    @pytest.mark.parametrize("body", [b"", b"  \n", b"null", b"[]", b'"x"', b"3"])
    def test_b1_not_an_object(self, body: bytes) -> None:
        refusal(C, body)

    @pytest.mark.parametrize(
        ("body", "offset"),
        [
            (b'{"model":"secret', 16),
            (b'{"model":"secret",}', 18),
            (b'{"model":"secret"} x', 20),
            (b'{"model":"sec\x01ret"}', 13),
            (b'{"model":tru}', 10),
            (b"\xff\xfe{\0}\0", 0),
            (b'\xef\xbb\xbf{"model":"secret"}', 0),
            (b'{"model":"sec\xffret"}', 13),
            (b'{"x":"\xc0\xaf","model":"secret"}', 6),
        ],
    )
    def test_b2_b4_broken_text_is_located_and_not_quoted(self, body: bytes, offset: int) -> None:
        error = refusal(C, body)
        assert f"(byte {offset})" in error.message
        assert error.metadata["byte"] == str(offset)
        assert "secret" not in error.message

    @pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"+1", b"01", b".5"])
    def test_b3_numbers_that_json_does_not_have(self, number: bytes) -> None:
        refusal(C, request(C)[:-1] + b',"temperature":' + number + b"}")

    @pytest.mark.parametrize("number", [b"1e999", b"9" * 5000, b"1.10", b"12345678901234567890"])
    def test_numbers_that_nobody_interprets_keep_their_spelling(self, number: bytes) -> None:
        body = request(C)[:-1] + b',"seed":' + number + b"}"
        assert splice_model(body, peek(C, body), "m").endswith(b',"seed":' + number + b"}")

    @pytest.mark.parametrize("text", [b"\\ud800", b"\\ude00", b"\\ud800 and so on", b"\\ud800\\u0041"])
    def test_b4_lone_surrogates(self, text: bytes) -> None:
        refusal(C, request(C)[:-1] + b',"user":"' + text + b'"}')

    @pytest.mark.parametrize("depth", [2000, 100_000])
    @pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
    def test_b5_depth_bombs_are_refused_at_once(self, depth: int, opening: bytes, closing: bytes) -> None:
        bomb = opening * depth + b"1" + closing * depth
        for value in (bomb, b"1," * 2 + b'"x":' + bomb, b'1,"x":' + bomb):
            started = time.process_time()
            refusal(C, request(C)[:-1] + b',"x":' + value + b"}")
            assert time.process_time() - started < 0.25

    @pytest.mark.parametrize(
        "limit", ["-1", "1.5", '"10"', "9" * 5000, str(2**63), str(2**64), "1e3", "true", "[1]", "-0.0"]
    )
    @pytest.mark.parametrize(
        ("dialect", "name"),
        [(A, "max_tokens"), (C, "max_tokens"), (C, "max_completion_tokens"), (R, "max_output_tokens")],
    )
    def test_b6_b7_limits(self, dialect: Dialect, name: str, limit: str) -> None:
        body = request(dialect, max_tokens=...)[:-1] + f',"{name}":{limit}}}'.encode()
        assert refusal(dialect, body).metadata["param"] == name

    def test_b7_anthropic_requires_a_limit_and_openai_refuses_zero(self) -> None:
        assert refusal(A, request(A, max_tokens=...)).metadata["param"] == "max_tokens"
        assert refusal(A, request(A, max_tokens=None)).metadata["param"] == "max_tokens"
        assert refusal(C, request(C, max_tokens=0)).metadata["param"] == "max_tokens"

    @pytest.mark.parametrize("second", [b'"model":"b"', b'"mod\\u0065l":"b"', b'"model" : "alias"'])
    def test_b8_two_models_are_refused(self, second: bytes) -> None:
        assert refusal(C, request(C)[:-1] + b"," + second + b"}").metadata["param"] == "model"
        assert refusal(C, b"{" + second + b"," + request(C)[1:]).metadata["param"] == "model"

    @pytest.mark.parametrize(
        "model", [..., None, "", 3, [], {}, "m" * 10_000, "a\0b", "a\r\nb", "a\u2028b", "a\x7fb"]
    )
    def test_b9_model(self, model: object) -> None:
        error = refusal(C, request(C, model=model))
        assert error.metadata["param"] == "model"
        assert error.message.isprintable()

    def test_b9_odd_but_printable_names_are_for_the_catalog(self) -> None:
        for model in ("../../etc/passwd", "gpt\u20114", "сlaude", "anthropic/claude-*"):
            assert peek(C, request(C, model=model)).model == model

    @pytest.mark.parametrize("turns", [..., None, [], "", {}, 3, "  ", "text"])
    def test_b11_messages(self, turns: object) -> None:
        for dialect in (A, C):
            assert refusal(dialect, request(dialect, messages=turns)).metadata["param"] == "messages"

    @pytest.mark.parametrize("turns", [None, [], "", {}, 3])
    def test_b11_input(self, turns: object) -> None:
        assert refusal(R, request(R, input=turns)).metadata["param"] == "input"

    def test_more_fields_than_any_request_has_are_refused_before_they_cost_much(self) -> None:
        many = b",".join(b'"a%d":1' % i for i in range(1001))
        refusal(C, b"{" + many + b"," + request(C)[1:])
        refusal(C, b'{"x":1' + b',"x":1' * 1001 + b"," + request(C)[1:])

    @pytest.mark.parametrize(
        ("name", "value"),
        [("stream", "true"), ("stream", 1), ("metadata", [1]), ("thread", 3)],
    )
    def test_wrong_types(self, name: str, value: object) -> None:
        assert refusal(A, request(A, **{name: value})).metadata["param"] == name

    def test_wrong_types_of_stream_options(self) -> None:
        assert refusal(C, request(C, stream_options="x")).metadata["param"] == "stream_options"
        odd = refusal(C, request(C, stream_options={"include_usage": 1}))
        assert odd.metadata["param"] == "stream_options.include_usage"

    def test_fields_of_other_dialects_are_the_providers_to_refuse(self) -> None:
        assert peek(R, request(R, metadata="x", thread=3)).model == "alias"
        assert peek(A, request(A, stream_options="x", prompt_cache_key=7)).prompt_cache_key == ""


def spliced(body: bytes, model: str, dialect: Dialect = C) -> bytes:
    found = peek(dialect, body)
    return splice_model(body, found, model)


class TestSpliceModel:
    def test_defect_n_only_the_bytes_of_the_model_change(self) -> None:
        body = (
            b' {\n"messages" : [ {"role":"user","content":"say \\"model\\": \\"alias\\" '
            b'\\u00e9 \xc3\xa9"} ],\r\n'
            b'"temperature":1.0, "top_p":1e3,"seed":12345678901234567890,"fallbacks":[{"model":"alias"}],'
            b'\t"model" :  "alias" , "x":{"model":"alias","y":{"model":1}}, "x":2,"stream":true } \n'
        )
        assert spliced(body, 'up"stream') == body.replace(b':  "alias" ,', b':  "up\\"stream" ,')

    def test_p03_the_same_name_is_the_same_object(self) -> None:
        body = request(C)
        assert spliced(body, "alias") is body

    def test_a_value_with_escapes_is_replaced_whole(self) -> None:
        body = request(C).replace(b'"alias"', b'"al\\u0069as"')
        assert peek(C, body).model == "alias"
        assert spliced(body, "b") == request(C, model="b")

    def test_a_repeated_field_cannot_hide_the_model(self) -> None:
        decoy = b'"x":"1,\\"model\\":\\"decoy\\",","x":1'
        for body in (b"{" + decoy + b"," + request(C)[1:], request(C)[:-1] + b"," + decoy + b"}"):
            assert spliced(body, "b") == body.replace(b'"alias"', b'"b"')

    def test_images_are_untouched(self) -> None:
        image = {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": "iVBOR" * 9000},
        }
        body = request(A, messages=[{"role": "user", "content": [image]}])
        assert spliced(body, "b", A) == body.replace(b'"alias"', b'"b"')

    json_values = st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(alphabet=st.characters(exclude_categories=["Cs"]))
        | st.sampled_from(['"model":"alias"', '\\"model', "model", "}", "]", ",", "\\"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["model", "a", 'q"', "\\", "é"]), inner, max_size=3)
        ),
        max_leaves=12,
    )

    @settings(max_examples=150, deadline=None)
    @given(
        before=st.dictionaries(
            st.sampled_from(["a", "tools", 'q"', "\\", "é", "Model"]), json_values, max_size=3
        ),
        after=st.dictionaries(st.sampled_from(["b", "x\n", "models", "model "]), json_values, max_size=3),
        model=st.text(alphabet=st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=9),
        separators=st.sampled_from([(",", ":"), (" , ", " : "), ("\n,\t", "\r\n:  ")]),
        is_ascii=st.booleans(),
    )
    def test_anything_else_stays(
        self,
        before: dict[str, Any],
        after: dict[str, Any],
        model: str,
        separators: tuple[str, str],
        is_ascii: bool,
    ) -> None:
        def dumped(name: str) -> bytes:
            value = {**before, "messages": [1], "model": name, **after}
            return json.dumps(value, separators=separators, ensure_ascii=is_ascii).encode()

        body = dumped(model)
        found = peek(C, body)
        assert found.model == model
        result = splice_model(body, found, "upstream/model-1")
        assert result == dumped("upstream/model-1")
        assert json.loads(result) == {**json.loads(body), "model": "upstream/model-1"}


class TestRequestIncludeUsage:
    """B6, P09–P11. Nothing but the option changes."""

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (b"", b'"stream_options":{"include_usage":true}'),
            (b'"stream_options":null', b'"stream_options":{"include_usage":true}'),
            (b'"stream_options" : { }', b'"stream_options" : { "include_usage":true}'),
            (
                b'"stream_options":{"include_usage":false,"include_obfuscation":false}',
                b'"stream_options":{"include_usage":true,"include_obfuscation":false}',
            ),
            (
                b'"stream_options":{ "include_obfuscation" : false }',
                b'"stream_options":{ "include_obfuscation" : false ,"include_usage":true}',
            ),
            (b'"stream_options":{"include_usage":null}', b'"stream_options":{"include_usage":true}'),
        ],
    )
    def test_the_option_is_set(self, options: bytes, expected: bytes) -> None:
        turns = b'{"model":"m", "messages":[ {"stream_options":null} ] ,"stream":true '
        separator = b"," if options else b""
        assert request_include_usage(turns + separator + options + b"} ") == turns + b"," + expected + b"} "

    def test_p11_nothing_is_done_for_a_client_that_asks_itself(self) -> None:
        body = request(C, stream=True, stream_options={"include_usage": True})
        assert peek(C, body).asks_for_usage
        assert request_include_usage(body) is body

    def test_it_follows_the_splice(self) -> None:
        body = request(C, stream_options={"include_obfuscation": False}, stream=True)
        result = json.loads(request_include_usage(spliced(body, "a-much-longer-name")))
        assert result["model"] == "a-much-longer-name"
        assert result["stream_options"] == {"include_obfuscation": False, "include_usage": True}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (rb'{"model":"m","messages":["\ud83d"]}', "is not valid JSON"),
        (rb'{"model":"m","messages":["\ud83d', "ends before its JSON does"),
        (rb'{"model":"m","messages":[1', "ends before its JSON does"),
    ],
)
def test_half_a_surrogate_pair_is_not_taken_for_a_cut_body(body: bytes, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        peek(Dialect.ANTHROPIC, body)
