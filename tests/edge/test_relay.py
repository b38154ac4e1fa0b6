"""The LLM routes, on the in-process channel and on the wire: one suite for both."""

import asyncio
import gzip
import io
import json
import zlib
from typing import Any

import anthropic
import brotli
import openai
import pytest
from backports import zstd

from lurus_common.errors import (
    ContextTooLong,
    DependencyUnavailable,
    KeyInvalid,
    ModelNotFound,
    RateLimited,
    UpstreamFailed,
)
from lurus_dialects.dialect import Dialect
from lurus_edge.bodies import STEP_BYTES, decoder_of

pytestmark = pytest.mark.anyio

MESSAGES, CHAT, RESPONSES = "/v1/messages", "/v1/chat/completions", "/v1/responses"
PATHS = (MESSAGES, CHAT, RESPONSES)
KEY = {"authorization": "Bearer lsk_test"}
JSON = {**KEY, "content-type": "application/json"}
BODY = b'{"model":"m","stream":true}'


def error_of(body: Any) -> Any:
    return body["error"]


class TestAnswers:
    async def test_a_plain_answer_passes_byte_for_byte_with_its_length(self, edge: Any, relayed: Any) -> None:
        answer = b'{"id": 1.10,\n "text":"\\u00e9"}'
        edge.routing.script = relayed.plain(answer, 200, retry_after="7")
        async with edge.session.post(edge.url + MESSAGES + "?beta=true&x=1", data=BODY, headers=JSON) as got:
            assert await got.read() == answer
        assert got.status == 200
        assert got.headers["content-length"] == str(len(answer))
        assert got.headers["retry-after"] == "7"
        request = edge.routing.requests[0]
        assert (request.path, request.query, request.body) == (MESSAGES, "beta=true&x=1", BODY)
        assert list(request.credentials) == ["lsk_test"]
        assert request.client_address == "127.0.0.1"

    async def test_an_answer_in_many_parts_is_whole(self, edge: Any, relayed: Any) -> None:
        parts = [b"[1", b",2", b",3]"]
        edge.routing.script = relayed.playing([relayed.head(), *relayed.data(*parts), relayed.END])
        status, headers, body = await edge.call("POST", CHAT, data=BODY, headers=JSON)
        assert (status, body) == (200, [1, 2, 3])
        assert "content-length" not in headers

    async def test_an_error_of_a_provider_keeps_its_status_and_body(self, edge: Any, relayed: Any) -> None:
        edge.routing.script = relayed.plain(b'{"error":{"message":"no"}}', 422)
        status, _, body = await edge.call("POST", CHAT, data=BODY, headers=JSON)
        assert (status, body) == (422, {"error": {"message": "no"}})

    async def test_h25_the_kind_of_answer_is_the_routing_services_decision(
        self, edge: Any, relayed: Any
    ) -> None:
        stream = relayed.playing(
            [relayed.head(is_streaming=True), *relayed.data(b"data: 1\n\n"), relayed.END]
        )
        edge.routing.script = stream
        _, headers, _ = await edge.call(
            "POST", CHAT, data=BODY, headers={**JSON, "accept": "application/json"}
        )
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        edge.routing.script = relayed.plain(b"{}")
        _, headers, _ = await edge.call(
            "POST", CHAT, data=b"{}", headers={**JSON, "accept": "text/event-stream"}
        )
        assert headers["content-type"] == "application/json"


class TestStreams:
    async def test_the_first_event_arrives_before_the_third_is_made(self, edge: Any, relayed: Any) -> None:
        third_may_come = asyncio.Event()
        first, second, third = (b"data: %d\n\n" % number for number in range(3))
        steps = [relayed.head(is_streaming=True), *relayed.data(first, second), third_may_come]
        edge.routing.script = relayed.playing([*steps, *relayed.data(third), relayed.END])
        async with edge.session.post(edge.url + CHAT, data=BODY, headers=JSON) as got:
            assert await asyncio.wait_for(got.content.readexactly(len(first)), 15) == first
            third_may_come.set()
            assert await got.content.read() == second + third
        assert got.headers["cache-control"] == "no-cache"
        assert got.headers["x-accel-buffering"] == "no"
        assert "content-length" not in got.headers
        assert "content-encoding" not in got.headers

    @pytest.mark.parametrize("path", PATHS)
    async def test_a_client_that_leaves_ends_the_call(self, edge: Any, relayed: Any, path: str) -> None:
        never = asyncio.Event()
        steps = [relayed.head(is_streaming=True), *relayed.data(b"data: 1\n\n"), never]
        edge.routing.script = relayed.playing(steps)
        got = await edge.session.post(edge.url + path, data=BODY, headers=JSON)
        await got.content.readany()
        got.close()
        await asyncio.wait_for(edge.routing.ended.wait(), 10)

    async def test_a_client_that_leaves_before_the_head_ends_the_call(self, edge: Any, relayed: Any) -> None:
        edge.routing.script = relayed.playing([asyncio.Event()])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await edge.call("POST", CHAT, data=BODY, headers=JSON)
        await asyncio.wait_for(edge.routing.ended.wait(), 15)

    async def test_the_call_is_over_in_order_when_the_answer_is(self, edge: Any, relayed: Any) -> None:
        tidied = asyncio.Event()

        async def script(_: Any) -> Any:
            yield relayed.head(is_streaming=True)
            yield relayed.END
            await asyncio.sleep(0.05)
            tidied.set()

        edge.routing.script = script
        await edge.call("POST", CHAT, data=BODY, headers={**JSON, "connection": "close"})
        await asyncio.wait_for(tidied.wait(), 15)

    @pytest.mark.row("F16")
    async def test_a_slow_reader_stops_the_source(self, edge: Any, relayed: Any) -> None:
        made = 0

        async def script(_: Any) -> Any:
            nonlocal made
            yield relayed.head(is_streaming=True)
            while made < 2000:
                made += 1
                yield relayed.data(b"x" * 65536)[0]

        edge.routing.script = script
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.server.port, limit=4096)
        lines = [f"POST {CHAT} HTTP/1.1", "host: a", "authorization: Bearer k", "content-length: 2", "", "{}"]
        writer.write("\r\n".join(lines).encode())
        await reader.readline()
        await asyncio.sleep(0.5)
        stopped_at = made
        await asyncio.sleep(0.2)
        assert made == stopped_at < 1000
        writer.transport.abort()
        await asyncio.wait_for(edge.routing.ended.wait(), 15)


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "statuses"),
        [
            (KeyInvalid("no such key"), (401, 401, 401)),
            (ModelNotFound("no such model", model="m"), (404, 404, 404)),
            (ContextTooLong("too long", tokens=9, maximum=5), (400, 400, 400)),
            (RateLimited("slow down", retry_after_seconds=7), (429, 429, 429)),
            (UpstreamFailed("nobody answered", attempt_count=2), (502, 502, 502)),
            (DependencyUnavailable("away"), (503, 503, 503)),
            (RuntimeError("secret text"), (500, 500, 500)),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
    )
    async def test_errors_before_the_head_have_the_shape_of_the_dialect(
        self, edge: Any, relayed: Any, error: Exception, statuses: tuple[int, ...]
    ) -> None:
        if hasattr(error, "metadata"):
            error.metadata["request_id"] = relayed.REQUEST_ID
        for path, expected in zip(PATHS, statuses, strict=True):
            edge.routing.script = relayed.playing([error])
            status, headers, body = await edge.call("POST", path, data=BODY, headers=JSON)
            assert status == expected
            assert headers["content-type"] == "application/json"
            assert headers["request-id"] == headers["x-request-id"]
            if hasattr(error, "metadata"):
                assert headers["request-id"] == relayed.REQUEST_ID
            assert "secret" not in json.dumps(body)
            if path == MESSAGES:
                assert body["type"] == "error"
                assert body["request_id"] == headers["request-id"]
            else:
                assert set(error_of(body)) == {"message", "type", "param", "code"}
            if isinstance(error, RateLimited):
                assert headers["retry-after"] == "7"

    async def test_h17_every_answer_carries_our_request_id_twice(self, edge: Any, relayed: Any) -> None:
        for stream in (False, True):
            part = b"data: 1\n\n" if stream else b"{}"
            edge.routing.script = relayed.playing(
                [relayed.head(is_streaming=stream, request_id="theirs"), *relayed.data(part), relayed.END]
            )
            _, headers, _ = await edge.call("POST", MESSAGES, data=BODY, headers=JSON)
            assert headers["request-id"] == headers["x-request-id"] == relayed.REQUEST_ID

    @pytest.mark.parametrize("path", PATHS)
    async def test_an_error_in_a_stream_is_an_event_and_no_terminator(
        self, edge: Any, relayed: Any, path: str
    ) -> None:
        steps = [relayed.head(is_streaming=True), *relayed.data(b"data: 1\n\n"), UpstreamFailed("it broke")]
        edge.routing.script = relayed.playing(steps)
        _, _, text = await edge.call("POST", path, data=BODY, headers=JSON)
        assert text.startswith("data: 1\n\n")
        event = text.removeprefix("data: 1\n\n")
        assert event.endswith("\n\n")
        payload = json.loads(event.partition("data: ")[2])
        if path == MESSAGES:
            assert event.startswith("event: error\n")
            assert payload["error"]["type"] == "api_error"
            assert "message_stop" not in text
        elif path == CHAT:
            assert payload["error"]["message"] == "it broke"
            assert "[DONE]" not in text
        else:
            assert event.startswith("event: response.failed\n")
            assert payload["response"]["status"] == "failed"

    @pytest.mark.parametrize("steps", ["no end", "error inside an event", "error in a plain answer"])
    async def test_an_answer_that_cannot_be_mended_has_no_clean_end(
        self, edge: Any, relayed: Any, steps: str
    ) -> None:
        is_streaming = steps != "error in a plain answer"
        begin = {"no end": b'data: {"a', "error inside an event": b'data: {"a'}.get(steps, b"[1,")
        script = [relayed.head(is_streaming=is_streaming), *relayed.data(begin, b"2")]
        edge.routing.script = relayed.playing(script if steps == "no end" else [*script, UpstreamFailed("x")])
        with pytest.raises(Exception, match=r"(?i)payload|reset|disconnected"):
            await edge.call("POST", CHAT, data=BODY, headers=JSON)

    async def test_a_plain_answer_that_breaks_before_its_second_part_is_still_an_error(
        self, edge: Any, relayed: Any
    ) -> None:
        steps = [relayed.head(), *relayed.data(b"[1,2]"), UpstreamFailed("it broke")]
        edge.routing.script = relayed.playing(steps)
        status, _, _ = await edge.call("POST", CHAT, data=BODY, headers=JSON)
        assert status == 502

    async def test_an_error_after_the_end_changes_nothing(self, edge: Any, relayed: Any) -> None:
        steps = [relayed.head(), *relayed.data(b"[1]"), relayed.END, UpstreamFailed("late")]
        edge.routing.script = relayed.playing(steps)
        assert (await edge.call("POST", CHAT, data=BODY, headers=JSON))[2] == [1]

    async def test_the_sdks_read_our_errors(self, edge: Any, relayed: Any) -> None:
        edge.routing.script = relayed.playing([KeyInvalid("no such key", request_id=relayed.REQUEST_ID)])
        async with anthropic.AsyncAnthropic(base_url=edge.url, api_key="k", max_retries=0) as client:
            with pytest.raises(anthropic.AuthenticationError) as caught:
                await client.messages.create(
                    model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}]
                )
            assert caught.value.request_id == relayed.REQUEST_ID
        async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key="k", max_retries=0) as other:
            with pytest.raises(openai.AuthenticationError) as refused:
                await other.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
            assert refused.value.code == "invalid_api_key"
            assert refused.value.request_id == relayed.REQUEST_ID


class TestBodies:
    @pytest.mark.parametrize(
        ("coding", "encoded"),
        [
            ("gzip", gzip.compress(BODY, mtime=0)),
            ("deflate", zlib.compress(BODY)),
            ("deflate", zlib.compress(BODY, wbits=-15)),
            ("zstd", zstd.compress(BODY)),
            ("br", brotli.compress(BODY)),
            ("identity", BODY),
        ],
    )
    async def test_h12_coded_bodies_are_decoded(self, edge: Any, coding: str, encoded: bytes) -> None:
        status, _, _ = await edge.call(
            "POST", CHAT, data=encoded, headers={**JSON, "content-encoding": coding}
        )
        assert status == 200
        assert edge.routing.requests[0].body == BODY
        assert "content-encoding" not in edge.routing.headers()

    @pytest.mark.parametrize("coding", ["compress", "gzip, gzip", "br, gzip", "x"])
    async def test_h13_other_codings_are_refused(self, edge: Any, coding: str) -> None:
        headers = {**JSON, "content-encoding": coding}
        status, _, body = await edge.call("POST", MESSAGES, data=BODY, headers=headers)
        assert status == 400
        assert error_of(body)["details"]["error_code"] == "request_body_encoding_unsupported"
        status, _, body = await edge.call("POST", CHAT, data=BODY, headers=headers)
        assert (status, error_of(body)["code"]) == (400, "invalid_content_encoding")
        assert edge.routing.requests == []

    @pytest.mark.parametrize(
        ("coding", "encoded"),
        [
            ("gzip", b"garbage"),
            ("gzip", gzip.compress(BODY, mtime=0)[:-4]),
            ("gzip", gzip.compress(BODY, mtime=0) + b"more"),
            ("deflate", b"garbage"),
            ("zstd", b"garbage"),
            ("zstd", zstd.compress(BODY)[:-2]),
            ("zstd", zstd.compress(BODY) * 2),
            ("br", b"garbage"),
            ("br", brotli.compress(BODY)[:-2]),
            ("br", brotli.compress(BODY) + b"more"),
        ],
    )
    async def test_h14_undecodable_bodies_are_refused(self, edge: Any, coding: str, encoded: bytes) -> None:
        status, _, body = await edge.call(
            "POST", MESSAGES, data=encoded, headers={**JSON, "content-encoding": coding}
        )
        assert status == 400
        assert error_of(body)["details"]["error_code"] == "request_body_encoding_invalid"
        assert edge.routing.requests == []

    async def test_h15_a_body_over_the_limit_is_refused(self, edge: Any) -> None:
        for path, expected in ((MESSAGES, 413), (CHAT, 413), (RESPONSES, 400)):
            status, _, body = await edge.call("POST", path, data=b" " * 200_001, headers=JSON)
            assert status == expected
            kind = error_of(body)["type"] if path == MESSAGES else error_of(body)["code"]
            assert kind == "request_too_large"
        assert edge.routing.requests == []

    @pytest.mark.parametrize("coding", ["gzip", "zstd", "br"])
    @pytest.mark.row("B19")
    async def test_b19_a_bomb_is_refused_at_the_limit(self, edge: Any, coding: str) -> None:
        compress = {"gzip": gzip.compress, "zstd": zstd.compress, "br": brotli.compress}[coding]
        bomb = compress(b" " * 50_000_000)
        headers = {**JSON, "content-encoding": coding}
        for path, expected in ((MESSAGES, 413), (RESPONSES, 400)):
            status, _, _ = await edge.call("POST", path, data=bomb, headers=headers)
            assert status == expected
        assert edge.routing.requests == []

    @pytest.mark.parametrize(
        "decoder", [b"gzip", b"deflate", b"br", b"zstd"], ids=["gzip", "deflate", "br", "zstd"]
    )
    def test_b19_no_step_of_a_bomb_is_large(self, decoder: bytes) -> None:
        bomb = {
            b"gzip": gzip.compress,
            b"deflate": zlib.compress,
            b"br": brotli.compress,
            b"zstd": zstd.compress,
        }[decoder](b" " * 50_000_000)
        found = decoder_of(decoder)
        assert found is not None
        sizes = [len(piece) for piece in found.pieces(bomb)]
        assert sum(sizes) == 50_000_000
        assert max(sizes) <= 2 * STEP_BYTES
        assert found.is_complete

    async def test_b19_growth_is_bounded_as_well(self, make_edge: Any) -> None:
        async with make_edge(max_body_bytes=32 << 20) as edge:
            bomb = gzip.compress(b" " * (8 << 20))
            status, _, _ = await edge.call(
                "POST", CHAT, data=bomb, headers={**JSON, "content-encoding": "gzip"}
            )
            assert status == 413
            text = gzip.compress(b" " * (3 << 20))
            status, _, _ = await edge.call(
                "POST", CHAT, data=text, headers={**JSON, "content-encoding": "gzip"}
            )
            assert status == 200

    async def test_h16_a_body_of_20_mib_passes_unchanged(self, make_edge: Any) -> None:
        async with make_edge(max_body_bytes=32 << 20) as edge:
            body = bytes(range(256)) * (20 << 12)
            status, _, _ = await edge.call("POST", CHAT, data=io.BytesIO(body), headers=JSON)
            assert status == 200
            assert edge.routing.requests[0].body == body

    @pytest.mark.parametrize(
        "kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-json-seq"]
    )
    async def test_b18_other_content_types_are_refused(self, edge: Any, kind: str) -> None:
        for path in PATHS:
            status, _, body = await edge.call("POST", path, data=BODY, headers={**KEY, "content-type": kind})
            assert status == 415
            assert error_of(body)["type"] == "invalid_request_error"
        assert edge.routing.requests == []

    @pytest.mark.parametrize(
        "kind", ["application/json; charset=UTF-8", "Application/JSON", "application/vnd.x+json", None]
    )
    async def test_b18_json_and_no_content_type_pass(self, edge: Any, kind: str | None) -> None:
        request = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n"
        request += f"Content-Type: {kind}\r\n" if kind else ""
        assert (await edge.raw(request.encode() + b"\r\n{}")).startswith(b"HTTP/1.1 200")

    async def test_b18_another_charset_is_refused(self, edge: Any) -> None:
        headers = {**KEY, "content-type": "application/json; charset=utf-16"}
        status, _, body = await edge.call("POST", MESSAGES, data=BODY, headers=headers)
        assert (status, error_of(body)["details"]["error_code"]) == (400, "unsupported_charset")

    async def test_a_client_that_leaves_in_its_body_never_reaches_routing(self, edge: Any) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", edge.server.port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{{".encode())
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.sleep(0.05)
        assert edge.routing.requests == []


class TestHeaders:
    @pytest.mark.parametrize(
        "headers", [{}, {"authorization": ""}, {"authorization": "Bearer"}, {"authorization": "Bearer "},
                    {"authorization": "Basic eDp5"}, {"x-api-key": ""}, {"x-api-key": "k" * 10_000},
                    {"x-api-key": "schlüssel"}],
        ids=["none", "empty", "bearer only", "bearer blank", "basic", "empty key", "10 kB", "not ASCII"],
    )  # fmt: skip
    @pytest.mark.row("B20")
    async def test_b20_what_is_no_key_is_not_presented(self, edge: Any, headers: dict[str, str]) -> None:
        await edge.call("POST", CHAT, data=BODY, headers={"content-type": "application/json", **headers})
        assert list(edge.routing.requests[0].credentials) == []

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.row("B21")
    async def test_b21_h24_two_keys_are_tried_in_the_order_of_the_dialect(self, edge: Any, path: str) -> None:
        headers = {**JSON, "authorization": "bearer  lsk_b ", "x-api-key": "lsk_a"}
        await edge.call("POST", path, data=BODY, headers=headers)
        expected = ["lsk_a", "lsk_b"] if path == MESSAGES else ["lsk_b", "lsk_a"]
        assert list(edge.routing.requests[0].credentials) == expected

    @pytest.mark.row("B28")
    async def test_b28_h09_what_claims_an_identity_or_describes_the_hop_goes_no_further(
        self, edge: Any
    ) -> None:
        spoofed = ["X-User-ID: 1", "X_User_Id: 2", "X-Tenant: 3", "x_tenant: 4", "grpc-timeout: 1S"]
        spoofed += ["traceparent: junk", "Forwarded: for=1.2.3.4", "X-Forwarded-For: 1.2.3.4", "Cookie: a=b"]
        spoofed += ["Authorization: Bearer lsk_x", "x-api-key: lsk_y", "Connection: close, x-foo", "x-foo: 1"]
        spoofed += ["X-Lurus-Account: 9", "Proxy-Authorization: z"]
        kept = ["anthropic-beta: a,b", "Anthropic-Beta: c", "anthropic-new-thing: 1", "x-claude-code-new: 2",
                "x-lurus-strict: 1", "user-agent: test"]  # fmt: skip
        lines = [f"POST {MESSAGES} HTTP/1.1", "Host: a", "Content-Length: 2", *spoofed, *kept, "", "{}"]
        await edge.raw("\r\n".join(lines).encode())
        passed = [(header.name, header.value) for header in edge.routing.requests[0].headers]
        assert passed == [
            ("anthropic-beta", b"a,b"), ("anthropic-beta", b"c"), ("anthropic-new-thing", b"1"),
            ("x-claude-code-new", b"2"), ("x-lurus-strict", b"1"), ("user-agent", b"test"),
        ]  # fmt: skip

    async def test_b28_a_valid_trace_parent_goes_on(self, edge: Any) -> None:
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        await edge.call("POST", CHAT, data=BODY, headers={**JSON, "traceparent": parent})
        assert edge.routing.headers()["traceparent"] == parent.encode()


class TestLimits:
    async def test_requests_over_the_limit_are_shed(self, make_edge: Any, relayed: Any) -> None:
        async with make_edge(max_live_requests=1) as edge:
            edge.routing.script = relayed.playing([relayed.head(is_streaming=True), 0.5, relayed.END])
            first = await edge.session.post(edge.url + CHAT, data=BODY, headers=JSON)
            status, headers, body = await edge.call("POST", MESSAGES, data=BODY, headers=JSON)
            assert (status, error_of(body)["type"]) == (529, "overloaded_error")
            assert int(headers["retry-after"]) >= 1
            assert (await edge.call("POST", CHAT, data=BODY, headers=JSON))[0] == 503
            first.close()

    async def test_bodies_in_memory_are_bounded_and_let_go(self, make_edge: Any) -> None:
        async with make_edge(max_held_body_bytes=1000) as edge:
            assert (await edge.call("POST", CHAT, data=b" " * 1001, headers=JSON))[0] == 503
            assert (await edge.call("POST", CHAT, data=b" " * 1000, headers=JSON))[0] == 200

    def test_every_dialect_has_a_path(self) -> None:
        from lurus_dialects.endpoints import FIXED

        assert {endpoint.dialect for endpoint in FIXED.values()} == set(Dialect)
