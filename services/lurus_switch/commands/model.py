"""`lurus model`: the catalogue."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from lurus.provider.v1 import provider_pb2 as pb
from lurus_switch.commands import fields, options
from lurus_switch.commands.options import AsJson, DataDir, Yes
from lurus_switch.mesh import Mesh, run, whole_list
from lurus_switch.output import Column, enum_word, local_time, print_fields, print_json, print_table

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="MODEL", help="The name that clients send.")]


@dataclass
class Fields:
    """What can be said of a model."""

    display_name: Annotated[str | None, typer.Option("--name", help="For people.")] = None
    owned_by: Annotated[str | None, typer.Option("--owned-by", help="E.g. `anthropic`.")] = None
    max_input_tokens: Annotated[
        int | None, typer.Option("--max-input", metavar="TOKENS", help="Tokens that fit into the prompt.")
    ] = None
    max_output_tokens: Annotated[
        int | None, typer.Option("--max-output", metavar="TOKENS", help="Tokens that it can write.")
    ] = None
    is_hidden: Annotated[
        bool | None, typer.Option("--hide/--show", help="A hidden model works and is not listed.")
    ] = None
    routing_policy: Annotated[
        Any,
        typer.Option(
            "--policy",
            parser=options.enum_parser(pb.RoutingPolicy.DESCRIPTOR),
            metavar="POLICY",
            help="How providers of one level share its calls: weight or least_latency.",
        ),
    ] = None
    thinks_first: Annotated[
        bool | None,
        typer.Option(
            "--thinks-first/--answers-at-once", help="Its first event may take minutes, also unasked."
        ),
    ] = None
    release_time: Annotated[
        Any,
        typer.Option(
            "--released", parser=options.earlier_parser, metavar="DATE", help="When it appeared: 2026-11-09."
        ),
    ] = None


@app.callback()
def model() -> None:
    """The catalogue of models: what clients see in their lists.

    A model needs no entry here to work: providers say what they serve.
    `lurus models` lists what a key can really use now.

    \b
    Examples:
        lurus model create house-llm --name "House LLM" --max-input 128000
        lurus model update house-llm --hide
    """


@app.command("list")
def list_models(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Lists the catalogue by id."""

    async def command(mesh: Mesh) -> None:
        found = await whole_list(mesh.provider.ListModels, pb.ListModelsRequest(), pb.ListModelsResponse())
        if as_json:
            return print_json(found)
        return print_table(_COLUMNS, found.models, "the catalogue is empty")

    run(command, data_dir)


@app.command()
def show(model_id: Id, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Shows one model."""

    async def command(mesh: Mesh) -> None:
        found = await mesh.provider.GetModel(pb.GetModelRequest(model_id=model_id))
        _show(found.model, as_json)

    run(command, data_dir)


@app.command()
@fields.flattened
def create(model_id: Id, given: Fields, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Adds a model to the catalogue."""
    message = pb.Model(model_id=model_id)
    fields.fill(message, given)

    async def command(mesh: Mesh) -> None:
        created = await mesh.provider.CreateModel(pb.CreateModelRequest(model=message))
        _show(created.model, as_json)

    run(command, data_dir)


@app.command()
@fields.flattened
def update(model_id: Id, given: Fields, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Changes what is given, and nothing else."""
    change = pb.Model(model_id=model_id)
    request = fields.masked(pb.UpdateModelRequest(), fields.fill(change, given))
    request.model.CopyFrom(change)

    async def command(mesh: Mesh) -> None:
        updated = await mesh.provider.UpdateModel(request)
        _show(updated.model, as_json)

    run(command, data_dir)


@app.command()
def delete(model_id: Id, yes: Yes = False, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Removes a model from the catalogue; providers that serve it go on serving it."""
    options.confirm(f"Remove {model_id} from the catalogue?", yes)

    async def command(mesh: Mesh) -> None:
        deleted = await mesh.provider.DeleteModel(pb.DeleteModelRequest(model_id=model_id))
        return print_json(deleted) if as_json else print(f"{model_id} is removed")

    run(command, data_dir)


def _show(message: pb.Model, as_json: bool) -> None:
    if as_json:
        return print_json(message)
    return print_fields(
        [
            ("id", message.model_id),
            ("name", message.display_name),
            ("owned by", message.owned_by),
            ("max input", str(message.max_input_tokens or "")),
            ("max output", str(message.max_output_tokens or "")),
            ("policy", enum_word(pb.RoutingPolicy.DESCRIPTOR, message.routing_policy)),
            ("thinks first", "yes" if message.thinks_first else ""),
            ("hidden", "yes" if message.is_hidden else ""),
            ("released", local_time(message, "release_time")[:10]),
            ("changed", local_time(message, "update_time")),
        ]
    )


_COLUMNS: list[Column[pb.Model]] = [
    ("ID", lambda row: row.model_id),
    ("NAME", lambda row: row.display_name),
    ("OWNED BY", lambda row: row.owned_by),
    ("INPUT", lambda row: str(row.max_input_tokens or "")),
    ("OUTPUT", lambda row: str(row.max_output_tokens or "")),
    ("HIDDEN", lambda row: "yes" if row.is_hidden else ""),
]
