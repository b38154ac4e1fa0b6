"""How a mesh is: who answers and how fast, what waits, which routes are closed to calls."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lurus.routing.v1 import routing_pb2
from lurus_common.rpc import error_of
from lurus_switch.embedded.probe import http_get
from lurus_switch.mesh import Mesh
from lurus_switch.places import AREAS, Place

ANSWER_SECONDS = 3.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024
MAX_EXPLAINED_MODELS = 200

# Metrics that tell what waits, and what to call it.
QUEUES = {
    "lurus_consumer_lag_events": "events on the bus that {consumer} has not committed",
    "lurus_outbox_unsent_events": "events in the outbox that the bus does not have",
    "lurus_outbox_intents": "requests whose end is not known yet",
    "lurus_outbox_blocked_seconds": "seconds since the bus last took events",
    "lurus_parked_events_total": "events that {consumer} has set aside for a person",
}
_SAMPLE = re.compile(r"(?P<name>[a-z0-9_]+)(?:\{(?P<labels>[^}]*)\})? (?P<value>[0-9.e+-]+)", re.ASCII)
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"', re.ASCII)


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether somebody answers. `problem` is empty if all is well."""

    kind: str
    name: str
    address: str
    latency_seconds: float | None
    problem: str


@dataclass(frozen=True, slots=True)
class Queue:
    """Something that waits in a process."""

    process: str
    metric: str
    what: str
    value: float


@dataclass(frozen=True, slots=True)
class Reliance:
    """Something that a process depends on, as that process sees it."""

    process: str
    row: routing_pb2.DependencyStatus


@dataclass(slots=True)
class Health:
    """All of it."""

    probes: list[Probe] = field(default_factory=list)
    queues: list[Queue] = field(default_factory=list)
    reliances: list[Reliance] = field(default_factory=list)
    routes: list[routing_pb2.CandidateExplanation] = field(default_factory=list)
    route_problem: str = ""


async def mesh_health(mesh: Mesh) -> Health:
    """Returns how the mesh is now; takes at most about 3 s, whatever is down."""
    place = mesh.place
    run = place.run
    lock = asyncio.Lock()
    checks = [_service(place, area, lock) for area in AREAS]
    if run is not None:
        checks += [_http("http", "edge", run.addresses["edge"], "/ready", lock)]
        checks += [_http("http", "sandbox", run.addresses["sandbox"], "/health", lock)]
        checks += [_http("ready", name, address, "/ready", lock) for name, address in run.ops.items()]
        checks += [_store(name, address, lock) for name, address in run.stores.items()]
    ops = run.ops if run else {}
    probes, queues, reliances, (routes, problem) = await asyncio.gather(
        asyncio.gather(*checks),
        asyncio.gather(*map(_queues, ops, ops.values())),
        asyncio.gather(*map(_reliances, ops, ops.values())),
        _routes(mesh),
    )
    return Health(
        list(probes),
        [row for rows in queues for row in rows],
        [row for rows in reliances for row in rows],
        routes,
        problem,
    )


async def _timed(
    kind: str, name: str, address: str, call: Callable[[], Awaitable[str]], one_at_a_time: asyncio.Lock
) -> Probe:
    """Asks once whether there is an answer, and once more, alone, how long it takes."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            problem = await call()
            async with one_at_a_time:
                begin = time.monotonic()
                await call()
                return Probe(kind, name, address, time.monotonic() - begin, problem)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, grpc.aio.AioRpcError) as error:
        return Probe(kind, name, address, None, _reason(error))


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {ANSWER_SECONDS:g} s"
    if isinstance(error, grpc.aio.AioRpcError):
        return "no answer" if error.code() is grpc.StatusCode.UNAVAILABLE else error.code().name.lower()
    return "connection refused" if isinstance(error, ConnectionRefusedError) else str(error) or "no answer"


async def _service(place: Place, area: str, one_at_a_time: asyncio.Lock) -> Probe:
    address = place.address(area)

    async def ask() -> str:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest())
        is_serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        return "" if is_serving else "it does not serve: it starts or drains"

    return await _timed("service", area, address, ask, one_at_a_time)


async def _store(name: str, address: str, one_at_a_time: asyncio.Lock) -> Probe:
    async def ask() -> str:
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.close()
        return ""

    return await _timed("store", name, address, ask, one_at_a_time)


async def _http(kind: str, name: str, address: str, path: str, one_at_a_time: asyncio.Lock) -> Probe:
    async def ask() -> str:
        status, body = await fetch(address, path)
        return "" if status == 200 else problem_text(status, body)

    return await _timed(kind, name, address, ask, one_at_a_time)


async def fetch(address: str, path: str) -> tuple[int, bytes]:
    """Returns status and body of an HTTP/1.0 GET.

    Raises:
        OSError: nobody answers, or not in HTTP.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), limit=MAX_ANSWER_BYTES)
    try:
        writer.write(http_get(path))
        answer = await reader.read(-1)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        raise OSError("the answer is not HTTP")
    return int(words[1]), body


def problem_text(status: int, body: bytes) -> str:
    """Returns what a readiness answer says is missing."""
    try:
        problems = json.loads(body)["problems"]
        return ", ".join(f"{name}: {problem}" for name, problem in problems.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"HTTP status {status}"


async def _queues(process: str, address: str) -> list[Queue]:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            _, body = await fetch(address, "/metrics")
    except (OSError, TimeoutError):
        return []
    return [
        Queue(process, name, QUEUES[name].format(**{"consumer": process, **labels}), value)
        for name, labels, value in samples(body.decode(errors="replace"))
        if name in QUEUES and (value or not name.startswith("lurus_parked"))
    ]


async def _reliances(process: str, address: str) -> list[Reliance]:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            status, body = await fetch(address, "/status")
        if status != 200:
            return []
        found = json_format.Parse(body, routing_pb2.GetStatusResponse(), ignore_unknown_fields=True)
    except (OSError, TimeoutError, json_format.ParseError):
        return []
    return [Reliance(process, row) for row in found.dependencies]


def samples(text: str) -> list[tuple[str, Mapping[str, str], float]]:
    """Returns name, labels and value of each sample in an OpenMetrics text."""
    found: list[tuple[str, Mapping[str, str], float]] = []
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match:
            labels = dict(_LABEL.findall(match["labels"] or ""))
            found.append((match["name"], labels, float(match["value"])))
    return found


async def _routes(mesh: Mesh) -> tuple[list[routing_pb2.CandidateExplanation], str]:
    """Every route of a listed model, each once; or why they cannot be told."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            served = await mesh.routing.ListModels(routing_pb2.ListModelsRequest())
            names = [model.model_id for model in served.models[:MAX_EXPLAINED_MODELS]]
            answers = await asyncio.gather(*(_explain(mesh, name) for name in names))
    except grpc.aio.AioRpcError as error:
        return [], error_of(error).message
    except TimeoutError:
        return [], f"no answer within {ANSWER_SECONDS:g} s"
    found: dict[tuple[str, str, str], Any] = {}
    for answer in answers:
        for row in answer.candidates:
            found[row.provider_id, row.credential_id, row.upstream_model] = row
    return list(found.values()), ""


async def _explain(mesh: Mesh, model: str) -> routing_pb2.ExplainRouteResponse:
    return await mesh.routing.ExplainRoute(routing_pb2.ExplainRouteRequest(model=model))


def is_usable(row: routing_pb2.CandidateExplanation) -> bool:
    """Whether calls pass on this route."""
    return row.breaker == routing_pb2.BREAKER_STATE_CLOSED and not row.HasField("bench_duration")
