"""`lurus models`, `lurus explain`, `lurus routes`."""

import asyncio
import sys
import time
from typing import Annotated

import grpc.aio
import typer

from lurus.routing.v1 import routing_pb2 as pb
from lurus.usage.v1 import usage_pb2
from lurus_switch.amounts import usd
from lurus_switch.commands.options import AsJson, DataDir, Dialect
from lurus_switch.mesh import Mesh, run
from lurus_switch.output import Column, clean, enum_word, print_json, print_table, short_duration

app = typer.Typer(rich_markup_mode=None, add_completion=False)

RECONNECT_SECONDS = 1.0


@app.command()
def models(
    all_: Annotated[bool, typer.Option("--all", help="For the operator: what any key may use.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Lists the models that a key may use and somebody serves.

    The key is that of LURUS_API_KEY, else the first key of the mesh. A
    provider that serves patterns serves more names than are listed.
    """

    async def command(mesh: Mesh) -> None:
        routing = mesh.routing if all_ else mesh.routing_for(mesh.place.api_key())
        found = await routing.ListModels(pb.ListModelsRequest())
        if as_json:
            return print_json(found)
        return print_table(_MODEL_COLUMNS, found.models, "nobody serves a model that this key may use")

    run(command, data_dir)


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help="As a client would ask for it.")],
    dialect: Dialect = None,
    key_id: Annotated[str, typer.Option("--key", metavar="KEY", help="As this key, by id.")] = "",
    session: Annotated[str, typer.Option(help="In this session of a client.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Tells where a request would go now, in order, and why not elsewhere.

    \b
    Example:
        lurus explain claude-sonnet-5 --dialect anthropic
    """
    wanted = usage_pb2.Dialect.ValueType(dialect or 0)
    request = pb.ExplainRouteRequest(model=model, dialect=wanted, session_id=session, key_id=key_id)

    async def command(mesh: Mesh) -> None:
        found = await mesh.routing.ExplainRoute(request)
        if as_json:
            return print_json(found)
        if found.policy:
            last = "; nobody is healthy: benches and breakers count for 5 s" if found.is_last_resort else ""
            print(f"by level, then by {found.policy.replace('_', ' ')}{last}")
        return print_table(
            _ROUTE_COLUMNS, found.candidates, f"nobody serves {model}; see `lurus provider list`"
        )

    run(command, data_dir)


@app.command()
def routes(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show changes as they come.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Shows the state of every route: breakers, benches, latencies, calls that run.

    One line for each credential, and one for each model it was asked for; of
    the worker that answers. With --follow a line for each change, or a JSON
    object a line, until Ctrl-C.

    \b
    Example:
        lurus routes --follow
    """

    async def command(mesh: Mesh) -> None:
        has_begun = False
        while True:
            try:
                async for response in mesh.routing.WatchRoutes(pb.WatchRoutesRequest()):
                    _print_routes(response, as_json, is_first=not has_begun)
                    has_begun = True
                    if not follow:
                        return
            except grpc.aio.AioRpcError as error:
                if not has_begun or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            print("the routing service has gone; waiting for it", file=sys.stderr)
            await asyncio.sleep(RECONNECT_SECONDS)

    run(command, data_dir)


def _print_routes(response: pb.WatchRoutesResponse, as_json: bool, *, is_first: bool) -> None:
    if as_json:
        print_json(response, indent=None)
    elif is_first:
        print_table(_STATE_COLUMNS, response.candidates, "no providers; see `lurus provider create`")
        sys.stdout.flush()
    else:
        now = time.strftime("%H:%M:%S")
        for row in response.candidates:
            cells = [f"{name.lower()} {value(row)}" for name, value in _STATE_COLUMNS[2:] if value(row)]
            name = "  ".join(clean(value(row)) for _, value in _STATE_COLUMNS[:2])
            print(f"{now}  {name}  {clean(', '.join(cells))}", flush=True)


def _price(row: pb.CandidateExplanation) -> str:
    """What a million tokens cost."""
    if not row.HasField("input_nano_usd"):
        return "no price"
    return f"{usd(row.input_nano_usd)} / {usd(row.output_nano_usd)}"


def _live(row: pb.CandidateExplanation) -> str:
    return f"{row.live_count} of {row.max_concurrency}" if row.max_concurrency else str(row.live_count)


_MODEL_COLUMNS: list[Column[pb.ServedModel]] = [
    ("MODEL", lambda row: row.model_id),
    ("NAME", lambda row: row.display_name if row.display_name != row.model_id else ""),
    ("OWNED BY", lambda row: row.owned_by),
    ("DIALECTS", lambda row: ", ".join(enum_word(usage_pb2.Dialect.DESCRIPTOR, n) for n in row.dialects)),
    ("INPUT", lambda row: str(row.max_input_tokens or "")),
    ("OUTPUT", lambda row: str(row.max_output_tokens or "")),
]
_ROUTE_COLUMNS: list[Column[pb.CandidateExplanation]] = [
    ("PROVIDER", lambda row: f"{row.provider_id}/{row.credential_id}"),
    ("ASKED FOR", lambda row: row.upstream_model),
    ("RULE", lambda row: row.rule or "every model"),
    ("LEVEL", lambda row: str(row.level)),
    ("WEIGHT", lambda row: str(row.weight)),
    ("TAGS", lambda row: ", ".join(row.tags)),
    ("PRICE IN/OUT", _price),
    ("LATENCY", lambda row: short_duration(row, "latency_duration")),
    ("BREAKER", lambda row: enum_word(pb.BreakerState.DESCRIPTOR, row.breaker)),
    ("BENCHED FOR", lambda row: short_duration(row, "bench_duration")),
    ("SKIPPED", lambda row: row.skip_reason or ("in reserve" if row.is_reserve else "")),
]
_STATE_COLUMNS: list[Column[pb.CandidateExplanation]] = [
    ("PROVIDER", lambda row: f"{row.provider_id}/{row.credential_id}"),
    ("ASKED FOR", lambda row: row.upstream_model),
    ("BREAKER", lambda row: enum_word(pb.BreakerState.DESCRIPTOR, row.breaker) if row.upstream_model else ""),
    ("LATENCY", lambda row: short_duration(row, "latency_duration")),
    ("LIVE", lambda row: "" if row.upstream_model else _live(row)),
    ("BENCHED FOR", lambda row: short_duration(row, "bench_duration")),
    ("RESTS", lambda row: row.skip_reason),
]
