"""`lurus status`."""

import json
import time
from typing import Any

import typer

from lurus.routing.v1 import routing_pb2
from lurus_switch.commands.options import AsJson, DataDir
from lurus_switch.failures import UNREACHABLE
from lurus_switch.mesh import Mesh, run
from lurus_switch.mesh_health import Health, Probe, Queue, Reliance, is_usable, mesh_health
from lurus_switch.output import Column, enum_word, print_table, short_duration, to_json
from lurus_switch.places import Place, ProcessRow

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def status(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Shows processes, who answers and how fast, what they depend on, what waits, which routes are closed.

    Ends with 0 if all is well, with 3 if something does not answer or is not ready.
    """

    async def command(mesh: Mesh) -> None:
        health = await mesh_health(mesh)
        if as_json:
            print(json.dumps(_tree(mesh.place, health), indent=2, ensure_ascii=False))
        else:
            _print(mesh.place, health)
        if any(probe.problem for probe in health.probes):
            raise typer.Exit(UNREACHABLE)

    run(command, data_dir)


def _is_well(health: Health) -> bool:
    is_online = all(found.row.mode == routing_pb2.MODE_ONLINE for found in health.reliances)
    return is_online and not any(probe.problem for probe in health.probes)


def _print(place: Place, health: Health) -> None:
    if place.run is None:
        print(f"No mesh of `lurus up` runs in {place.data_dir}; these are the addresses of the settings.\n")
    else:
        state = "runs" if place.run.is_alive else "has ended"
        print(f"The mesh in {place.data_dir} {state} (process {place.run.pid}): {place.base_url()}\n")
        rows = place.run.processes if place.run.is_alive else []
        print_table(_PROCESS_COLUMNS, rows, "")
        print()
    print_table(_PROBE_COLUMNS, health.probes, "")
    if health.reliances:
        print()
        print_table(_RELIANCE_COLUMNS, health.reliances, "")
    if health.queues:
        print()
        print_table(_QUEUE_COLUMNS, health.queues, "")
    print()
    workers = [name for name in (place.run.ops if place.run else {}) if name.startswith("gateway")]
    if len(workers) > 1:
        print(f"(routes as one of {len(workers)} workers sees them)")
    _print_routes(health)
    if _is_well(health) and not health.route_problem:
        typer.secho("\nAll is well.", fg="green")


def _print_routes(health: Health) -> None:
    closed = [row for row in health.routes if not is_usable(row)]
    if health.route_problem:
        print(f"routes: {health.route_problem}")
    elif not closed:
        print(f"routes: calls pass on all {len(health.routes)}")
    else:
        print_table(_ROUTE_COLUMNS, closed, "")


def _tree(place: Place, health: Health) -> dict[str, Any]:
    run = place.run
    return {
        "data_dir": str(place.data_dir),
        "base_url": place.base_url(),
        "is_running": bool(run and run.is_alive),
        "processes": [
            {"name": row.name, "pid": row.pid, "state": row.state, "restarts": row.restarts}
            | {"since": row.since, "last_exit": row.last_exit, "log_path": row.log_path}
            for row in (run.processes if run else [])
        ],
        "probes": [
            {"kind": row.kind, "name": row.name, "address": row.address, "problem": row.problem}
            | {"latency_seconds": row.latency_seconds}
            for row in health.probes
        ],
        "is_well": _is_well(health),
        "dependencies": [
            {"process": found.process, **json.loads(to_json(found.row))} for found in health.reliances
        ],
        "queues": [
            {"process": row.process, "metric": row.metric, "what": row.what, "value": row.value}
            for row in health.queues
        ],
        "routes": [json.loads(to_json(row)) for row in health.routes],
        "route_problem": health.route_problem,
    }


def _since(seconds: float) -> str:
    age = max(0, int(time.time() - seconds))
    hours, minutes = divmod(age // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{age} s"


def _latency(row: Probe) -> str:
    return "" if row.latency_seconds is None else f"{row.latency_seconds * 1000:.1f} ms"


_PROCESS_COLUMNS: list[Column[ProcessRow]] = [
    ("PROCESS", lambda row: row.name),
    ("PID", lambda row: str(row.pid or "")),
    ("STATE", lambda row: row.state),
    ("FOR", lambda row: _since(row.since)),
    ("RESTARTS", lambda row: str(row.restarts)),
    ("LAST EXIT", lambda row: row.last_exit or ""),
]
_PROBE_COLUMNS: list[Column[Probe]] = [
    ("WHO", lambda row: f"{row.name} ({row.kind})"),
    ("ADDRESS", lambda row: row.address),
    ("LATENCY", _latency),
    ("PROBLEM", lambda row: row.problem),
]
_RELIANCE_COLUMNS: list[Column[Reliance]] = [
    ("PROCESS", lambda found: found.process),
    ("DEPENDS ON", lambda found: found.row.name),
    ("MODE", lambda found: enum_word(routing_pb2.Mode.DESCRIPTOR, found.row.mode)),
    ("AGE", lambda found: short_duration(found.row, "age")),
    ("BACKLOG", lambda found: str(found.row.backlog_count or "")),
    ("LAG", lambda found: short_duration(found.row, "lag")),
    ("PROBLEM", lambda found: found.row.problem),
]
_QUEUE_COLUMNS: list[Column[Queue]] = [
    ("PROCESS", lambda row: row.process),
    ("COUNT", lambda row: f"{row.value:g}"),
    ("OF", lambda row: row.what),
]
_ROUTE_COLUMNS: list[Column[routing_pb2.CandidateExplanation]] = [
    ("ROUTE", lambda row: f"{row.provider_id}/{row.credential_id}"),
    ("MODEL", lambda row: row.upstream_model),
    ("BREAKER", lambda row: enum_word(routing_pb2.BreakerState.DESCRIPTOR, row.breaker)),
    ("BENCHED FOR", lambda row: short_duration(row, "bench_duration")),
    ("REASON", lambda row: row.skip_reason),
]
