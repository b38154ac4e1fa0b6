"""Everything that is not an LLM answer: models, probes, unknown paths and methods."""

import asyncio
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from lurus.routing.v1.routing_pb2 import ServedModel
from lurus_common.errors import InvalidRequest
from lurus_edge.models import anthropic_page

pytestmark = pytest.mark.anyio

KEY = {"authorization": "Bearer lsk_test"}
VERSION = {"anthropic-version": "2023-06-01"}
MODELS = [
    ServedModel(
        model_id="claude-x",
        display_name="Claude X",
        max_input_tokens=200_000,
        max_output_tokens=64_000,
        release_time=Timestamp(seconds=1_700_000_000),
    ),
    ServedModel(model_id="vendor/gpt-y", owned_by="vendor"),
]


class TestModels:
    async def test_h22_the_shape_follows_the_headers_and_the_query(self, edge: Any) -> None:
        edge.routing.models = MODELS
        for prefix in ("/v1", ""):
            _, headers, page = await edge.call("GET", f"{prefix}/models", headers={**KEY, **VERSION})
            assert page["data"][0] == {
                "type": "model",
                "id": "claude-x",
                "display_name": "Claude X",
                "created_at": "2023-11-14T22:13:20Z",
                "lifecycle": "active",
                "max_input_tokens": 200_000,
                "max_tokens": 64_000,
                "capabilities": None,
            }
            assert page["data"][1]["created_at"] == "1970-01-01T00:00:00Z"
            assert (page["first_id"], page["last_id"], page["has_more"]) == (
                "claude-x",
                "vendor/gpt-y",
                False,
            )
            assert headers["request-id"] == headers["x-request-id"]
            _, _, listed = await edge.call("GET", f"{prefix}/models", headers=KEY)
            assert listed["object"] == "list"
            assert listed["data"][1] == {
                "id": "vendor/gpt-y",
                "object": "model",
                "created": 0,
                "owned_by": "vendor",
            }
        _, _, codex = await edge.call("GET", "/v1/models?client_version=0.169.0", headers={**KEY, **VERSION})
        assert set(codex) == {"object", "data"}

    async def test_h23_what_a_key_may_use_is_asked_of_routing(self, edge: Any) -> None:
        edge.routing.models = MODELS[:1]
        _, _, page = await edge.call(
            "GET", "/v1/models?limit=1000", headers={"x-api-key": "lsk_a", **VERSION, **KEY}
        )
        assert [model["id"] for model in page["data"]] == ["claude-x"]
        assert page["has_more"] is False
        assert list(edge.routing.model_requests[0].credentials) == ["lsk_a", "lsk_test"]

    async def test_one_model_may_have_a_slash_in_its_name(self, edge: Any) -> None:
        edge.routing.models = MODELS
        for path in ("/v1/models/vendor/gpt-y", "/models/vendor%2Fgpt-y"):
            status, _, model = await edge.call("GET", path, headers=KEY)
            assert (status, model["id"]) == (200, "vendor/gpt-y")
        status, _, model = await edge.call("GET", "/v1/models/claude-x", headers={**KEY, **VERSION})
        assert (status, model["type"]) == (200, "model")

    @pytest.mark.parametrize(("extra", "kind"), [(VERSION, "not_found_error"), ({}, "invalid_request_error")])
    async def test_an_unknown_model_is_404_in_the_callers_shape(
        self, edge: Any, extra: dict[str, str], kind: str
    ) -> None:
        status, headers, body = await edge.call("GET", "/v1/models/none", headers={**KEY, **extra})
        assert (status, body["error"]["type"]) == (404, kind)
        assert headers["request-id"] == headers["x-request-id"]

    async def test_no_key_is_401(self, edge: Any) -> None:
        status, _, body = await edge.call("GET", "/v1/models", headers=VERSION)
        assert (status, body["error"]["type"]) == (401, "authentication_error")
        assert (await edge.call("GET", "/v1/models"))[0] == 401

    async def test_the_sdks_page_through_the_models(self, edge: Any) -> None:
        edge.routing.models = [ServedModel(model_id=f"claude-{number}") for number in range(45)]
        async with anthropic.AsyncAnthropic(base_url=edge.url, api_key="k", max_retries=0) as client:
            found = [model.id async for model in client.models.list(limit=20)]
        assert found == [f"claude-{number}" for number in range(45)]
        async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key="k", max_retries=0) as other:
            assert len([model async for model in other.models.list()]) == 45
            assert (await other.models.retrieve("claude-7")).id == "claude-7"


class TestPages:
    def page(self, **query: str) -> tuple[list[str], bool]:
        models = [ServedModel(model_id=name) for name in "abcde"]
        found = anthropic_page(models, query)
        return [model["id"] for model in found["data"]], found["has_more"]

    def test_pages_go_forward_and_backward(self) -> None:
        assert self.page(limit="2") == (["a", "b"], True)
        assert self.page(limit="2", after_id="b") == (["c", "d"], True)
        assert self.page(limit="2", after_id="d") == (["e"], False)
        assert self.page(limit="2", after_id="e") == ([], False)
        assert self.page(limit="2", before_id="e") == (["c", "d"], True)
        assert self.page(limit="2", before_id="c") == (["a", "b"], False)
        assert self.page() == (["a", "b", "c", "d", "e"], False)

    @pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "１", "99999999999999999999"])
    def test_a_limit_that_does_not_fit_is_refused(self, limit: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            self.page(limit=limit)
        assert caught.value.metadata["param"] == "limit"

    def test_an_unknown_id_is_refused(self) -> None:
        with pytest.raises(InvalidRequest):
            self.page(after_id="z")


class TestPaths:
    async def test_h19_paths_work_with_and_without_the_prefix_and_never_redirect(self, edge: Any) -> None:
        paths = [
            "/messages",
            "/messages/count_tokens",
            "/responses",
            "/responses/input_tokens",
            "/chat/completions",
        ]
        for path in paths:
            for spelled in (path, "/v1" + path, f"/v1{path}?beta=true&x=1"):
                status, _, _ = await edge.call("POST", spelled, json={}, headers=KEY)
                assert status == 200
        assert {request.path for request in edge.routing.requests} == {"/v1" + path for path in paths}

    @pytest.mark.parametrize(
        "path",
        [
            "/v1/messages/", "//v1/messages", "/v1//messages", "/v1/messages/%2e%2e", "/V1/messages",
            "/v1/%2e%2e/v1/messages", "/v1/Messages", "/v1/%6dessages", "/v1/messages/batches/",
            "/v1/nothing", "/docs", "/openapi.json", "/redoc", "/metrics/", "/console/x",
            "/v1/responses/", "/v1/responses/..", "/v1/responses/%72esp_1", "/v1/responses/resp_1/",
            "/v1/responses/resp_1%2fcancel", "/v1/responses/resp_1/nothing", "/v1/responses/a.b/cancel",
            "/v1/responses//cancel", "/v1/responses/a/b/cancel", "/v1/v1/responses/resp_1/cancel",
            "/v1/responses/" + "r" * 257, "/v1/messages/batches/b/../cancel",
        ],
    )  # fmt: skip
    async def test_b52_g17_other_paths_are_404_and_reach_nobody(self, edge: Any, path: str) -> None:
        request = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
        answer = await edge.raw(request.encode())
        assert answer.startswith(b"HTTP/1.1 404")
        is_anthropic = path.startswith(("/v1/messages", "/v1/%6d"))
        assert (b'"type":"not_found_error"' if is_anthropic else b'"code":"unknown_url"') in answer
        assert b"\r\nx-request-id: req_" in answer
        assert b"location" not in answer.lower()
        assert edge.routing.requests == []

    @pytest.mark.parametrize(
        ("path", "methods"),
        [
            ("/v1/responses/resp_1", ("GET", "DELETE")),
            ("/responses/resp_1", ("GET", "DELETE")),
            ("/v1/responses/resp_1/cancel", ("POST",)),
            ("/v1/responses/resp-1_x/input_items", ("GET",)),
            ("/v1/responses/compact", ("POST",)),
            ("/responses/compact", ("POST",)),
            ("/v1/messages/batches", ("GET", "POST")),
            ("/v1/messages/batches/b_1", ("GET", "DELETE")),
            ("/v1/messages/batches/b_1/cancel", ("POST",)),
            ("/messages/batches/b_1/results", ("GET",)),
            ("/v1/completions", ("POST",)),
            ("/embeddings", ("POST",)),
        ],
    )
    async def test_each_path_has_its_methods(self, edge: Any, path: str, methods: tuple[str, ...]) -> None:
        for method in ("GET", "POST", "DELETE", "PUT", "HEAD"):
            body = {"json": {}} if method == "POST" else {}
            status, headers, _ = await edge.call(method, path + "?after=x", headers=KEY, **body)
            if method in methods:
                assert status == 200
                told = edge.routing.requests.pop()
                assert (told.path, told.query) == ("/v1" + path.removeprefix("/v1"), "after=x")
                assert (told.method or "POST", told.body) == (method, b"{}" if body else b"")
            else:
                assert (status, headers["allow"]) == (405, ", ".join(methods))
        assert edge.routing.requests == []

    async def test_a_get_has_no_body(self, edge: Any) -> None:
        for method in ("GET", "DELETE"):
            status, _, _ = await edge.call(method, "/v1/responses/resp_1", headers=KEY, json={})
            assert status == 400
        assert edge.routing.requests == []

    async def test_g17_anthropic_version_implies_the_shape_of_an_unknown_path(self, edge: Any) -> None:
        status, _, body = await edge.call("GET", "/v1/files", headers=VERSION)
        assert (status, body["error"]["type"]) == (404, "not_found_error")

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
    @pytest.mark.parametrize("path", ["/v1/messages", "/responses", "/v1/chat/completions"])
    async def test_b52_other_methods_are_405_without_cors(self, edge: Any, method: str, path: str) -> None:
        origin = {"origin": "http://evil.example", "access-control-request-method": "POST"}
        status, headers, body = await edge.call(method, path, headers=origin)
        assert status == 405
        assert headers["allow"] == "POST"
        assert not [name for name in headers if name.startswith("access-control")]
        if method != "HEAD":
            assert body["error"]["message"]
        assert edge.routing.requests == []

    async def test_b52_posting_to_models_is_405(self, edge: Any) -> None:
        status, headers, _ = await edge.call("POST", "/v1/models", headers=KEY)
        assert (status, headers["allow"]) == (405, "GET")


class TestProbes:
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize("path", ["/", "/api/hello", "/health", "/ready"])
    async def test_h20_probes_need_no_key(self, edge: Any, method: str, path: str) -> None:
        status, headers, _ = await edge.call(method, path)
        assert status == 200
        assert headers["request-id"] == headers["x-request-id"] != ""

    async def test_metrics_are_exposed(self, edge: Any) -> None:
        await edge.call("POST", "/v1/messages", json={}, headers=KEY)
        await asyncio.sleep(0.05)  # The call ends a moment after its answer.
        _, headers, text = await edge.call("GET", "/metrics")
        assert headers["content-type"].startswith("application/openmetrics-text")
        assert 'lurus_edge_requests_total{dialect="anthropic",status="200"}' in text
        assert 'lurus_edge_first_byte_seconds_count{dialect="anthropic"}' in text
        assert 'lurus_edge_live_requests{dialect="anthropic"} 0.0' in text

    async def test_not_ready_says_why(self, make_edge: Any) -> None:
        async def readiness() -> dict[str, str]:
            return {"providers": "not known yet"}

        async with make_edge(readiness=readiness) as edge:
            status, _, body = await edge.call("GET", "/ready")
            assert (status, body["problems"]) == (503, {"providers": "not known yet"})
            assert (await edge.call("GET", "/health"))[0] == 200


class TestWebsockets:
    @pytest.mark.parametrize("path", ["/responses", "/v1/responses"])
    async def test_h21_an_upgrade_is_answered_426(self, edge: Any, path: str) -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await edge.session.ws_connect(edge.url + path, headers=KEY)
        assert caught.value.status == 426
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        answer = await edge.raw(f"GET {path} HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n".encode())
        assert b"\r\nconnection: close\r\n" in answer
        assert b'{"error":{"message":' in answer
        assert edge.routing.requests == []


async def test_a_defect_is_500_without_its_text(edge: Any) -> None:
    edge.routing.models = ["secret text"]
    status, _, body = await edge.call("GET", "/v1/models", headers=KEY)
    assert (status, body["error"]["type"]) == (500, "server_error")
    assert "secret" not in str(body)
