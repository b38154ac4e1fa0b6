"""A Lago that takes usage events as the real one does: of its API, only the batch of events.

The real one is a Ruby application with stores of its own, which does not run here. What is known of it stands
in `design.md` §7 and `reliability.md` §3.9: with PostgreSQL a repeated id is refused, and one of them rolls a
whole batch back; with ClickHouse everything is taken, and what repeats both id and time is one event.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

API_KEY = "lago-key-of-the-tests-1f7a"
METRIC_CODE = "lurus_usage"
MAX_EVENTS = 100
_REQUIRED = ("transaction_id", "external_subscription_id", "code", "timestamp", "properties")
Fault = Literal["429", "500", "stored 500", "cut", "stored cut"]


@dataclass(slots=True)
class FakeLago:
    """Its events, and what it does wrong next, one fault for each call.

    Attributes:
        store: where it keeps events.
        closed: subscriptions that it does not know.
    """

    store: Literal["postgresql", "clickhouse"] = "postgresql"
    events: list[dict[str, Any]] = field(default_factory=list)
    faults: deque[Fault] = field(default_factory=deque)
    closed: set[str] = field(default_factory=set)
    call_count: int = 0
    port: int = 0
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """What a client is told."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listens on a free port."""
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.add_routes([web.post("/api/v1/events/batch", self._take)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Ends it."""
        if self._runner is not None:
            await self._runner.cleanup()

    def billed(self) -> dict[str, list[dict[str, Any]]]:
        """What an invoice would count, by transaction id: more than one is a double bill."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for event in self.events:
            found.setdefault(event["transaction_id"], {})[event["timestamp"]] = event
        return {name: list(events.values()) for name, events in found.items()}

    async def _take(self, request: web.Request) -> web.Response:
        self.call_count += 1
        if request.headers.get("authorization") != f"Bearer {API_KEY}":
            return web.json_response({"status": 401, "error": "Unauthorized"}, status=401)
        fault = self.faults.popleft() if self.faults else ""
        events = (await request.json()).get("events")
        if fault == "429":
            return web.json_response({}, status=429, headers={"retry-after": "0.1"})
        if fault in ("", "stored 500", "stored cut"):
            answer = self._store(events)
        if fault.endswith("cut"):
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({}, status=500) if fault else answer

    def _store(self, events: Any) -> web.Response:
        if not isinstance(events, list) or not 0 < len(events) <= MAX_EVENTS:
            return _unprocessable({"events": ["too_many_events"]})
        known = {(event["external_subscription_id"], event["transaction_id"]) for event in self.events}
        errors: dict[str, Any] = {}
        for number, event in enumerate(events):
            if found := self._errors(event):
                errors[str(number)] = found
            elif self.store == "postgresql":
                name = (event["external_subscription_id"], event["transaction_id"])
                if name in known:
                    errors[str(number)] = {"transaction_id": ["value_already_exist"]}
                known.add(name)
        if errors:
            return _unprocessable(errors)
        self.events += events
        return web.json_response({"events": events})

    def _errors(self, event: Any) -> dict[str, list[str]]:
        missing = {name: ["value_is_mandatory"] for name in _REQUIRED if not event.get(name)}
        if missing:
            return missing
        if not all(isinstance(value, str) for value in event["properties"].values()):
            return {"properties": ["value_is_invalid"]}
        if float(event["timestamp"]) <= 0 or float(event["precise_total_amount_cents"]) < 0:
            return {"timestamp": ["invalid_format"]}
        if event["code"] != METRIC_CODE:
            return {"code": ["metric_not_found"]}
        if event["external_subscription_id"] in self.closed:
            return {"external_subscription_id": ["subscription_not_found"]}
        return {}


def _unprocessable(errors: dict[str, Any]) -> web.Response:
    body = {"status": 422, "error": "Unprocessable Entity", "code": "validation_errors"}
    return web.json_response({**body, "error_details": errors}, status=422)
