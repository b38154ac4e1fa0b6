"""REST from the contracts' annotations, against small scripted services on the wire."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from lurus.billing.v1 import billing_pb2
from lurus.billing.v1.billing_pb2_grpc import BillingServiceServicer, add_BillingServiceServicer_to_server
from lurus.log.v1 import log_pb2
from lurus.log.v1.log_pb2_grpc import LogServiceServicer, add_LogServiceServicer_to_server
from lurus.provider.v1 import provider_pb2
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceServicer, add_ProviderServiceServicer_to_server
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import FailedPrecondition, LurusError, NotFound, RateLimited
from lurus_common.rpc import bearer_token, make_server, open_channel, server_interceptors
from lurus_edge.bindings import bindings_of
from lurus_edge.transcode import SERVICES

pytestmark = pytest.mark.anyio

TOKEN = "the-token-of-the-operator"
ADMIN = {"authorization": f"Bearer {TOKEN}"}


class Scripted(ProviderServiceServicer, BillingServiceServicer, LogServiceServicer):
    """Remembers each request, and answers with something that shows it."""

    def __init__(self) -> None:
        self.request: Any = None
        self.token = ""
        self.error: LurusError | None = None
        self.ended = asyncio.Event()

    def take(self, request: Any, context: Any) -> Any:
        self.request, self.token = request, bearer_token(context)
        if self.error is not None:
            raise self.error
        return request

    async def GetProvider(self, request: Any, context: Any) -> Any:
        self.take(request, context)
        return provider_pb2.GetProviderResponse(
            provider=provider_pb2.Provider(provider_id=request.provider_id)
        )

    async def ListProviders(self, request: Any, context: Any) -> Any:
        self.take(request, context)
        return provider_pb2.ListProvidersResponse()

    async def CreateProvider(self, request: Any, context: Any) -> Any:
        return provider_pb2.CreateProviderResponse(provider=self.take(request, context).provider)

    async def UpdateProvider(self, request: Any, context: Any) -> Any:
        return provider_pb2.UpdateProviderResponse(provider=self.take(request, context).provider)

    async def DeleteProvider(self, request: Any, context: Any) -> Any:
        self.take(request, context)
        return provider_pb2.DeleteProviderResponse()

    async def CheckHealth(self, request: Any, context: Any) -> Any:
        self.take(request, context)
        return provider_pb2.CheckHealthResponse()

    async def GetModel(self, request: Any, context: Any) -> Any:
        return provider_pb2.GetModelResponse(
            model=provider_pb2.Model(model_id=self.take(request, context).model_id)
        )

    async def GetQuota(self, request: Any, context: Any) -> Any:
        self.take(request, context)
        return billing_pb2.GetQuotaResponse()

    async def UpdateQuota(self, request: Any, context: Any) -> Any:
        self.take(request, context)
        return billing_pb2.UpdateQuotaResponse()

    async def GetStats(self, request: Any, context: Any) -> Any:
        self.take(request, context)
        return log_pb2.GetStatsResponse(
            rows=[log_pb2.StatsRow(model="m", cost_nano_usd=9_007_199_254_740_993)]
        )

    async def ListLogs(self, request: Any, context: Any) -> Any:
        self.take(request, context)
        return log_pb2.ListLogsResponse(events=[usage_pb2.UsageEvent(dialect=usage_pb2.DIALECT_ANTHROPIC)])

    async def WatchUsage(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.take(request, context)
        try:
            yield log_pb2.WatchUsageResponse(skipped_count=1)
            await asyncio.sleep(30)
        finally:
            self.ended.set()

    async def ExportLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for number in range(2):
            yield log_pb2.ExportLogsResponse(events=[usage_pb2.UsageEvent(model=f"m\n{number}")])
        self.take(request, context)


@pytest.fixture(scope="module")
async def services() -> AsyncIterator[tuple[Scripted, dict[str, grpc.aio.Channel]]]:
    scripted = Scripted()
    server = make_server(server_interceptors(TOKEN))
    add_ProviderServiceServicer_to_server(scripted, server)
    add_BillingServiceServicer_to_server(scripted, server)
    add_LogServiceServicer_to_server(scripted, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        yield scripted, {"provider": channel, "billing": channel, "log": channel}
    await server.stop(0)


@pytest.fixture(scope="module")
async def rest_edge(services: Any, in_process_edge: Any) -> AsyncIterator[Any]:
    async with in_process_edge(services=services[1]) as edge:
        edge.scripted = services[0]
        yield edge


@pytest.fixture
def edge(rest_edge: Any) -> Any:
    rest_edge.scripted.__init__()
    return rest_edge


async def get(edge: Any, path: str) -> tuple[int, Any]:
    status, _, body = await edge.call("GET", path, headers=ADMIN)
    return status, body


class TestRequests:
    async def test_the_path_fills_fields_and_one_field_is_answered(self, edge: Any) -> None:
        status, body = await get(edge, "/api/v1/providers/my%2Dslug")
        assert status == 200
        assert body["provider_id"] == "my-slug"
        assert body["is_disabled"] is False
        assert edge.scripted.token == TOKEN

    async def test_a_double_star_takes_slashes_and_colons(self, edge: Any) -> None:
        for name in ("vendor/model-1:8b", "vendor%2Fmodel-1%3A8b"):
            _, body = await get(edge, f"/api/v1/models/{name}")
            assert body["model_id"] == "vendor/model-1:8b"

    async def test_the_query_fills_nested_repeated_and_well_known_fields(self, edge: Any) -> None:
        query = "filter.account_id=acct_1&filter.startTime=2026-11-01T00:00:00Z&filter.only_unpriced=true"
        query += "&group_by=STATS_GROUP_MODEL&group_by=day&page_size=7&filter.min_http_status=400"
        status, body = await get(edge, f"/api/v1/stats?{query}")
        assert status == 200
        request = edge.scripted.request
        assert request.filter.account_id == "acct_1"
        assert request.filter.start_time.seconds == 1_793_491_200
        assert request.filter.only_unpriced is True
        assert list(request.group_by) == [log_pb2.STATS_GROUP_MODEL, log_pb2.STATS_GROUP_DAY]
        assert (request.page_size, request.filter.min_http_status) == (7, 400)
        assert body["rows"][0]["cost_nano_usd"] == "9007199254740993"

    async def test_enums_are_written_by_name(self, edge: Any) -> None:
        _, body = await get(edge, "/api/v1/logs?filter.dialect=anthropic&filter.terminal=TERMINAL_COMPLETE")
        assert edge.scripted.request.filter.dialect == usage_pb2.DIALECT_ANTHROPIC
        assert body["events"][0]["dialect"] == "DIALECT_ANTHROPIC"
        assert body["next_page_token"] == ""

    async def test_a_body_fills_its_field(self, edge: Any) -> None:
        provider = {"provider_id": "p", "dialects": ["DIALECT_ANTHROPIC"], "baseUrl": "https://a.example"}
        provider["limits"] = {"connect_timeout": "1.5s"}
        status, _, body = await edge.call("POST", "/api/v1/providers", json=provider, headers=ADMIN)
        assert status == 200
        assert edge.scripted.request.provider.limits.connect_timeout.nanos == 500_000_000
        assert body["base_url"] == "https://a.example"
        assert body["limits"]["connect_timeout"] == "1.500s"

    async def test_the_path_wins_over_the_body_and_the_mask_comes_in_the_query(self, edge: Any) -> None:
        path = "/api/v1/providers/right?update_mask=display_name,base_url"
        sent = {"provider_id": "wrong", "display_name": "x"}
        status, _, _ = await edge.call("PATCH", path, json=sent, headers=ADMIN)
        assert status == 200
        request = edge.scripted.request
        assert request.provider.provider_id == "right"
        assert list(request.update_mask.paths) == ["display_name", "base_url"]

    async def test_a_whole_body_and_a_second_route(self, edge: Any) -> None:
        path = "/api/v1/accounts/acct_1/quota"
        sent = {"accountId": "acct_2", "quota": {"dailyLimitNanoUsd": "5"}}
        assert (await edge.call("PATCH", path, json=sent, headers=ADMIN))[0] == 200
        assert edge.scripted.request.account_id == "acct_1"
        assert edge.scripted.request.quota.daily_limit_nano_usd == 5
        assert (await get(edge, path))[0] == 200
        assert edge.scripted.request.account_id == "acct_1"
        assert (await get(edge, "/api/v1/quota?account_id=acct_3"))[0] == 200
        assert edge.scripted.request.account_id == "acct_3"

    async def test_a_verb_behind_a_colon(self, edge: Any) -> None:
        status, _, _ = await edge.call("POST", "/api/v1/providers/p1:check", headers=ADMIN)
        assert status == 200
        assert edge.scripted.request.provider_id == "p1"

    async def test_an_empty_response_is_an_empty_object(self, edge: Any) -> None:
        assert (await edge.call("DELETE", "/api/v1/providers/p1", headers=ADMIN))[2] == {}


class TestRefusals:
    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ("nothing=1", "nothing"),
            ("filter.nothing=1", "filter.nothing"),
            ("filter=1", "filter"),
            ("page_size.x=1", "page_size.x"),
            ("page_size=x", "page_size"),
            ("page_size=99999999999", "page_size"),
            ("page_size=1&page_size=2", "page_size"),
            ("filter.only_unpriced=yes", "filter.only_unpriced"),
            ("filter.start_time=yesterday", "filter.start_time"),
            ("filter.dialect=klingon", "filter.dialect"),
            ("filter.account_id=%ff", "query"),
        ],
    )
    async def test_a_parameter_that_does_not_fit_is_named(self, edge: Any, query: str, param: str) -> None:
        status, body = await get(edge, f"/api/v1/logs?{query}")
        assert status == 400
        assert body["error"]["code"] == "INVALID_ARGUMENT"
        assert body["error"]["reason"] == "INVALID_REQUEST"
        assert body["error"]["metadata"]["param"] == param
        assert edge.scripted.request is None

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("page_size=x", "page_size must be an integer of 32 bits"),
            ("filter.start_time=yesterday", "filter.start_time must be a time such as 2026-01-31T09:00:00Z"),
            (
                "filter.dialect=klingon",
                "filter.dialect must be one of "
                "DIALECT_ANTHROPIC, DIALECT_OPENAI_CHAT, DIALECT_OPENAI_RESPONSES",
            ),
        ],
    )
    async def test_what_fits_is_said_in_the_words_of_http(self, edge: Any, query: str, message: str) -> None:
        _, body = await get(edge, f"/api/v1/logs?{query}")
        assert body["error"]["message"] == message

    @pytest.mark.parametrize(
        ("sent", "param"),
        [
            (b'{"nothing":1}', "nothing"),
            (b'{"limits":{"nothing":1}}', "limits.nothing"),
            (b'{"level":"high"}', "level"),
            (b'{"base_url":1}', "base_url"),
            (b'{"base_url":"\\ud800"}', "base_url"),
            (b"{", "body"),
            (b"", "body"),
            (b"[]", "body"),
            (b"3", "body"),
            (b"\xff", "body"),
            (b'{"limits":' * 100 + b"}" * 100, None),
            (b"[" * 100_000, "body"),
        ],
    )
    async def test_a_body_that_does_not_fit_is_named(self, edge: Any, sent: bytes, param: str | None) -> None:
        headers = {**ADMIN, "content-type": "application/json"}
        status, _, body = await edge.call("POST", "/api/v1/providers", data=sent, headers=headers)
        assert status == 400
        if param:
            assert body["error"]["metadata"]["param"] == param
        assert edge.scripted.request is None

    async def test_a_body_where_none_belongs_is_refused(self, edge: Any) -> None:
        status, _, body = await edge.call("POST", "/api/v1/providers/p1:check", json={"a": 1}, headers=ADMIN)
        assert (status, body["error"]["metadata"]["param"]) == (400, "body")
        status, _, body = await edge.call(
            "POST", "/api/v1/providers?provider.level=1", json={}, headers=ADMIN
        )
        assert (status, body["error"]["metadata"]["param"]) == (400, "provider.level")

    async def test_a_body_over_the_limit_is_413(self, in_process_edge: Any, services: Any) -> None:
        async with in_process_edge(services=services[1], max_body_bytes=32 << 20) as edge:
            path = "/api/v1/providers"
            status, _, body = await edge.call("POST", path, data=io.BytesIO(b" " * (5 << 20)), headers=ADMIN)
            assert (status, body["error"]["reason"]) == (413, "REQUEST_TOO_LARGE")

    async def test_another_content_type_is_415(self, edge: Any) -> None:
        assert (await edge.call("POST", "/api/v1/providers", data="{}", headers=ADMIN))[0] == 415

    async def test_unknown_paths_and_methods(self, edge: Any) -> None:
        status, body = await get(edge, "/api/v1/nothing")
        assert (status, body["error"]["reason"]) == (404, "PATH_NOT_FOUND")
        status, headers, _ = await edge.call("PUT", "/api/v1/providers/p1", headers=ADMIN)
        assert (status, headers["allow"]) == (405, "DELETE, GET, PATCH")

    async def test_a_service_that_this_edge_does_not_know_is_503(self, edge: Any) -> None:
        status, body = await get(edge, "/api/v1/routes:explain?model=m")
        assert (status, body["error"]["metadata"]) == (503, {"dependency": "routing"})

    @pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}])
    async def test_callers_need_the_token_themselves(self, edge: Any, headers: dict[str, str]) -> None:
        status, _, body = await edge.call("GET", "/api/v1/providers", headers=headers)
        assert (status, body["error"]["code"]) == (401, "UNAUTHENTICATED")
        assert edge.scripted.request is None

    async def test_a_channel_with_a_token_does_not_lend_it(self, services: Any, in_process_edge: Any) -> None:
        server = make_server(server_interceptors(TOKEN))
        add_ProviderServiceServicer_to_server(Scripted(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with (
            open_channel(f"127.0.0.1:{port}", TOKEN) as channel,
            in_process_edge(services={"provider": channel}) as edge,
        ):
            assert (await edge.call("GET", "/api/v1/providers"))[0] == 401
            assert (await edge.call("GET", "/api/v1/providers", headers=ADMIN))[0] == 200
        await server.stop(0)

    async def test_x_api_key_is_taken_too(self, edge: Any) -> None:
        assert (await edge.call("GET", "/api/v1/providers", headers={"x-api-key": TOKEN}))[0] == 200

    async def test_failures_keep_code_reason_and_metadata(self, edge: Any) -> None:
        edge.scripted.error = NotFound("no such provider", resource="provider", id="p1")
        status, body = await get(edge, "/api/v1/providers/p1")
        assert status == 404
        assert body == {
            "error": {
                "code": "NOT_FOUND",
                "reason": "NOT_FOUND",
                "message": "no such provider",
                "metadata": {"resource": "provider", "id": "p1"},
            }
        }
        edge.scripted.error = FailedPrecondition("not now")
        assert (await get(edge, "/api/v1/providers/p1"))[0] == 400
        edge.scripted.error = RateLimited("slowly", retry_after_seconds=3)
        status, headers, _ = await edge.call("GET", "/api/v1/providers", headers=ADMIN)
        assert (status, headers["retry-after"]) == (429, "3")


class TestStreams:
    async def test_a_stream_is_one_object_a_line(self, edge: Any) -> None:
        _, headers, text = await edge.call("GET", "/api/v1/logs:export", headers=ADMIN)
        assert headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["events"][0]["model"] for line in lines] == ["m\n0", "m\n1"]

    async def test_a_stream_is_events_if_the_client_wants_them(self, edge: Any) -> None:
        headers = {**ADMIN, "accept": "text/event-stream"}
        edge.scripted.error = NotFound("gone")
        _, answered, text = await edge.call("GET", "/api/v1/logs:export", headers=headers)
        assert answered["content-type"] == "text/event-stream; charset=utf-8"
        first, second, failure, rest = text.split("\n\n")
        assert json.loads(first.removeprefix("data: "))["events"][0]["model"] == "m\n0"
        assert second.startswith("data: ")
        assert failure.startswith("event: error\ndata: ")
        assert json.loads(failure.partition("data: ")[2])["error"]["reason"] == "NOT_FOUND"
        assert rest == ""

    async def test_a_failure_at_the_begin_is_a_status(self, edge: Any) -> None:
        edge.scripted.error = NotFound("gone")
        assert (await get(edge, "/api/v1/logs:watch"))[0] == 404

    async def test_a_watch_sends_at_once_and_ends_with_its_client(self, edge: Any) -> None:
        got = await edge.session.get(edge.url + "/api/v1/logs:watch?filter.model=m*", headers=ADMIN)
        line = await asyncio.wait_for(got.content.readline(), 15)
        assert json.loads(line)["skipped_count"] == "1"
        got.close()
        await asyncio.wait_for(edge.scripted.ended.wait(), 15)


class TestDocument:
    async def test_the_document_describes_every_route(self, edge: Any) -> None:
        status, _, document = await edge.call("GET", "/api/v1/openapi.json")
        assert status == 200
        assert document["openapi"] == "3.1.0"
        bindings = bindings_of(service for service, _ in SERVICES)
        assert len(bindings) > 30
        operations = [operation for path in document["paths"].values() for operation in path.values()]
        assert len(operations) == len(bindings)
        ids = [operation["operationId"] for operation in operations]
        assert len(set(ids)) == len(ids)
        assert all(operation["summary"] for operation in operations)

    async def test_every_reference_and_parameter_is_defined(self, edge: Any) -> None:
        _, _, document = await edge.call("GET", "/api/v1/openapi.json")
        schemas = document["components"]["schemas"]
        text = json.dumps(document)
        for reference in text.split('"$ref": "#/components/schemas/')[1:]:
            assert reference.partition('"')[0] in schemas
        for path, operations in document["paths"].items():
            for operation in operations.values():
                in_path = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
                assert {part.partition("}")[0] for part in path.split("{")[1:]} == in_path
                names = [(p["in"], p["name"]) for p in operation["parameters"]]
                assert len(set(names)) == len(names)
                assert set(operation["responses"]) == {"200", "default"}

    async def test_types_are_those_of_the_json(self, edge: Any) -> None:
        _, _, document = await edge.call("GET", "/api/v1/openapi.json")
        row = document["components"]["schemas"]["lurus.log.v1.StatsRow"]["properties"]
        assert row["cost_nano_usd"] == {"type": "string", "format": "int64"}
        assert row["bucket_time"] == {"type": "string", "format": "date-time"}
        stats = document["paths"]["/api/v1/stats"]["get"]["parameters"]
        group = next(parameter for parameter in stats if parameter["name"] == "group_by")
        assert group["schema"]["type"] == "array"
        assert "STATS_GROUP_DAY" in group["schema"]["items"]["enum"]
