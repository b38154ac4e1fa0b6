"""Every method of every contract, through grpcio's stubs and through the betterproto client, on a real mesh.

The page docs/api.md says which methods are built; this asks the services.
"""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import grpc.aio
import grpclib.exceptions
import psutil
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpclib.client import Channel
from tests.support.mesh import Mesh

import lurus_client.lurus.billing.v1 as client_billing
import lurus_client.lurus.log.v1 as client_log
import lurus_client.lurus.provider.v1 as client_provider
import lurus_client.lurus.routing.v1 as client_routing
from lurus.billing.v1 import billing_pb2
from lurus.log.v1 import log_pb2
from lurus.provider.v1 import provider_pb2
from lurus.routing.v1 import routing_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common.ids import new_id
from lurus_common.rpc import error_of
from lurus_common.secrets import key_verifier

pytestmark = pytest.mark.anyio

API_PAGE = Path(__file__).parents[2] / "docs" / "api.md"
CALL_SECONDS = 20.0
# Stands for the id of an event that was set aside.
PARKED = "parked"
# Streams that never end by themselves: their first message is the answer.
ENDLESS = {"WatchProviders", "WatchKeys", "WatchUsage", "WatchRoutes", "WatchBudget"}

AREAS: dict[str, tuple[Any, Any]] = {
    "ROUTING": (routing_pb2, client_routing),
    "PROVIDER": (provider_pb2, client_provider),
    "BILLING": (billing_pb2, client_billing),
    "LOG": (log_pb2, client_log),
}


def requests(prefix: str, mesh: Mesh) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """A request for every method, in an order in which each finds what it needs; ids begin with `prefix`."""
    account, key, provider, model = f"acct_{prefix}", f"key_{prefix}", f"{prefix}-llm", f"{prefix}-model"
    price = f"price_{prefix}"
    chat = {"model": "sandbox-text", "messages": [{"role": "user", "content": "Hi"}]}
    body = base64.b64encode(json.dumps(chat).encode()).decode()
    event = {
        "request_id": new_id("req"),
        "account_id": account,
        "event_time": datetime.now(UTC).isoformat(),
        "tokens": {"input": 10, "output": 5},
        "token_source": "TOKEN_SOURCE_PROVIDER",
        "cost_nano_usd": 42,
    }
    relay = {
        "dialect": "DIALECT_OPENAI_CHAT",
        "path": "/v1/chat/completions",
        "body": body,
        "credentials": [mesh.key],
    }
    typed = {
        "model": "sandbox-text",
        "messages": [{"role": "CHAT_ROLE_USER", "blocks": [{"text": "Hi"}]}],
    }
    pepper = (mesh.data_dir / "secrets" / "key-pepper").read_text().strip()
    verifier = key_verifier(pepper, mesh.key)
    upstream = f"http://127.0.0.1:{mesh.ports['SANDBOX']}"
    new_provider = {
        "provider_id": provider,
        "dialects": ["DIALECT_OPENAI_CHAT"],
        "base_url": upstream,
        "credentials": [{"secret": "a-secret-for-interop"}],
        "supported_models": [model],
    }
    later = "2999-01-01T00:00:00Z"
    new_price = {"price_id": price, "model": model, "effective_time": later, "output_nano_usd": 1}
    reservation = {"reservation_id": f"rsv_{prefix}", "account_id": account}
    money = {"transaction_id": f"tx_{prefix}", "account_id": account, "kind": "TRANSACTION_KIND_TOP_UP"}
    return {
        "PROVIDER": [
            ("CreateProvider", {"provider": new_provider}),
            ("GetProvider", {"provider_id": provider}),
            ("ListProviders", {}),
            ("UpdateProvider", {"provider": {"provider_id": provider, "level": 3}, "update_mask": "level"}),
            ("MatchModel", {"model": model}),
            ("CheckHealth", {"provider_id": provider}),
            ("CreateModel", {"model": {"model_id": model}}),
            ("GetModel", {"model_id": model}),
            ("ListModels", {}),
            (
                "UpdateModel",
                {"model": {"model_id": model, "display_name": "M"}, "update_mask": "displayName"},
            ),
            ("CreatePrice", {"price": new_price}),
            ("GetPrice", {"price_id": price}),
            ("ListPrices", {"model": model}),
            (
                "UpdatePrice",
                {"price": {"price_id": price, "input_nano_usd": 2}, "update_mask": "inputNanoUsd"},
            ),
            ("WatchProviders", {}),
            ("DeletePrice", {"price_id": price}),
            ("ImportPrices", {"prices": [{"model": model, "input_nano_usd": 7}], "is_dry_run": True}),
            ("DeleteModel", {"model_id": model}),
            ("DeleteProvider", {"provider_id": provider}),
            ("ImportProviders", {"providers": [new_provider]}),
            ("ExportProviders", {}),
        ],
        "BILLING": [
            ("CreateAccount", {"account": {"account_id": account}}),
            ("GetAccount", {"account_id": account}),
            ("ListAccounts", {}),
            (
                "UpdateAccount",
                {"account": {"account_id": account, "display_name": "A"}, "update_mask": "displayName"},
            ),
            ("CreateTransaction", {**money, "amount_nano_usd": 10**9}),
            ("CreateKey", {"key": {"key_id": key, "account_id": account}}),
            ("GetKey", {"key_id": key}),
            ("ListKeys", {"account_id": account}),
            ("UpdateKey", {"key": {"key_id": key, "display_name": "K"}, "update_mask": "displayName"}),
            ("LookupKey", {"verifier": base64.b64encode(verifier).decode()}),
            ("WatchKeys", {}),
            ("GetBalance", {"account_id": account}),
            ("UpdateQuota", {"account_id": account, "quota": {"daily_limit_nano_usd": 10**9}}),
            ("GetQuota", {"account_id": account}),
            ("LeaseQuota", {"account_id": account, "worker_id": "interop", "amount_nano_usd": 100}),
            ("ReportUsage", {"event": event}),
            ("ListTransactions", {"account_id": account}),
            ("CreateReservation", {**reservation, "amount_nano_usd": 100}),
            ("ReleaseReservation", {"reservation_id": f"rsv_{prefix}"}),
            ("SettleReservation", {"reservation_id": f"rsv_{prefix}", "amount_nano_usd": 7}),
            ("GetReceipt", {"request_id": f"rsv_{prefix}"}),
            ("ListUnpricedModels", {}),
            ("RepriceUsage", {"model": model, "is_dry_run": True}),
            ("WatchBudget", {"account_id": account}),
            ("ListDeadLetters", {}),
            ("ReplayDeadLetter", {"dead_letter_id": PARKED}),
            ("ResolveDeadLetter", {"dead_letter_id": PARKED, "resolution": "looked at"}),
            ("RevokeKey", {"key_id": key}),
            ("DeleteAccount", {"account_id": account}),
            ("Reconcile", {}),
        ],
        "ROUTING": [
            ("Relay", relay),
            ("ListModels", {"credentials": [mesh.key]}),
            ("ExplainRoute", {"model": "sandbox-text"}),
            ("GetStatus", {}),
            ("ListOutboxEvents", {}),
            ("StreamChat", typed),
            ("CompleteChat", {"request": typed}),
            ("CountTokens", {"request": typed}),
            ("WatchRoutes", {}),
        ],
        "LOG": [
            ("ListLogs", {}),
            ("GetLog", {}),
            ("GetStats", {"group_by": ["STATS_GROUP_MODEL"]}),
            ("WatchUsage", {}),
            ("ExportLogs", {}),
        ],
    }


def table() -> dict[str, dict[str, set[str]]]:
    """What docs/api.md says: for each service, the methods that are built and those that are not."""
    found = {}
    for line in API_PAGE.read_text().splitlines():
        if match := re.match(r"\| `(\w+)\.v1\.\w+Service` \|(.*)\|(.*)\|$", line):
            built, missing = (set(re.findall(r"`(\w+)`", cell)) for cell in (match[2], match[3]))
            found[match[1].upper()] = {"built": built, "missing": missing}
    return found


def _credential(mesh: Mesh, method: str) -> str:
    """What a caller of a method presents: a key to chat, else the admin token."""
    return mesh.key if method in ("StreamChat", "CompleteChat", "CountTokens") else mesh.admin_token


def service_of(area: str) -> ServiceDescriptor:
    """The service of an area's contract."""
    (service,) = AREAS[area][0].DESCRIPTOR.services_by_name.values()
    return service


async def logged_request(mesh: Mesh) -> str:
    """The id of a request that is in the log."""
    path = "/v1/chat/completions"
    body = {"model": "sandbox-text", "messages": [{"role": "user", "content": "Hi"}]}
    answer = await asyncio.to_thread(mesh.http.post, path, json=body, headers=mesh.headers())
    await asyncio.to_thread(mesh.log_row, answer.headers["request-id"])
    return answer.headers["request-id"]


async def parked_letter(mesh: Mesh) -> str:
    """The id of an event that was set aside and can be booked; the way over the bus would park it for all."""
    environment = psutil.Process(mesh.pid("billing")).environ()
    event = UsageEvent(request_id=new_id("req"), account_id="acct_default", event_time=datetime.now(UTC))
    payload = event.SerializeToString()
    connection = await asyncpg.connect(environment["LURUS_DATABASE_URL"])
    try:
        number = await connection.fetchval(
            "INSERT INTO billing.dead_letter "
            "(cause, stream_sequence, subject, request_id, payload, payload_sha, reason) "
            "VALUES ('parked', 1, '', '', $1, $1, 'a test') RETURNING dead_letter_id",
            payload,
        )
    finally:
        await connection.close()
    return f"dl_{number}"


class TestGrpcio:
    """Messages and stubs of `gen/lurus`."""

    async def call(self, mesh: Mesh, area: str, method: MethodDescriptor, values: dict[str, Any]) -> Any:
        """Returns the response, of a stream the first; raises what the stub raises."""
        request = json_format.ParseDict(values, message_factory.GetMessageClass(method.input_type)())
        response_type = message_factory.GetMessageClass(method.output_type)
        path = f"/{method.containing_service.full_name}/{method.name}"
        metadata = [("authorization", f"Bearer {_credential(mesh, method.name)}")]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.ports[area]}") as channel:
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            call = make(path, type(request).SerializeToString, response_type.FromString)
            if not method.server_streaming:
                return await call(request, metadata=metadata, timeout=CALL_SECONDS)
            stream = call(request, metadata=metadata, timeout=CALL_SECONDS)
            try:
                return [response async for response in _first(stream, method.name)]
            finally:
                stream.cancel()

    @pytest.mark.parametrize("area", AREAS)
    async def test_every_method_answers_as_the_page_says(self, mesh: Mesh, area: str) -> None:
        methods = service_of(area).methods_by_name
        stated = table()[area]
        todo = requests("grpcio", mesh)[area]
        assert {name for name, _ in todo} == set(methods) == stated["built"] | stated["missing"]
        for name, values in todo:
            if name == "GetLog":
                values = {"request_id": await logged_request(mesh)}
            if PARKED in values.values():
                values = {**values, "dead_letter_id": await parked_letter(mesh)}
            try:
                await self.call(mesh, area, methods[name], values)
            except grpc.aio.AioRpcError as error:
                reason = error_of(error).reason
                assert (name in stated["missing"], reason) == (True, "NOT_IMPLEMENTED"), f"{name}: {error}"
            else:
                assert name in stated["built"], f"{name} is built, docs/api.md says it is not"


class TestBetterproto:
    """The dataclass client of `gen/lurus_client`, over grpclib."""

    async def call(self, mesh: Mesh, area: str, method: MethodDescriptor, values: dict[str, Any]) -> Any:
        """The same through the other client."""
        module = AREAS[area][1]
        written = json_format.ParseDict(values, message_factory.GetMessageClass(method.input_type)())
        request = getattr(module, method.input_type.name)().parse(written.SerializeToString())
        metadata = {"authorization": f"Bearer {_credential(mesh, method.name)}"}
        channel = Channel("127.0.0.1", mesh.ports[area])
        try:
            stub = getattr(module, f"{method.containing_service.name}Stub")(channel, metadata=metadata)
            call = getattr(stub, _snake(method.name))
            if not method.server_streaming:
                return await call(request, timeout=CALL_SECONDS)
            return [response async for response in _first(call(request, timeout=CALL_SECONDS), method.name)]
        finally:
            channel.close()

    @pytest.mark.parametrize("area", AREAS)
    async def test_every_method_answers_as_the_page_says(self, mesh: Mesh, area: str) -> None:
        methods = service_of(area).methods_by_name
        stated = table()[area]
        for name, values in requests("betterproto", mesh)[area]:
            if name == "GetLog":
                values = {"request_id": await logged_request(mesh)}
            if PARKED in values.values():
                values = {**values, "dead_letter_id": await parked_letter(mesh)}
            try:
                await self.call(mesh, area, methods[name], values)
            except grpclib.exceptions.GRPCError as error:
                assert name in stated["missing"], f"{name}: {error}"
                assert error.status.name == "UNIMPLEMENTED"
            else:
                assert name in stated["built"], f"{name} is built, docs/api.md says it is not"


async def _first(stream: AsyncIterator[Any], name: str) -> AsyncIterator[Any]:
    """All of a stream, or its first message if it would go on for ever."""
    async for response in stream:
        yield response
        if name in ENDLESS:
            return


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
