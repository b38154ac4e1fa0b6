"""What stands around a routing service in its tests: scripted neighbours, real sockets, a real bus."""

import asyncio
import base64
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc.aio
import msgspec
import pytest
from protovalidate import Validator

from lurus.billing.v1 import billing_pb2
from lurus.billing.v1.billing_pb2_grpc import BillingServiceServicer, add_BillingServiceServicer_to_server
from lurus.provider.v1 import provider_pb2
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceServicer, add_ProviderServiceServicer_to_server
from lurus.routing.v1 import routing_pb2
from lurus.routing.v1.routing_pb2_grpc import RoutingServiceStub
from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common.errors import LurusError, NotFound
from lurus_common.ids import new_id
from lurus_common.life import Life
from lurus_common.rpc import check_rules, error_of, make_server, open_channel, server_interceptors
from lurus_common.secrets import key_verifier, new_api_key, seal
from lurus_common.settings import Settings
from lurus_routing.server import routing_in_process, routing_server
from tests.support.scripted_upstream import ScriptedUpstream

ADMIN_TOKEN = "a-token-of-the-tests"
PEPPER = "a-pepper-of-the-tests"
CREDENTIAL_KEY = base64.b64encode(bytes(range(32))).decode()
SECRET = "sk-upstream-canary"
PATHS = {
    usage_pb2.DIALECT_ANTHROPIC: "/v1/messages",
    usage_pb2.DIALECT_OPENAI_CHAT: "/v1/chat/completions",
    usage_pb2.DIALECT_OPENAI_RESPONSES: "/v1/responses",
}
ALL_DIALECTS = tuple(PATHS)
ANTHROPIC, CHAT, RESPONSES = ALL_DIALECTS
DialectValue: TypeAlias = "usage_pb2.Dialect.ValueType"
WAIT_SECONDS = 10.0
VALIDATOR = Validator()


# For what is the same however the service is called.
in_process_only = pytest.mark.parametrize("kind", ["in process"], indirect=True)
# Makes rigs: providers as for `Rig.use`, prices, and settings by name.
MakeRig: TypeAlias = Callable[..., Awaitable["Rig"]]


async def until(condition: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """Waits until `condition` gives something true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.005)
    return found


class _Watchers:
    """Streams a state and its changes to everybody who watches."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Any]] = set()

    async def follow(self, first: Any) -> AsyncIterator[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._queues.add(queue)
        try:
            yield first
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)

    def tell(self, message: Any) -> None:
        for queue in self._queues:
            queue.put_nowait(message)


class ScriptedBilling(BillingServiceServicer):
    """Knows keys, lends as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.grants: dict[bytes, billing_pb2.KeyGrant] = {}
        # Keys that a look-up finds and the watch has not told yet.
        self.unwatched: dict[bytes, billing_pb2.KeyGrant] = {}
        self.lookup_count = 0
        self.lease_requests: list[billing_pb2.LeaseQuotaRequest] = []
        self.lend: Callable[[billing_pb2.LeaseQuotaRequest], billing_pb2.LeaseQuotaResponse] = lend_all
        self.delay_seconds = 0.0
        self._watchers = _Watchers()

    def add_key(self, *, is_watched: bool = True, **fields: Any) -> str:
        """Creates a key of an account of its own unless `account_id` says otherwise; returns the secret."""
        secret = new_api_key()
        given = {"key_id": new_id("key"), "account_id": new_id("acct"), **fields}
        grant = billing_pb2.KeyGrant(verifier=key_verifier(PEPPER, secret), **given)
        (self.grants if is_watched else self.unwatched)[grant.verifier] = grant
        if is_watched:
            self._watchers.tell(billing_pb2.WatchKeysResponse(grants=[grant]))
        return secret

    def grant_of(self, secret: str) -> billing_pb2.KeyGrant:
        """What a key may do."""
        verifier = key_verifier(PEPPER, secret)
        return self.grants.get(verifier) or self.unwatched[verifier]

    def change_key(self, secret: str, **fields: Any) -> None:
        """Changes a key and tells everybody who watches."""
        grant = self.grant_of(secret)
        for name, value in fields.items():
            setattr(grant, name, value)
        self._watchers.tell(billing_pb2.WatchKeysResponse(grants=[grant]))

    async def WatchKeys(
        self, request: billing_pb2.WatchKeysRequest, context: Any
    ) -> AsyncIterator[billing_pb2.WatchKeysResponse]:
        first = billing_pb2.WatchKeysResponse(is_snapshot=True, grants=self.grants.values(), is_complete=True)
        async for message in self._watchers.follow(first):
            yield message

    async def LookupKey(
        self, request: billing_pb2.LookupKeyRequest, context: Any
    ) -> billing_pb2.LookupKeyResponse:
        self.lookup_count += 1
        await asyncio.sleep(self.delay_seconds)
        grant = self.grants.get(request.verifier) or self.unwatched.get(request.verifier)
        if grant is None:
            raise NotFound("no such key", resource="key")
        return billing_pb2.LookupKeyResponse(grant=grant)

    async def LeaseQuota(
        self, request: billing_pb2.LeaseQuotaRequest, context: Any
    ) -> billing_pb2.LeaseQuotaResponse:
        self.lease_requests.append(request)
        await asyncio.sleep(self.delay_seconds)
        return self.lend(request)


def lend_all(request: billing_pb2.LeaseQuotaRequest) -> billing_pb2.LeaseQuotaResponse:
    """Lends whatever is asked for, for a minute."""
    return billing_pb2.LeaseQuotaResponse(
        lease_id=new_id("lease"), amount_nano_usd=request.amount_nano_usd, lifetime_milliseconds=60_000
    )


class ScriptedProvider(ProviderServiceServicer):
    """Tells of the providers, models and prices that it was given."""

    def __init__(self) -> None:
        self.providers: dict[str, provider_pb2.Provider] = {}
        self.models: list[provider_pb2.Model] = []
        self.prices: list[provider_pb2.Price] = []
        self.revision = 1
        self._watchers = _Watchers()

    def snapshot(self) -> provider_pb2.WatchProvidersResponse:
        """The whole set."""
        return provider_pb2.WatchProvidersResponse(
            revision=self.revision,
            is_snapshot=True,
            providers=self.providers.values(),
            models=self.models,
            prices=self.prices,
        )

    def tell(self, **change: Any) -> None:
        """Tells everybody who watches of a change."""
        self.revision += 1
        self._watchers.tell(provider_pb2.WatchProvidersResponse(revision=self.revision, **change))

    async def WatchProviders(
        self, request: provider_pb2.WatchProvidersRequest, context: Any
    ) -> AsyncIterator[provider_pb2.WatchProvidersResponse]:
        async for message in self._watchers.follow(self.snapshot()):
            yield message


def make_provider(provider_id: str, url: str, **fields: Any) -> provider_pb2.Provider:
    """Returns a provider of all dialects that serves every model, with one credential."""
    credentials = fields.pop("credentials", ("default",))
    provider = provider_pb2.Provider(
        provider_id=provider_id, base_url=url, dialects=fields.pop("dialects", ALL_DIALECTS), **fields
    )
    key = base64.b64decode(CREDENTIAL_KEY)
    for credential_id in credentials:
        sealed = seal(key, f"{SECRET}-{provider_id}-{credential_id}", f"{provider_id}|{credential_id}")
        provider.credentials.add(credential_id=credential_id, sealed_secret=sealed)
    return provider


class Neighbour:
    """A servicer on a real port, which may be stopped and started again."""

    def __init__(self, register: Callable[[grpc.aio.Server], None]) -> None:
        self._register = register
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Serves, on the port of the last time if there was one; if it does already, nothing changes."""
        if self._server is not None:
            return
        self._server = make_server(server_interceptors(ADMIN_TOKEN))
        self._register(self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        """Cuts its calls and refuses new ones."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None


@dataclass
class Answer:
    """What a caller of Relay got."""

    heads: list[routing_pb2.RelayHead] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    ends: list[routing_pb2.RelayEnd] = field(default_factory=list)

    @property
    def head(self) -> routing_pb2.RelayHead:
        """Its begin."""
        return self.heads[0]

    @property
    def end(self) -> routing_pb2.RelayEnd:
        """Its receipt."""
        return self.ends[0]

    @property
    def body(self) -> bytes:
        """All data, joined."""
        return b"".join(self.parts)

    @property
    def request_id(self) -> str:
        """The id of the request."""
        return self.head.request_id

    def take(self, response: routing_pb2.RelayResponse) -> None:
        """Adds one part, and checks that parts come in their order."""
        assert not self.ends, "something came after the end"
        kind = response.WhichOneof("part")
        assert (not self.heads) == (kind == "head"), "head must be first, and come once"
        if kind == "head":
            self.heads.append(response.head)
        elif kind == "data":
            assert response.data, "an empty part"
            self.parts.append(response.data)
        else:
            self.ends.append(response.end)


class Rig:
    """A routing service, its neighbours, two upstreams named `one` and `two`, and a caller with a key."""

    def __init__(self, settings: Settings, kind: str) -> None:
        self.settings = settings
        self.kind = kind
        self.life = Life()
        self.billing = ScriptedBilling()  # type: ignore[abstract]  # the rest is unimplemented, as it should be
        self.provider = ScriptedProvider()  # type: ignore[abstract]
        self.billing_server = Neighbour(
            lambda server: add_BillingServiceServicer_to_server(self.billing, server)
        )
        self.provider_server = Neighbour(
            lambda server: add_ProviderServiceServicer_to_server(self.provider, server)
        )
        self.upstream = ScriptedUpstream()
        self.other = ScriptedUpstream()
        self.key = self.billing.add_key()
        self.port = 0
        self.wire: grpc.aio.Channel | None = None
        self.stub: Any = None

    @property
    def account_id(self) -> str:
        """Who pays."""
        return self.billing.grant_of(self.key).account_id

    @property
    def outbox_path(self) -> Path:
        """The outbox file."""
        return Path(self.settings.data_dir) / "outbox" / f"outbox-{self.settings.worker_id}.db"

    def use(self, **fields: Mapping[str, Any]) -> None:
        """Sets the providers: `one` is the upstream, `two` the other one; the values are their fields."""
        urls = {"one": self.upstream.url, "two": self.other.url}
        given = {name: make_provider(name, urls[name], **values) for name, values in fields.items()}
        self.provider.providers = given

    @asynccontextmanager
    async def running(self, is_awaited: bool = True) -> AsyncIterator["Rig"]:
        """Starts the neighbours and the routing service."""
        async with AsyncExitStack() as stack:
            for neighbour in (self.billing_server, self.provider_server):
                await neighbour.start()
                stack.push_async_callback(neighbour.stop)
            await stack.enter_async_context(self.routing(is_awaited))
            yield self

    @asynccontextmanager
    async def routing(self, is_awaited: bool = True) -> AsyncIterator["Rig"]:
        """Starts the routing service alone, and waits until it is ready."""
        settings = msgspec.structs.replace(
            self.settings,
            billing_address=f"127.0.0.1:{self.billing_server.port}",
            provider_address=f"127.0.0.1:{self.provider_server.port}",
        )
        self.life = Life()
        async with AsyncExitStack() as stack:
            channel: grpc.aio.Channel
            if self.kind == "in process":
                channel, self.port, self.readiness = await stack.enter_async_context(
                    routing_in_process(settings, self.life)
                )
            else:
                self.port = await stack.enter_async_context(routing_server(settings, self.life))
                channel = open_channel(f"127.0.0.1:{self.port}", for_inference=True)
                await stack.enter_async_context(channel)
            self.stub = RoutingServiceStub(channel)
            if is_awaited:
                await self.until_ready()
            yield self

    async def until_ready(self) -> None:
        """Waits until the service knows its providers."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                await self.stub.ListModels(routing_pb2.ListModelsRequest(credentials=[ADMIN_TOKEN]))
                return
            except grpc.aio.AioRpcError:
                assert time.monotonic() < deadline, "the service does not become ready"
                await asyncio.sleep(0.005)

    def request(
        self, body: Any = None, dialect: DialectValue = ANTHROPIC, **fields: Any
    ) -> routing_pb2.RelayRequest:
        """Returns a request with the rig's key; the body is JSON unless it is bytes."""
        if body is None:
            body = plain_request(dialect)
        headers = [
            routing_pb2.Header(name=name, value=value.encode())
            for name, value in fields.pop("headers", [("content-type", "application/json")])
        ]
        given: dict[str, Any] = {"path": PATHS[dialect], "credentials": [self.key], **fields}
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return routing_pb2.RelayRequest(dialect=dialect, headers=headers, body=data, **given)

    def start(self, request: routing_pb2.RelayRequest) -> Any:
        """Begins a call; iterate it or cancel it."""
        return self.stub.Relay(request)

    async def relay(self, body: Any = None, dialect: DialectValue = ANTHROPIC, **fields: Any) -> Answer:
        """Makes a call and returns all of its answer.

        Raises:
            LurusError: as the caller is told.
        """
        return await collect(self.start(self.request(body, dialect, **fields)))

    def rows(self) -> dict[str, tuple[int, UsageEvent]]:
        """The outbox as another process sees it: state and event by request id."""
        return read_outbox(self.outbox_path)

    async def event(self, request_id: str) -> UsageEvent:
        """The final event of a request, as soon as it is in the outbox."""

        def found() -> UsageEvent | None:
            state, event = self.rows().get(request_id, (0, UsageEvent()))
            return event if state else None

        event = await until(found)
        assert isinstance(event, UsageEvent)
        check_rules(VALIDATOR, event)
        return event

    async def is_well(self, provider_id: str) -> bool:
        """True if nothing is held against a provider."""
        request = routing_pb2.ExplainRouteRequest(model="m-1")
        metadata = (("authorization", f"Bearer {ADMIN_TOKEN}"),)
        found = await self.stub.ExplainRoute(request, metadata=metadata)
        [one] = [row for row in found.candidates if row.provider_id == provider_id][:1]
        return bool(one.breaker == routing_pb2.BREAKER_STATE_CLOSED and not one.HasField("bench_duration"))

    async def only_event(self) -> UsageEvent:
        """The one final event of a rig that served one request, of which the caller got no head."""
        request_id = (await until(self.rows)).popitem()[0]
        return await self.event(request_id)


async def collect(call: Any) -> Answer:
    """Reads a call to its end."""
    answer = Answer()
    try:
        async for response in call:
            answer.take(response)
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error
    return answer


async def refusal(awaitable: Any) -> LurusError:
    """Returns the error with which a call was refused."""
    try:
        answer = await awaitable
    except LurusError as error:
        return error
    raise AssertionError(f"it was not refused: {answer}")


def read_outbox(path: Path) -> dict[str, tuple[int, UsageEvent]]:
    """Reads an outbox file through a connection of its own."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        rows = database.execute("SELECT request_id, state, payload FROM usage").fetchall()
    database.close()
    return {request_id: (state, UsageEvent.FromString(payload)) for request_id, state, payload in rows}


def plain_request(dialect: DialectValue, model: str = "m-1", **more: Any) -> dict[str, Any]:
    """A small request without a stream."""
    if dialect == RESPONSES:
        return {"model": model, "input": "hi", **more}
    limit = {"max_tokens": 100} if dialect == ANTHROPIC else {}
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **limit, **more}


def stream_request(dialect: DialectValue, model: str = "m-1", **more: Any) -> dict[str, Any]:
    """A small request for a stream."""
    return plain_request(dialect, model, stream=True, **more)


def plain_answer(dialect: DialectValue, text: str = "hello there") -> bytes:
    """A whole answer with 10 fresh, 1000 cached and 100 cache-written input tokens, 50 output tokens."""
    if dialect == ANTHROPIC:
        return msgspec.json.encode(
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "up-1",
                "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn",
                "usage": {
                    "input_tokens": 10,
                    "cache_read_input_tokens": 1000,
                    "cache_creation_input_tokens": 100,
                    "output_tokens": 50,
                },
            }
        )
    if dialect == CHAT:
        return msgspec.json.encode(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                ],
                "usage": chat_usage(),
            }
        )
    return msgspec.json.encode(
        {
            "id": "resp_1",
            "object": "response",
            "status": "completed",
            "output": [
                {"type": "message", "id": "i1", "content": [{"type": "output_text", "text": text}]},
            ],
            "usage": responses_usage(),
        }
    )


def chat_usage(**more: Any) -> dict[str, Any]:
    """What a chat provider reports."""
    return {
        "prompt_tokens": 1110,
        "completion_tokens": 50,
        "total_tokens": 1160,
        "prompt_tokens_details": {"cached_tokens": 1000, "cache_write_tokens": 100},
        **more,
    }


def responses_usage() -> dict[str, Any]:
    """What a Responses provider reports."""
    return {
        "input_tokens": 1110,
        "output_tokens": 50,
        "total_tokens": 1160,
        "input_tokens_details": {"cached_tokens": 1000, "cache_write_tokens": 100},
    }


def named(kind: str, **fields: Any) -> bytes:
    """One event with its name, as Anthropic and Responses write them."""
    data = msgspec.json.encode({"type": kind, **fields})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def chunk(**fields: Any) -> bytes:
    """One chunk of a chat stream."""
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "up-1", **fields}
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def delta(text: str) -> bytes:
    """A chat chunk with a piece of text."""
    return chunk(choices=[{"index": 0, "delta": {"content": text}}])


def text_event(dialect: DialectValue, text: str, number: int = 3) -> bytes:
    """One event that carries text."""
    if dialect == ANTHROPIC:
        return named("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
    if dialect == CHAT:
        return delta(text)
    return named("response.output_text.delta", sequence_number=number, item_id="i1", delta=text)


def begin_events(dialect: DialectValue) -> list[bytes]:
    """How a stream begins."""
    if dialect == ANTHROPIC:
        usage = {
            "input_tokens": 10,
            "cache_read_input_tokens": 1000,
            "cache_creation_input_tokens": 100,
            "output_tokens": 1,
        }
        message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": usage}
        block = {"type": "text", "text": ""}
        return [
            named("message_start", message=message),
            named("content_block_start", index=0, content_block=block),
        ]
    if dialect == CHAT:
        return [chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])]
    created = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}
    item = {"id": "i1", "type": "message", "content": []}
    return [
        named("response.created", sequence_number=0, response=created),
        named("response.output_item.added", sequence_number=1, output_index=0, item=item),
    ]


def end_events(dialect: DialectValue) -> list[bytes]:
    """How a stream ends; the last event is its terminator. A chat stream states its usage before that."""
    if dialect == ANTHROPIC:
        return [
            named("content_block_stop", index=0),
            named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 50}),
            named("message_stop"),
        ]
    if dialect == CHAT:
        return [
            chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]),
            chunk(choices=[], usage=chat_usage()),
            b"data: [DONE]\n\n",
        ]
    response = {"id": "resp_1", "object": "response", "status": "completed", "usage": responses_usage()}
    return [named("response.completed", sequence_number=9, response=response)]


def events_of(dialect: DialectValue, texts: Iterable[str] = ("one ", "two ", "three")) -> list[bytes]:
    """A whole stream: 10 fresh, 1000 cached and 100 cache-written input tokens, 50 output tokens."""
    middle = [text_event(dialect, text, number) for number, text in enumerate(texts, 3)]
    return [*begin_events(dialect), *middle, *end_events(dialect)]


# 1 USD, 0.1, 1.25 and 5 USD per million tokens.
PRICE = provider_pb2.Price(
    price_id="price_1",
    model="m-1",
    input_nano_usd=10**9,
    cache_read_nano_usd=10**8,
    cache_write_5m_nano_usd=125 * 10**7,
    cache_write_30m_nano_usd=125 * 10**7,
    output_nano_usd=5 * 10**9,
)
# 10 fresh, 1000 read, 100 written, 50 output tokens at that price.
COST = 10 * 1000 + 1000 * 100 + 100 * 1250 + 50 * 5000
