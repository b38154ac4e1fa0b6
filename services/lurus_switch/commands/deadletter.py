"""`lurus deadletter`: events that the ledger has set aside for a person."""

from typing import Annotated

import typer
from google.protobuf.message import DecodeError

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_switch.amounts import usd
from lurus_switch.commands import options
from lurus_switch.commands.options import AsJson, DataDir, Limit, Yes
from lurus_switch.mesh import Mesh, run, whole_list
from lurus_switch.output import Column, enum_word, local_time, print_fields, print_json, print_table

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True)

Id = Annotated[
    str, typer.Argument(metavar="LETTER", help="Its id, `dl_…`; `lurus deadletter list` shows it.")
]


@app.callback()
def deadletter() -> None:
    """Events that the ledger, or the export to Lago, has set aside for a person.

    `parked` ones could not be read or booked: mend what was wrong, then replay
    them. Of a `conflict` the request is charged already, and this is another
    content under its id: look into it, correct a difference with
    `lurus account credit`, and resolve it. An `export` is booked, but Lago
    refused it: mend that, such as a subscription it does not know, then replay.
    """


@app.command("list")
def list_letters(
    cause: Annotated[
        int | None,
        typer.Option(
            parser=options.enum_parser(pb.DeadLetterCause.DESCRIPTOR),
            metavar="CAUSE",
            help="Only parked, only conflict, or only export.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are dealt with.")] = False,
    limit: Limit = 20,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Lists what waits for a person, newest first."""
    request = pb.ListDeadLettersRequest(
        cause=pb.DeadLetterCause.ValueType(cause or 0), includes_resolved=everything
    )

    async def command(mesh: Mesh) -> None:
        found = await whole_list(mesh.billing.ListDeadLetters, request, pb.ListDeadLettersResponse(), limit)
        if as_json:
            return print_json(found)
        return print_table(_COLUMNS, found.dead_letters, "no dead letters")

    run(command, data_dir)


@app.command()
def replay(dead_letter_id: Id, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Books a parked event after all: once, however often it is replayed."""

    async def command(mesh: Mesh) -> None:
        request = pb.ReplayDeadLetterRequest(dead_letter_id=dead_letter_id)
        _show((await mesh.billing.ReplayDeadLetter(request)).dead_letter, as_json)

    run(command, data_dir)


@app.command()
def resolve(
    dead_letter_id: Id,
    resolution: Annotated[str, typer.Option("--note", help="What was done about it.")],
    yes: Yes = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Says that a letter is dealt with. Nothing is booked."""
    options.confirm(f"Resolve {dead_letter_id} without booking it?", yes)

    async def command(mesh: Mesh) -> None:
        request = pb.ResolveDeadLetterRequest(dead_letter_id=dead_letter_id, resolution=resolution)
        _show((await mesh.billing.ResolveDeadLetter(request)).dead_letter, as_json)

    run(command, data_dir)


def _event(letter: pb.DeadLetter) -> UsageEvent:
    """What can be read of a letter's event; empty if nothing."""
    try:
        return UsageEvent.FromString(letter.payload)
    except DecodeError:
        return UsageEvent()


def _show(letter: pb.DeadLetter, as_json: bool) -> None:
    if as_json:
        return print_json(letter)
    return print_fields([*((name, value(letter)) for name, value in _FIELDS), ("id", letter.dead_letter_id)])


_FIELDS: list[Column[pb.DeadLetter]] = [
    ("set aside", lambda row: local_time(row, "create_time")),
    ("cause", lambda row: enum_word(pb.DeadLetterCause.DESCRIPTOR, row.cause)),
    ("reason", lambda row: row.reason),
    ("request", lambda row: row.request_id or _event(row).request_id),
    ("account", lambda row: _event(row).account_id),
    ("resolved", lambda row: local_time(row, "resolve_time")),
    ("resolution", lambda row: row.resolution),
]
_COLUMNS: list[Column[pb.DeadLetter]] = [
    ("TIME", lambda row: local_time(row, "create_time")),
    ("CAUSE", lambda row: enum_word(pb.DeadLetterCause.DESCRIPTOR, row.cause)),
    ("ACCOUNT", lambda row: _event(row).account_id),
    ("COST", lambda row: usd(_event(row).cost_nano_usd)),
    ("REASON", lambda row: row.resolution or row.reason),
    ("REQUEST", lambda row: row.request_id or _event(row).request_id),
    ("ID", lambda row: row.dead_letter_id),
]
