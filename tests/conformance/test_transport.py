"""Transport, headers and endpoints (wire-contract E.2)."""

import asyncio
import base64
import gzip
import json
import time
import zlib
from collections.abc import Callable
from typing import Any

import anthropic
import brotli
import openai
import pytest
from backports import zstd
from tests.conformance.rig import MODEL_MARK, PATHS, SECRET, UPSTREAM_MODEL, Gateway, Provider, post_bytes
from tests.conformance.streams import (
    OUTPUT,
    begin,
    deltas,
    end,
    has_end,
    is_error,
    plain_body,
    text_in,
    whole,
)
from tests.support.raw_client import RawClient
from tests.support.scripted_upstream import Exchange, Script, ScriptedUpstream, plain, reset, stream

from lurus.usage.v1 import usage_pb2

pytestmark = pytest.mark.anyio

DIALECTS = pytest.mark.parametrize("dialect", ["A", "C", "R"])
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
}
CODINGS = pytest.mark.parametrize("coding", COMPRESS)
MIB = 2**20


def flushing(coding: str) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    """Returns what codes one event so that it can be read at once, and what ends the stream."""
    if coding == "br":
        br = brotli.Compressor()
        return lambda data: br.process(data) + br.flush(), br.finish
    if coding == "zstd":
        zs = zstd.ZstdCompressor()
        return lambda data: zs.compress(data, zs.FLUSH_BLOCK), zs.flush
    deflate = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
    return lambda data: deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH), deflate.flush


def error_in(body: Any) -> Any:
    """The error of an answer; fails if it is no error in any of the shapes."""
    assert isinstance(body["error"], dict) and body["error"]["message"]
    return body["error"]


def assert_shape(dialect: str, body: Any) -> None:
    """Fails unless an error body is in the dialect's shape."""
    error = error_in(body)
    if dialect == "A":
        assert body["type"] == "error" and body["request_id"].startswith("req_")
    else:
        assert set(error) == {"message", "type", "param", "code"}


async def with_alternative(gateway: Gateway, dialect: str, first: Script) -> tuple[Provider, Provider]:
    """A provider that fails so, and one that is asked after it and answers."""
    failing = await gateway.add(dialect, script=first, level=1)
    healthy = await gateway.add(dialect, model=failing.model, script=plain(plain_body(dialect)), level=2)
    return failing, healthy


class TestCodedAnswers:
    @CODINGS
    async def test_H01_a_coded_body_is_decoded_though_identity_was_asked(
        self, gateway: Gateway, coding: str
    ) -> None:
        body = json.dumps(plain_body("C", "hello " * 100)).encode()
        headers = {"content-encoding": coding}
        told = await gateway.given("C", "C", body=COMPRESS[coding](body), answer_headers=headers)
        assert told.status == 200
        assert told.body == body
        assert told.header("content-length") == str(len(body))
        assert not told.answer.has_header("content-encoding")
        assert told.upstream.header("accept-encoding") == "identity"
        assert (await told.record()).tokens.output == OUTPUT

    @CODINGS
    async def test_H01_a_coded_body_is_translated(self, gateway: Gateway, coding: str) -> None:
        body = COMPRESS[coding](json.dumps(plain_body("C", "hello")).encode())
        told = await gateway.given("A", "C", body=body, answer_headers={"content-encoding": coding})
        assert told.status == 200
        assert text_in("A", told.json()) == "hello"

    async def test_H01_a_coded_refusal_is_relayed_decoded(self, gateway: Gateway) -> None:
        body = (
            b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 2 > 1"}}'
        )
        told = await gateway.given(
            "A", "A", body=gzip.compress(body), status=400, answer_headers={"content-encoding": "gzip"}
        )
        assert (told.status, told.body) == (400, body)

    async def test_H02_a_coded_stream_that_is_cut_ends_in_an_error(self, gateway: Gateway) -> None:
        code, _ = flushing("br")
        told = await gateway.given(
            "A",
            "A",
            events=[code(b"".join([*begin("A"), *deltas("A", "one")]))],
            answer_headers={"content-encoding": "br"},
        )
        assert told.texts() == "one"
        assert is_error("A", told.events[-1])

    @CODINGS
    async def test_H02_a_coded_stream_is_decoded_event_by_event(self, gateway: Gateway, coding: str) -> None:
        code, finish = flushing(coding)
        goes_on = asyncio.Event()
        pieces = [code(b"".join([*begin("A"), *deltas("A", "one")])), goes_on]
        pieces += [code(b"".join([*deltas("A", "two"), *end("A")])) + finish()]
        provider = await gateway.default("A")
        provider.upstream.script = stream(pieces, headers={"content-encoding": coding})
        client = await gateway.open("A", provider, headers=["accept-encoding: gzip, br"])
        assert (await client.read_head()).status == 200
        answer = await client.read_until(lambda answer: b"one" in answer.body, 5)
        assert answer.body == b"".join([*begin("A"), *deltas("A", "one")])
        goes_on.set()
        answer = await client.read_all()
        assert answer.is_complete
        assert answer.body == b"".join(whole("A", "one", "two"))
        assert not answer.has_header("content-encoding")
        assert (await gateway.record(answer.header("request-id"))).tokens.output == OUTPUT


class TestBrokenAnswers:
    @DIALECTS
    @pytest.mark.row("B47")
    async def test_H03_a_short_body_is_a_502(self, gateway: Gateway, dialect: str) -> None:
        told = await gateway.given(dialect, dialect, script=short_body)
        assert told.status == 502
        assert_shape(dialect, told.json())

    @DIALECTS
    async def test_H03_and_another_provider_is_asked_first(self, gateway: Gateway, dialect: str) -> None:
        failing, healthy = await with_alternative(gateway, dialect, short_body)
        told = await gateway.ask(dialect, failing)
        assert told.status == 200
        assert text_in(dialect, told.json()) == "hello"
        assert (len(failing.upstream.requests), len(healthy.upstream.requests)) == (1, 1)

    @pytest.mark.parametrize("upstream", ["A", "C", "R"])
    @DIALECTS
    @pytest.mark.row("F8")
    async def test_H04_a_cut_stream_ends_in_an_error(
        self, gateway: Gateway, dialect: str, upstream: str
    ) -> None:
        events = [*begin(upstream), *deltas(upstream, "one ", "two ", "three")]
        told = await gateway.given(
            dialect, upstream, script=stream(events, is_ended=False), request={"stream": True}
        )
        assert told.status == 200
        assert told.texts() == "one two three"
        assert is_error(dialect, told.events[-1])
        assert not has_end(dialect, told.events)
        assert SECRET not in told.body.decode() and "127.0.0.1" not in told.body.decode()
        record = await told.record()
        assert record.terminal == usage_pb2.TERMINAL_TRUNCATED
        assert record.tokens.output > 0 and record.cost_nano_usd > 0
        assert record.token_source != usage_pb2.TOKEN_SOURCE_PROVIDER

    @DIALECTS
    @pytest.mark.row("B45")
    async def test_H05_an_error_object_instead_of_a_stream_is_an_error(
        self, gateway: Gateway, dialect: str
    ) -> None:
        error: dict[str, Any] = {
            "type": "server_error",
            "message": "broken",
            "code": "server_error",
            "param": None,
        }
        body = (
            {"type": "error", "error": {"type": "api_error", "message": "broken"}}
            if dialect == "A"
            else {"error": error}
        )
        for kind in ("application/json", "text/event-stream"):
            told = await gateway.given(
                dialect, dialect, body=body, request={"stream": True}, answer_headers={"content-type": kind}
            )
            assert told.status in (500, 502)
            assert told.header("content-type") == "application/json"
            # It is the provider's own, or one of ours.
            assert error_in(told.json())["type"] in ("api_error", "server_error")

    @pytest.mark.parametrize("is_streaming", [False, True], ids=["plain", "stream"])
    @DIALECTS
    @pytest.mark.row("B45")
    async def test_H06_a_page_is_not_shown(self, gateway: Gateway, dialect: str, is_streaming: bool) -> None:
        told = await gateway.given(
            dialect,
            dialect,
            body="<html><body>Welcome to nginx</body></html>",
            answer_headers={"content-type": "text/html"},
            request={"stream": is_streaming},
        )
        assert told.status == 502
        assert_shape(dialect, told.json())
        assert b"nginx" not in told.body and b"html" not in told.body

    @DIALECTS
    @pytest.mark.row("B45")
    async def test_H07_an_empty_stream_is_a_502(self, gateway: Gateway, dialect: str) -> None:
        told = await gateway.given(dialect, dialect, events=[])
        assert told.status == 502
        assert_shape(dialect, told.json())

    @DIALECTS
    async def test_H07_and_another_provider_is_asked_first(self, gateway: Gateway, dialect: str) -> None:
        failing, healthy = await with_alternative(gateway, dialect, stream([]))
        healthy.upstream.script = stream(whole(dialect, "one"))
        told = await gateway.ask(dialect, failing, is_streaming=True)
        assert told.status == 200
        assert told.texts() == "one" and has_end(dialect, told.events)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.row("B47")
    async def test_H08_a_redirect_is_not_followed(self, gateway: Gateway, status: int) -> None:
        async with ScriptedUpstream() as elsewhere:
            location = {"location": f"{elsewhere.url}/v1/messages"}
            told = await gateway.given("A", "A", body={}, status=status, answer_headers=location)
            assert told.status == 502
            assert_shape("A", told.json())
            assert elsewhere.requests == []
        assert not told.answer.has_header("location")
        assert str(elsewhere.port).encode() not in told.body

    async def test_a_reset_before_the_head_is_a_502(self, gateway: Gateway) -> None:
        told = await gateway.given("A", "A", script=reset)
        assert told.status == 502


CREDENTIAL_REFUSED = plain({"error": {"type": "authentication_error", "message": "bad key sk-ours"}}, 401)


async def short_body(exchange: Exchange) -> None:
    """States 500 bytes, sends 300 and closes."""
    await exchange.send_head(200, {"content-type": "application/json", "content-length": "500"})
    await exchange.send(b"{" + b" " * 299)
    exchange.close()


class TestHeaders:
    @pytest.mark.parametrize("upstream", ["A", "C"])
    async def test_H09_what_is_the_clients_own_goes_no_further(self, gateway: Gateway, upstream: str) -> None:
        told = await gateway.given(
            "A",
            upstream,
            body=plain_body(upstream),
            headers=[
                f"Authorization: Bearer {gateway.key}",
                "X-Api-Key: lsk_of_somebody",
                "Cookie: a=b",
                "Connection: x-foo",
                "x-foo: bar",
                "X-Forwarded-For: 10.0.0.1",
                "X-Lurus-Strict: 0",
            ],
        )
        assert told.status == 200
        names = {name for name, _ in told.upstream.headers}
        assert not names & {"cookie", "x-foo", "x-forwarded-for", "x-lurus-strict"}
        assert b"lsk_" not in told.upstream.head
        if upstream == "A":
            assert told.upstream.header("x-api-key") == SECRET
            assert "authorization" not in names
        else:
            assert told.upstream.header("authorization") == f"Bearer {SECRET}"
            assert "x-api-key" not in names

    async def test_H10_several_betas_become_one_line_in_order(self, gateway: Gateway) -> None:
        told = await gateway.given(
            "A",
            "A",
            body=plain_body("A"),
            headers=["anthropic-beta: first-1,first-2", "anthropic-beta: not-known-2031-01-01"],
        )
        lines = [value for name, value in told.upstream.headers if name == "anthropic-beta"]
        assert lines == [b"first-1,first-2,not-known-2031-01-01"]

    async def test_H11_headers_of_tomorrow_pass(self, gateway: Gateway) -> None:
        told = await gateway.given(
            "A", "A", body=plain_body("A"), headers=["anthropic-new-thing: 1", "x-claude-code-new: 2"]
        )
        assert told.upstream.header("anthropic-new-thing") == "1"
        assert told.upstream.header("x-claude-code-new") == "2"

    @pytest.mark.row("B47")
    async def test_H18_the_gateways_own_quota_is_not_shown(self, gateway: Gateway) -> None:
        body = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}
        limits = {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-unified-status": "x"}
        told = await gateway.given(
            "A",
            "A",
            body=body,
            status=429,
            answer_headers={"retry-after": "7", "cf-ray": "8", "set-cookie": "a=b", "server": "x", **limits},
        )
        assert (told.status, told.header("retry-after")) == (429, "7")
        assert told.json() == body
        names = {name for name, _ in told.answer.headers}
        assert not names & {*limits, "cf-ray", "set-cookie"}
        assert told.header("server") in ("", "lurus-switch")


class TestRequestBodies:
    BODY = b'{"model": "$MODEL", "max_tokens":  5, "messages": [{"role": "user", "content": "h\xc3\xa9"}]}'

    @CODINGS
    async def test_H12_coded_bodies_are_decoded(self, gateway: Gateway, coding: str) -> None:
        provider = await gateway.default("A")
        provider.upstream.script = plain(plain_body("A"))
        body = self.BODY.replace(MODEL_MARK, provider.model.encode())
        told = await gateway.post(PATHS["A"], COMPRESS[coding](body), [f"content-encoding: {coding}"])
        assert told.status == 200
        assert told.upstream.body == self.BODY.replace(MODEL_MARK, UPSTREAM_MODEL.encode())
        assert "content-encoding" not in {name for name, _ in told.upstream.headers}

    @DIALECTS
    async def test_H13_an_unknown_coding_is_refused(self, gateway: Gateway, dialect: str) -> None:
        told = await gateway.given(dialect, dialect, headers=["content-encoding: compress"])
        assert_coding_refused(dialect, told.status, told.json(), "request_body_encoding_unsupported")
        assert told.upstreams == []

    @pytest.mark.parametrize("coding", COMPRESS)
    @DIALECTS
    async def test_H14_garbage_is_refused(self, gateway: Gateway, dialect: str, coding: str) -> None:
        told = await gateway.given(dialect, dialect, headers=[f"content-encoding: {coding}"])
        assert_coding_refused(dialect, told.status, told.json(), "request_body_encoding_invalid")
        assert told.upstreams == []

    @pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
    @DIALECTS
    @pytest.mark.row("B16", "B17")
    async def test_H15_a_body_over_the_limit_is_refused(
        self, gateway: Gateway, dialect: str, is_chunked: bool
    ) -> None:
        async with RawClient.connected(gateway.port) as client:
            whole_request = post_bytes(PATHS[dialect], b" " * (33 * MIB), gateway.lines([]))
            if is_chunked:
                head, _, body = whole_request.partition(b"\r\n\r\n")
                head = head.replace(f"content-length: {33 * MIB}".encode(), b"transfer-encoding: chunked")
                chunk = b"100000\r\n" + body[:MIB] + b"\r\n"
                whole_request = head + b"\r\n\r\n" + chunk * 33 + b"0\r\n\r\n"
            sending = asyncio.create_task(client.send(whole_request))
            await client.read_head()
            answer = await client.read_all()
            assert answer.is_complete
            assert answer.status == (400 if dialect == "R" else 413)
            error = error_in(answer.json())
            assert (error["type"] if dialect == "A" else error["code"]) == "request_too_large"
            assert answer.header("request-id") == answer.header("x-request-id") != ""
            if answer.header("connection") == "close":
                assert await client.until_closed() == b""
            await sending

    async def test_H16_a_large_image_passes_byte_for_byte(self, gateway: Gateway) -> None:
        data = base64.b64encode(bytes(range(256)) * (15 * 4096)).decode()
        source = {"type": "base64", "media_type": "image/png", "data": data}
        provider = await gateway.default("A")
        provider.upstream.script = plain(plain_body("A"))
        request = {"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]}
        body = gateway.body("A", provider.model, request)
        assert len(body) > 20 * MIB
        told = await gateway.post(PATHS["A"], body)
        assert told.status == 200
        assert told.upstream.body == body.replace(provider.model.encode(), UPSTREAM_MODEL.encode())


def assert_coding_refused(dialect: str, status: int, body: Any, code: str) -> None:
    assert status == 400
    if dialect == "A":
        assert error_in(body)["details"]["error_code"] == code
    else:
        assert error_in(body)["code"] == "invalid_content_encoding"


class TestIds:
    @pytest.mark.parametrize("upstream", ["A", "C", "R"])
    @DIALECTS
    async def test_H17_every_answer_of_a_provider_has_our_id_twice(
        self, gateway: Gateway, dialect: str, upstream: str
    ) -> None:
        theirs = {"request-id": "req_theirs", "x-request-id": "req_theirs"}
        error = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
        answers: list[dict[str, Any]] = [
            {"body": plain_body(upstream)},
            {
                "body": error
                if upstream == "A"
                else {"error": {**error["error"], "param": None, "code": None}},
                "status": 400,
            },  # type: ignore[dict-item]
            {"script": stream(whole(upstream, "x"), headers=theirs), "request": {"stream": True}},
        ]
        for answer in answers:
            more = {} if "script" in answer else {"answer_headers": theirs}
            told = await gateway.given(dialect, upstream, **answer, **more)
            assert told.status == answer.get("status", 200)
            self.assert_ids(told)
            assert told.header("x-lurus-upstream-request-id") == "req_theirs"

    @DIALECTS
    async def test_H17_and_so_has_every_error_of_ours(self, gateway: Gateway, dialect: str) -> None:
        for lines, path, body, status in (
            (["x-api-key: lsk_wrong"], PATHS[dialect], b"{}", 401),
            ([], PATHS[dialect], b"{", 400),
            (["content-type: text/plain"], PATHS[dialect], b"{}", 415),
            ([], PATHS[dialect] + "/nothing/at/all", b"{}", 404),
        ):
            told = await gateway.post(path, body, lines)
            assert told.status == status
            self.assert_ids(told)
            if dialect == "A":
                assert told.json()["request_id"] == told.request_id

    async def test_H17_and_every_other_path(self, gateway: Gateway) -> None:
        for method, path in (("GET", "/v1/models"), ("GET", "/"), ("HEAD", "/api/hello"), ("GET", "/health")):
            self.assert_ids(await gateway.post(path, method=method))

    def assert_ids(self, told: Any) -> None:
        ids = {
            name: [v for key, v in told.answer.headers if key == name]
            for name in ("request-id", "x-request-id")
        }
        assert ids["request-id"] == ids["x-request-id"]
        assert len(ids["request-id"]) == 1 and ids["request-id"][0].startswith("req_")
        assert ids["request-id"][0] != "req_theirs"


class TestEndpoints:
    @pytest.mark.parametrize(
        ("dialect", "path"),
        [
            ("A", "/messages"),
            ("A", "/v1/messages?beta=true&x=1"),
            ("A", "/messages?beta=true"),
            ("C", "/chat/completions"),
            ("C", "/v1/chat/completions?api-version=1"),
            ("R", "/responses"),
            ("R", "/v1/responses?x=%20y"),
        ],
    )
    async def test_H19_paths_work_with_and_without_prefix_and_query(
        self, gateway: Gateway, dialect: str, path: str
    ) -> None:
        told = await gateway.given(dialect, dialect, body=plain_body(dialect), path=path)
        assert told.status == 200
        query = path.partition("?")[2]
        assert told.upstream.target == PATHS[dialect] + (f"?{query}" if query else "")

    @pytest.mark.parametrize("path", ["/v1/responses/input_tokens", "/responses/input_tokens"])
    async def test_H19_counting_for_responses_has_a_path_too(self, gateway: Gateway, path: str) -> None:
        counted = {"object": "response.input_tokens", "input_tokens": 17}
        told = await gateway.given("R", "R", body=counted, path=path)
        assert (told.status, told.json()) == (200, counted)
        assert told.upstream.target == "/v1/responses/input_tokens"

    async def test_H19_a_query_is_not_forwarded_to_another_dialect(self, gateway: Gateway) -> None:
        told = await gateway.given("A", "C", body=plain_body("C"), path="/v1/messages?beta=true")
        assert told.status == 200
        assert told.upstream.target == PATHS["C"]

    @pytest.mark.parametrize("path", ["/v1/messages/", "/messages/", "//v1/messages", "/v1/models/", "/v1"])
    async def test_H19_there_are_no_redirects(self, gateway: Gateway, path: str) -> None:
        for method in ("POST", "GET"):
            told = await gateway.post(path, b"{}", method=method)
            assert told.status in (404, 405)
            assert not told.answer.has_header("location")

    @pytest.mark.parametrize(("method", "path"), [("HEAD", "/api/hello"), ("HEAD", "/"), ("GET", "/")])
    async def test_H20_probes_need_no_key(self, gateway: Gateway, method: str, path: str) -> None:
        told = await gateway.post(path, method=method, has_key=False)
        assert told.status == 200

    @pytest.mark.parametrize("path", ["/responses", "/v1/responses"])
    async def test_H21_a_websocket_is_answered_426_at_once(self, gateway: Gateway, path: str) -> None:
        lines = [
            f"GET {path} HTTP/1.1",
            "host: gateway",
            "connection: Upgrade",
            "upgrade: websocket",
            "sec-websocket-version: 13",
            "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
            f"authorization: Bearer {gateway.key}",
        ]
        seconds = []
        for _ in range(5):
            async with RawClient.connected(gateway.port) as client:
                start = time.monotonic()
                await client.send("\r\n".join([*lines, "", ""]).encode())
                answer = await client.read_head()
                await client.read_all()
                seconds.append(time.monotonic() - start)
                assert answer.status == 426
                assert answer.header("connection") == "close"
                assert_shape("R", answer.json())
                assert await client.until_closed() == b""
        # The machine may be busy with something else, but not each time.
        assert min(seconds) < 0.1

    async def test_H22_the_shape_of_the_models_follows_the_client(self, gateway: Gateway) -> None:
        provider = await gateway.add("AC")
        for path in ("/v1/models", "/models"):
            shown = (await gateway.post(path, method="GET", headers=["anthropic-version: 2023-06-01"])).json()
            assert set(shown) == {"data", "first_id", "last_id", "has_more"}
            assert {"type", "id", "display_name", "created_at"} <= set(shown["data"][0])
            shown = (await gateway.post(path, method="GET")).json()
            assert shown["object"] == "list"
            assert next(row for row in shown["data"] if row["id"] == provider.model)["object"] == "model"
            told = await gateway.post(
                f"{path}?client_version=0.169.0", method="GET", headers=["anthropic-version: 2023-06-01"]
            )
            assert set(told.json()) == {"object", "data"}
        async with anthropic.AsyncAnthropic(base_url=gateway.mesh.base_url, api_key=gateway.key) as client:
            assert provider.model in [model.id async for model in client.models.list(limit=1000)]
        async with openai.AsyncOpenAI(base_url=f"{gateway.mesh.base_url}/v1", api_key=gateway.key) as other:
            assert provider.model in [model.id async for model in other.models.list()]

    async def test_H23_only_what_the_key_may_use_is_listed(self, gateway: Gateway) -> None:
        provider = await gateway.add("A")
        names = [f"{provider.model}-{number}" for number in range(5)]
        five = await gateway.add(
            "A", model=names[0], model_mappings=[{"model": name, "upstream_model": "up"} for name in names]
        )
        key = {"account_id": "acct_default", "allowed_models": [names[1], names[3]]}
        created = await gateway.rest("POST", "keys", json=key)
        told = await gateway.post(
            "/v1/models?limit=1000",
            method="GET",
            headers=[f"x-api-key: {created['secret']}", "anthropic-version: 2023-06-01"],
        )
        assert told.status == 200
        assert [row["id"] for row in told.json()["data"]] == [names[1], names[3]]
        assert told.json()["has_more"] is False
        assert five.upstream.requests == []

    @pytest.mark.row("F6")
    async def test_H24_one_good_credential_of_two_is_enough(self, gateway: Gateway) -> None:
        for dialect, lines in (
            ("A", [f"x-api-key: {gateway.key}", "authorization: Bearer foo"]),
            ("A", ["x-api-key: foo", f"authorization: Bearer {gateway.key}"]),
            ("C", ["x-api-key: foo", f"authorization: Bearer {gateway.key}"]),
            ("R", [f"x-api-key: {gateway.key}", "authorization: Bearer foo"]),
        ):
            told = await gateway.given(dialect, dialect, body=plain_body(dialect), headers=lines)
            assert told.status == 200, (dialect, lines)

    @DIALECTS
    async def test_H25_accept_does_not_decide_what_is_answered(self, gateway: Gateway, dialect: str) -> None:
        told = await gateway.given(
            dialect, dialect, events=whole(dialect, "x"), headers=["accept: application/json"]
        )
        assert told.header("content-type") == "text/event-stream; charset=utf-8"
        told = await gateway.given(
            dialect, dialect, body=plain_body(dialect), headers=["accept: text/event-stream"]
        )
        assert told.header("content-type") == "application/json"
        assert text_in(dialect, told.json()) == "hello"


class TestOurCredential:
    @DIALECTS
    @pytest.mark.row("F6")
    async def test_H26_a_refused_credential_of_ours_is_not_the_clients_matter(
        self, gateway: Gateway, dialect: str
    ) -> None:
        failing, healthy = await with_alternative(gateway, dialect, CREDENTIAL_REFUSED)
        assert (await gateway.ask(dialect, failing)).status == 200
        assert (await gateway.ask(dialect, failing)).status == 200
        # The first is not asked again.
        assert (len(failing.upstream.requests), len(healthy.upstream.requests)) == (1, 2)

    @pytest.mark.parametrize("status", [401, 402, 403])
    @DIALECTS
    @pytest.mark.row("F6")
    async def test_H27_without_another_provider_it_is_a_502(
        self, gateway: Gateway, dialect: str, status: int
    ) -> None:
        body = {"error": {"type": "authentication_error", "message": "bad key sk-ours of org-17"}}
        told = await gateway.given(dialect, dialect, body=body, status=status)
        assert told.status == 502
        assert_shape(dialect, told.json())
        assert b"sk-ours" not in told.body and b"org-17" not in told.body
        if dialect != "A":
            assert told.json()["error"]["code"] == "upstream_auth_error"
