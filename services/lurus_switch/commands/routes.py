"""`lurus models`, `lurus explain`."""

from typing import Annotated

import typer

from lurus.routing.v1 import routing_pb2 as pb
from lurus.usage.v1 import usage_pb2
from lurus_switch.commands.options import AsJson, DataDir, Dialect
from lurus_switch.mesh import Mesh, run
from lurus_switch.output import Column, enum_word, print_json, print_table, short_duration

app = typer.Typer(rich_markup_mode=None, add_completion=False)


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
        return print_table(
            _ROUTE_COLUMNS, found.candidates, f"nobody serves {model}; see `lurus provider list`"
        )

    run(command, data_dir)


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
    ("BREAKER", lambda row: enum_word(pb.BreakerState.DESCRIPTOR, row.breaker)),
    ("BENCHED FOR", lambda row: short_duration(row, "bench_duration")),
    ("SKIPPED", lambda row: row.skip_reason),
]
