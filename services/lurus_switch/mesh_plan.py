"""What `lurus up` runs: ports, settings and processes of a mesh on this machine."""

import base64
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from lurus_common.settings import PREFIX, Settings, to_environment
from lurus_switch.embedded import DataDir, EmbeddedBackends, ProcessSpec
from lurus_switch.embedded.data_dir import port_is_free
from lurus_switch.embedded.probe import NotReady, ask, expect, http_get
from lurus_switch.failures import USAGE, CommandFailed
from lurus_switch.places import ADMIN_TOKEN

AUTO = "auto"
# Edge first: `--port N` gives these N, N+1, …
SERVICE_NAMES = ("edge", "provider", "log", "billing", "routing", "sandbox")
OPS_DISTANCE = 1000
MAX_WORKERS = 64
READY_SECONDS = 60.0
# A developer's Ctrl-C does not wait for long streams; LURUS_DRAIN_SECONDS says otherwise.
DRAIN_SECONDS = 5.0
# For what comes after the last stream: last words, the outbox, leases.
STOP_MARGIN_SECONDS = 20.0
# Begins what a process says that has not started all of what it serves, see `Life`.
NOT_SERVING = b'"problems": {"process"'

_ANY_ADDRESS = frozenset({"", "0.0.0.0", "::"})  # noqa: S104  (compared with, not bound to)
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """A mesh to be started.

    Attributes:
        settings: of its processes, with secrets and the stores' URLs.
        workers: gateway processes.
        ops_ports: by process.
        spare_ops_ports: of the gateways, each while the other one of the pair is taken.
        stores: HOST:PORT of the stores, by name; without credentials.
        backends: those that are started here.
        environment: what every process gets beside its settings.
    """

    settings: Settings
    workers: int
    ops_ports: Mapping[str, int]
    spare_ops_ports: Mapping[str, int]
    stores: Mapping[str, str]
    backends: EmbeddedBackends
    environment: Mapping[str, str]

    @property
    def gateways(self) -> list[str]:
        """Names of the gateway processes."""
        return gateway_names(self.workers)

    @property
    def address_of_edge(self) -> str:
        """HOST:PORT for clients on this machine."""
        return host_port(self.settings.host, self.settings.edge_port)

    def addresses(self) -> dict[str, str]:
        """HOST:PORT by area, and of edge and sandbox."""
        settings = self.settings
        return {
            "edge": self.address_of_edge,
            "routing": settings.routing_address,
            "provider": settings.provider_address,
            "log": settings.log_address,
            "billing": settings.billing_address,
            "sandbox": host_port(_LOOPBACK, settings.sandbox_port),
        }

    def services(self) -> list[ProcessSpec]:
        """What stands behind the gateway. They wait for the stores themselves, so all start at once."""
        return [
            *(self._service(name, name, self.ops_ports[name]) for name in ("provider", "log", "billing")),
            self._sandbox(),
        ]

    def gateway_specs(self, listener: int | None = None) -> list[ProcessSpec]:
        """The gateway processes. They share the edge's socket, of which `listener` is the descriptor.

        They bind the routing port beside each other: gRPC takes no socket from outside.
        """
        return [self._gateway(name, self.ops_ports[name], name, listener) for name in self.gateways]

    def next_gateway(self, name: str, listener: int, *, is_second: bool) -> ProcessSpec:
        """What takes the place of a gateway process, when it has all that it needs to serve.

        Args:
            name: of the place.
            listener: as above.
            is_second: of the two that take turns in the place. While both run, each needs a worker id
                of its own, which names its outbox, and an ops port.
        """
        port = self.spare_ops_ports[name] if is_second else self.ops_ports[name]

        async def ready() -> None:
            await is_ready(port)

        pair = (name, f"{name}-b")
        spec = self._gateway(name, port, pair[is_second], listener, predecessor_id=pair[not is_second])
        return replace(spec, ready=ready)

    def _gateway(
        self, name: str, ops_port: int, worker_id: str, listener: int | None, predecessor_id: str = ""
    ) -> ProcessSpec:
        async def ready() -> None:
            answer = await ask(ops_port, http_get("/ready"), b"}")
            if NOT_SERVING in answer:
                raise NotReady(f"it does not serve yet: {answer[-200:]!r}")

        spec = self._service("gateway", name, ops_port, worker_id, predecessor_id)
        return replace(spec, ready=ready, listener=listener)

    def bootstrap(self) -> ProcessSpec:
        """What makes the first account, key and provider, and ends."""
        return ProcessSpec(
            name="bootstrap",
            argv=[sys.executable, "-m", "lurus_switch.bootstrap"],
            ready=_nobody_asks,
            env={**self.environment, **to_environment(self.settings)},
        )

    def _service(
        self, target: str, name: str, ops_port: int, worker_id: str = "worker-0", predecessor_id: str = ""
    ) -> ProcessSpec:
        settings = msgspec.structs.replace(
            self.settings, ops_port=ops_port, worker_id=worker_id, predecessor_id=predecessor_id
        )

        async def ready() -> None:
            await expect(ops_port, http_get("/health"), b"}", b'{"status": "alive"}')

        return ProcessSpec(
            name=name,
            argv=_argv(target),
            ready=ready,
            env={**self.environment, **to_environment(settings)},
            ready_seconds=READY_SECONDS,
            stop_seconds=settings.drain_seconds + STOP_MARGIN_SECONDS,
        )

    def _sandbox(self) -> ProcessSpec:
        """The sandbox: a stranger to the mesh, so it gets none of its secrets."""
        port = self.settings.sandbox_port
        settings = Settings(sandbox_port=port, log_level=self.settings.log_level)

        async def ready() -> None:
            await expect(port, http_get("/health"), b"}", b"}")

        return ProcessSpec(
            name="sandbox",
            argv=_argv("sandbox"),
            ready=ready,
            env={**self.environment, **to_environment(settings)},
            ready_seconds=READY_SECONDS,
        )


async def is_ready(ops_port: int) -> None:
    """Raises unless the process with this ops port says that nothing is missing."""
    await expect(ops_port, http_get("/ready"), b"}", b'{"status": "ready"}')


async def _nobody_asks() -> None:
    return None


def _argv(target: str) -> list[str]:
    return [sys.executable, "-m", "lurus_switch.targets", target]


def gateway_names(workers: int) -> list[str]:
    """Returns the names of the gateway processes: `gateway`, or `gateway-0` and so on."""
    return ["gateway"] if workers == 1 else [f"gateway-{index}" for index in range(workers)]


def host_port(host: str, port: int) -> str:
    """Returns HOST:PORT for a client on this machine of a server that listens on `host`."""
    shown = _LOOPBACK if host in _ANY_ADDRESS else f"[{host}]" if ":" in host else host
    return f"{shown}:{port}"


def make_plan(
    settings: Settings, given: frozenset[str], data_dir: DataDir, port: str | None, workers: int
) -> MeshPlan:
    """Returns what to run, with free ports and the secrets of the data directory.

    Args:
        settings: of the environment.
        given: names of the settings that the environment states.
        data_dir: locked by us.
        port: of the edge, the others follow; `auto` for any free ones; None as in the settings.
        workers: gateway processes.

    Raises:
        CommandFailed: if ports are in use, and how to choose others.
        EmbeddedError: if a store cannot be started here.
    """
    ports = _service_ports(settings, given, data_dir, port)
    ops_ports = _ops_ports(data_dir, ports, workers, port == AUTO)
    spare_ops_ports = {name: data_dir.port(f"ops-{name}-b") for name in gateway_names(workers)}
    overrides = {name: getattr(settings, name) for name in _URLS}
    backends = EmbeddedBackends(data_dir, overrides=overrides)
    settings = msgspec.structs.replace(
        settings,
        data_dir=str(data_dir.path),
        gateway_workers=settings.gateway_workers if "gateway_workers" in given else workers,
        drain_seconds=settings.drain_seconds if "drain_seconds" in given else DRAIN_SECONDS,
        allowed_http_hosts=",".join(sorted(settings.http_hosts() | {_LOOPBACK})),
        **{f"{name}_port": number for name, number in ports.items()},
        **{f"{area}_address": host_port(settings.host, ports[area]) for area in _AREAS},
        **{name: getattr(backends.urls, name) for name in _URLS},
        **_secrets(settings, data_dir),
    )
    stores = {name: _host_and_port(getattr(settings, url)) for url, name in _URLS.items()}
    environment = process_environment(data_dir, os.environ)
    return MeshPlan(settings, workers, ops_ports, spare_ops_ports, stores, backends, environment)


_URLS = {
    "database_url": "postgres",
    "nats_url": "nats",
    "redis_url": "valkey",
    "clickhouse_url": "clickhouse",
}
_AREAS = ("routing", "provider", "log", "billing")


def _secrets(settings: Settings, data_dir: DataDir) -> dict[str, str]:
    """The mesh's secrets: from the settings, else made once and kept in the data directory."""
    credential_key = base64.b64encode(bytes.fromhex(data_dir.secret("credential-key"))).decode()
    return {
        "admin_token": settings.admin_token or data_dir.secret(ADMIN_TOKEN),
        "key_pepper": settings.key_pepper or data_dir.secret("key-pepper"),
        "credential_key": settings.credential_key or credential_key,
    }


def _service_ports(
    settings: Settings, given: frozenset[str], data_dir: DataDir, port: str | None
) -> dict[str, int]:
    if port == AUTO:
        return {name: data_dir.port(name) for name in SERVICE_NAMES}
    ports = {name: getattr(settings, f"{name}_port") for name in SERVICE_NAMES}
    if port is not None:
        base = int(port)
        ports.update(
            {
                name: base + distance
                for distance, name in enumerate(SERVICE_NAMES)
                if name == "edge" or f"{name}_port" not in given
            }
        )
    ports = {name: number or data_dir.port(name) for name, number in ports.items()}
    if not port_is_free(ports["sandbox"]) and "sandbox_port" not in given:
        ports["sandbox"] = data_dir.port("sandbox")
    _refuse_taken(ports)
    return ports


def _refuse_taken(ports: Mapping[str, int]) -> None:
    taken = [f"{number} ({name})" for name, number in ports.items() if not port_is_free(number)]
    if taken:
        several = len(taken) > 1
        raise CommandFailed(
            f"port{'s' if several else ''} {', '.join(taken)} {'are' if several else 'is'} in use",
            remedy="Is another mesh running? `lurus status` tells, Ctrl-C in its terminal stops it.\n"
            "Or choose other ports: `lurus up --port 18200` (uses 18200 to 18205), `lurus up --port auto`,\n"
            f"or one by one: {PREFIX}EDGE_PORT, {PREFIX}ROUTING_PORT, …",
            exit_code=USAGE,
        )


def _ops_ports(data_dir: DataDir, ports: Mapping[str, int], workers: int, is_auto: bool) -> dict[str, int]:
    """Ops ports: 1000 above the service's own where free, else any."""
    wanted = {name: ports[name] + OPS_DISTANCE for name in ("provider", "log", "billing")}
    for index, name in enumerate(gateway_names(workers)):
        wanted[name] = ports["routing"] + OPS_DISTANCE if index == 0 else 0
    return {
        name: number
        if number and not is_auto and number < 65536 and port_is_free(number)
        else data_dir.port(f"ops-{name}")
        for name, number in wanted.items()
    }


def process_environment(data_dir: DataDir, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of our processes, without settings.

    Bytecode is always kept, since it halves the time to start and the memory
    at rest: in the data directory where it must not, or cannot, lie beside the source.
    """
    kept = {name: value for name, value in environment.items() if not name.startswith(PREFIX)}
    is_unwanted = bool(kept.pop("PYTHONDONTWRITEBYTECODE", ""))
    if is_unwanted or not os.access(Path(__file__).parent, os.W_OK):
        kept.setdefault("PYTHONPYCACHEPREFIX", str(data_dir.directory("bytecode")))
    # Two allocation arenas instead of eight a core: gRPC's threads would take one each.
    return {"MALLOC_ARENA_MAX": "2", "GRPC_VERBOSITY": "ERROR", **kept}


def _host_and_port(url: str) -> str:
    """Returns HOST:PORT of a URL, without its credentials."""
    authority = url.partition("://")[2].partition("/")[0].partition("?")[0]
    return authority.rpartition("@")[2].partition(",")[0]
