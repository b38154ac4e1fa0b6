"""The rig of the conformance cases: a real gateway between a raw client and scripted providers.

    async def test_S01_…(gateway: Gateway) -> None:
        told = await gateway.given("A", "C", events=[…])
        assert told.events[0].name == "message_start"
        assert told.upstream.json()["model"] == UPSTREAM_MODEL
        assert (await told.record()).tokens.output == 9

The gateway is `lurus up` of its own process with real stores; the providers are
scripted and live in the test. Every test has providers of its own, so that no
test sees another one's breaker.
"""

import asyncio
import itertools
import json
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
from tests.support.mesh import Mesh
from tests.support.raw_client import ANSWER_SECONDS, RawAnswer, RawClient, ServerEvent
from tests.support.scripted_upstream import ReceivedRequest, Script, ScriptedUpstream, plain, stream

from lurus.usage.v1.usage_pb2 import UsageEvent

PATHS = {"A": "/v1/messages", "C": "/v1/chat/completions", "R": "/v1/responses"}
DIALECTS = {"A": "DIALECT_ANTHROPIC", "C": "DIALECT_OPENAI_CHAT", "R": "DIALECT_OPENAI_RESPONSES"}
UPSTREAM_MODEL = "upstream-model"
SECRET = "a-secret-of-the-provider"
# Replaced in request bodies that are given as bytes.
MODEL_MARK = b"$MODEL"
HEARTBEAT_SECONDS = 1.0
KNOWN_SECONDS = 10.0
RECORD_SECONDS = 10.0
FINAL = 1
# In nano-USD per million tokens: 1, 0.1, 1.25 and 5 USD.
PRICES = {
    "input_nano_usd": 10**9,
    "cache_read_nano_usd": 10**8,
    "cache_write_5m_nano_usd": 125 * 10**7,
    "cache_write_30m_nano_usd": 125 * 10**7,
    "cache_write_1h_nano_usd": 2 * 10**9,
    "cache_write_12h_nano_usd": 2 * 10**9,
    "output_nano_usd": 5 * 10**9,
}
_names = (f"conf-{os.getpid()}-{number}" for number in itertools.count())


def request_of(client: str, model: str, **more: Any) -> dict[str, Any]:
    """Returns a small request; `more` replaces fields, one that is given as ... is left out."""
    turns: Any = [{"role": "user", "content": "hi"}]
    body = {"model": model, "input" if client == "R" else "messages": turns}
    if client == "A":
        body["max_tokens"] = 100
    return {name: value for name, value in {**body, **more}.items() if value is not ...}


def post_bytes(path: str, body: bytes, headers: Iterable[str], method: str = "POST") -> bytes:
    """Returns a request as it stands on the wire; `headers` are whole lines."""
    lines = [f"{method} {path} HTTP/1.1", "host: gateway", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


@dataclass(slots=True)
class Provider:
    """A registered provider and the upstream behind it."""

    provider_id: str
    dialect: str
    # The name that clients use for its model.
    model: str
    upstream: ScriptedUpstream


@dataclass(slots=True)
class Told:
    """What came of one request."""

    gateway: "Gateway"
    answer: RawAnswer
    # What the providers of this test have received for it, in order of arrival.
    upstreams: list[ReceivedRequest] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.answer.status

    @property
    def body(self) -> bytes:
        """The body, without the framing of chunks."""
        return self.answer.body

    @property
    def events(self) -> list[ServerEvent]:
        """The body as events."""
        return self.answer.events

    @property
    def names(self) -> list[str]:
        """The names of the events, in order; a block of comments is `:`."""
        return [event.name or ("data" if event.data is not None else ":") for event in self.events]

    @property
    def upstream(self) -> ReceivedRequest:
        """What the provider received; fails unless there was exactly one call."""
        assert len(self.upstreams) == 1, f"{len(self.upstreams)} upstream calls"
        return self.upstreams[0]

    @property
    def request_id(self) -> str:
        """Our id of the request."""
        return self.answer.header("x-request-id")

    def header(self, name: str) -> str:
        """Returns a header of the answer, empty if there is none."""
        return self.answer.header(name)

    def json(self) -> Any:
        """Returns the body as JSON."""
        return self.answer.json()

    def texts(self) -> str:
        """All text that a client of this stream is told, in whichever dialect it is."""
        return "".join(_text_of(event) for event in self.events)

    async def record(self) -> UsageEvent:
        """Returns the usage event."""
        return await self.gateway.record(self.request_id)


def _text_of(event: ServerEvent) -> str:
    if not event.data or event.data == "[DONE]":
        return ""
    data = event.json
    if event.name == "content_block_delta":
        return str(data["delta"].get("text", ""))
    if event.name == "response.output_text.delta":
        return str(data["delta"])
    return "".join(choice["delta"].get("content") or "" for choice in data.get("choices") or [])


class Gateway:
    """The gateway as one test sees it."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.key = mesh.key
        self.port = mesh.ports["EDGE"]
        self.providers: list[Provider] = []
        self._default: dict[tuple[str, str], Provider] = {}
        self._removed: set[str] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Gateway":
        self.http = await self._stack.enter_async_context(
            httpx.AsyncClient(
                base_url=self.mesh.base_url,
                headers={"authorization": f"Bearer {self.mesh.admin_token}"},
                timeout=30,
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            for provider in self.providers:
                assert not provider.upstream.failures, f"its script failed: {provider.upstream.failures}"
        finally:
            await self._stack.aclose()

    async def rest(self, method: str, path: str, **arguments: Any) -> Any:
        """Calls the REST API as the operator and returns the JSON; fails on an error."""
        answer = await self.http.request(method, f"/api/v1/{path}", **arguments)
        assert answer.status_code == 200, f"{method} {path} is {answer.status_code}: {answer.text}"
        return answer.json()

    async def add(
        self,
        dialect: str,
        *,
        model: str = "",
        quirks: Mapping[str, Any] | None = None,
        script: Script | None = None,
        **fields: Any,
    ) -> Provider:
        """Registers a provider with an upstream of its own, and waits until the gateway knows it.

        Args:
            dialect: A, C or R, or several of these letters.
            model: what clients ask for; a name of its own by default. Its upstream model is `UPSTREAM_MODEL`.
            quirks: of the provider.
            script: what its upstream does.
            fields: other fields of the provider.
        """
        name = next(_names)
        model = model or f"{name}-m"
        upstream = await self._stack.enter_async_context(ScriptedUpstream(script))
        settings = {
            "provider_id": name,
            "dialects": [DIALECTS[letter] for letter in dialect],
            "base_url": upstream.url,
            "credentials": [{"secret": SECRET}],
            "model_mappings": [{"model": model, "upstream_model": UPSTREAM_MODEL}],
            "quirks": dict(quirks or {}),
            **fields,
        }
        await self.rest("POST", "providers", json=settings)
        provider = Provider(name, dialect, model, upstream)
        self.providers.append(provider)
        self._stack.push_async_callback(self.remove, provider)
        await self._until_known(provider)
        return provider

    async def account(self, amount_nano_usd: int = 10**9) -> tuple[str, str]:
        """Returns the id of a new account with so much money, and a key of it."""
        account_id = f"acct_{next(_names)}"
        await self.rest("POST", "accounts", json={"account_id": account_id})
        credit = {
            "transaction_id": f"tx_{account_id}",
            "account_id": account_id,
            "kind": "TRANSACTION_KIND_TOP_UP",
            "amount_nano_usd": str(amount_nano_usd),
        }
        await self.rest("POST", "transactions", json=credit)
        return account_id, (await self.rest("POST", "keys", json={"account_id": account_id}))["secret"]

    async def remove(self, provider: Provider) -> None:
        """Deletes a provider, if it is still there, and waits until the gateway knows."""
        if provider.provider_id in self._removed:
            return
        self._removed.add(provider.provider_id)
        await self.rest("DELETE", f"providers/{provider.provider_id}")
        await self.eventually(lambda: self._is_gone(provider))

    async def _is_gone(self, provider: Provider) -> bool:
        plan = await self.rest("GET", f"routes:explain?model={provider.model}")
        return all(row["provider_id"] != provider.provider_id for row in plan.get("candidates", ()))

    async def _until_known(self, provider: Provider) -> None:
        deadline = time.monotonic() + KNOWN_SECONDS
        while True:
            plan = await self.rest("GET", f"routes:explain?model={provider.model}")
            if any(row["provider_id"] == provider.provider_id for row in plan.get("candidates", ())):
                return
            assert time.monotonic() < deadline, f"the gateway does not learn of {provider.provider_id}"
            await asyncio.sleep(0.01)

    async def default(self, dialect: str, quirks: Mapping[str, Any] | None = None) -> Provider:
        """Returns this test's provider of a dialect with these quirks."""
        key = (dialect, json.dumps(quirks or {}, sort_keys=True))
        if key not in self._default:
            self._default[key] = await self.add(dialect, quirks=quirks)
        return self._default[key]

    async def given(
        self,
        client: str = "A",
        upstream: str | Provider = "A",
        *,
        events: Sequence[bytes | float | asyncio.Event] | None = None,
        body: bytes | str | dict[str, Any] | None = None,
        script: Script | None = None,
        status: int = 200,
        answer_headers: Mapping[str, str] | None = None,
        request: Mapping[str, Any] | bytes | None = None,
        headers: Iterable[str] = (),
        quirks: Mapping[str, Any] | None = None,
        path: str = "",
        seconds: float = ANSWER_SECONDS,
    ) -> Told:
        """Lets a provider answer so, asks for that, and returns what came of it.

        Args:
            client: A, C or R.
            upstream: the same for the provider, or one that `add` returned.
            events: a stream; each piece is one HTTP chunk and one write. A number is a pause.
            body: one body instead, with `status`.
            script: anything else instead.
            status: of the provider's plain answer.
            answer_headers: of the provider.
            request: fields of the client's request beside the usual ones; bytes are sent as they are,
                with `MODEL_MARK` replaced. `stream` is true iff `events` are given, unless it says more.
            headers: lines of the request beside the usual ones.
            quirks: of the provider.
            path: instead of the usual one.
            seconds: the answer must be whole within these.
        """
        provider = upstream if isinstance(upstream, Provider) else await self.default(upstream, quirks)
        provider.upstream.scripts = [
            _script(events=events, body=body, script=script, status=status, headers=answer_headers)
        ]
        is_streaming = events is not None
        return await self.ask(
            client, provider, request, headers, is_streaming=is_streaming, path=path, seconds=seconds
        )

    async def ask(
        self,
        client: str,
        provider: Provider,
        request: Mapping[str, Any] | bytes | None = None,
        headers: Iterable[str] = (),
        *,
        is_streaming: bool = False,
        path: str = "",
        seconds: float = ANSWER_SECONDS,
    ) -> Told:
        """Asks for the model of a provider, as `given` does; what it answers is set already."""
        sent = self.body(client, provider.model, request, is_streaming=is_streaming)
        return await self.post(path or PATHS[client], sent, headers, seconds=seconds)

    def body(
        self,
        client: str,
        model: str,
        request: Mapping[str, Any] | bytes | None,
        *,
        is_streaming: bool = False,
    ) -> bytes:
        """Returns a request body as `given` sends it."""
        if isinstance(request, bytes):
            return request.replace(MODEL_MARK, model.encode())
        more = {"stream": True} if is_streaming else {}
        return json.dumps(request_of(client, model, **{**more, **(request or {})})).encode()

    async def post(
        self,
        path: str,
        body: bytes = b"",
        headers: Iterable[str] = (),
        *,
        method: str = "POST",
        has_key: bool = True,
        seconds: float = ANSWER_SECONDS,
    ) -> Told:
        """Sends a request on a connection of its own and returns what came of it."""
        before = self._received()
        async with RawClient.connected(self.port) as client:
            await client.send(post_bytes(path, body, self.lines(headers, has_key), method))
            await client.read_head(seconds)
            answer = await client.read_all(seconds, is_bodiless=method == "HEAD")
        return Told(self, answer, self._received()[len(before) :])

    async def open(
        self,
        client: str,
        provider: Provider,
        request: Mapping[str, Any] | None = None,
        headers: Iterable[str] = (),
    ) -> RawClient:
        """Sends a request for a stream and returns its connection; closed at the end of the test."""
        found = await self._stack.enter_async_context(RawClient.connected(self.port))
        body = self.body(client, provider.model, request, is_streaming=True)
        await found.send(post_bytes(PATHS[client], body, self.lines(headers)))
        return found

    def lines(self, headers: Iterable[str], has_key: bool = True) -> list[str]:
        """Returns header lines with the usual ones, unless they are given."""
        lines = list(headers)
        names = {line.partition(":")[0].lower() for line in lines}
        usual = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        if not has_key or "x-api-key" in names:
            del usual["authorization"]
        return [*(f"{name}: {value}" for name, value in usual.items() if name not in names), *lines]

    def _received(self) -> list[ReceivedRequest]:
        found = [request for provider in self.providers for request in provider.upstream.requests]
        return sorted(found, key=lambda request: request.arrived)

    async def record(self, request_id: str) -> UsageEvent:
        """Returns the final usage event of a request, as soon as the outbox has it."""
        deadline = time.monotonic() + RECORD_SECONDS
        while (event := self._final(request_id)) is None:
            assert time.monotonic() < deadline, f"no usage event of {request_id!r}"
            await asyncio.sleep(0.01)
        return event

    async def last_record(self, model: str) -> UsageEvent:
        """Returns the newest final usage event of a model: of clients that have left before our id came."""
        deadline = time.monotonic() + RECORD_SECONDS
        while not (found := [event for event in self.all_finals() if event.model == model]):
            assert time.monotonic() < deadline, f"no usage event of {model}"
            await asyncio.sleep(0.01)
        return max(found, key=lambda event: event.request_id)

    def all_finals(self) -> list[UsageEvent]:
        """All final usage events of the mesh."""
        return [UsageEvent.FromString(payload) for (payload,) in self._rows("state >= ?", FINAL)]

    def _final(self, request_id: str) -> UsageEvent | None:
        rows = self._rows("state >= ? AND request_id = ?", FINAL, request_id)
        return UsageEvent.FromString(rows[0][0]) if rows else None

    def _rows(self, condition: str, *values: Any) -> list[tuple[bytes]]:
        rows: list[tuple[bytes]] = []
        for path in (self.mesh.data_dir / "outbox").glob("outbox-*.db"):
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
                rows += database.execute(f"SELECT payload FROM usage WHERE {condition}", values).fetchall()
            database.close()
        return rows

    async def eventually(
        self, check: Callable[[], Awaitable[Any]] | Callable[[], Any], seconds: float = RECORD_SECONDS
    ) -> Any:
        """Returns the first true result of `check`; fails after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            result = check()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return result
            assert time.monotonic() < deadline, f"not within {seconds} s"
            await asyncio.sleep(0.02)


def _script(
    *,
    events: Sequence[bytes | float | asyncio.Event] | None,
    body: bytes | str | dict[str, Any] | None,
    script: Script | None,
    status: int,
    headers: Mapping[str, str] | None,
) -> Script:
    if script is not None:
        return script
    if events is not None:
        return stream(events, headers=headers)
    return plain(body if body is not None else {}, status, headers)
