"""`lurus key`: API keys."""

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from lurus.billing.v1 import billing_pb2 as pb
from lurus_switch.bootstrap import ACCOUNT_ID
from lurus_switch.commands import fields, options
from lurus_switch.commands.demands import MaxInputPrice, MaxOutputPrice, RequiredTags, demands
from lurus_switch.commands.options import AsJson, DataDir, Yes
from lurus_switch.commands.rate_limits import (
    ConcurrentRequests,
    RequestsPerMinute,
    TokensPerMinute,
    rate_limits,
)
from lurus_switch.failures import CommandFailed
from lurus_switch.mesh import Mesh, run, whole_list
from lurus_switch.output import Column, local_time, print_fields, print_json, print_table

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="KEY", help="Its id, `key_…` (not the secret).")]


@dataclass
class Fields:
    """What can be said of a key."""

    display_name: Annotated[str | None, typer.Option("--name", help="For people.")] = None
    allowed_models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="PATTERN", help="May use this model: a name, or with one *. Repeat."),
    ] = None
    expire_time: Annotated[
        Any,
        typer.Option(
            "--expires", parser=options.later_parser, metavar="TIME", help="Works until: 30d, 2027-01-31."
        ),
    ] = None
    rate_limits__requests_per_minute: RequestsPerMinute = None
    rate_limits__tokens_per_minute: TokensPerMinute = None
    rate_limits__concurrent_requests: ConcurrentRequests = None
    demands__required_tags: RequiredTags = None
    demands__max_input_nano_usd: MaxInputPrice = None
    demands__max_output_nano_usd: MaxOutputPrice = None


@app.callback()
def key() -> None:
    """API keys: what clients present. Each belongs to one account.

    \b
    Examples:
        lurus key create --account acct_team --model 'claude-*' --expires 90d
        lurus key list --account acct_team
        lurus key revoke key_01J…
    """


@app.command("list")
def list_keys(
    account: Annotated[str, typer.Option(help="Only of this account.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Lists keys by id, without their secrets."""

    async def command(mesh: Mesh) -> None:
        request = pb.ListKeysRequest(account_id=account)
        found = await whole_list(mesh.billing.ListKeys, request, pb.ListKeysResponse())
        if as_json:
            return print_json(found)
        return print_table(_COLUMNS, found.keys, "no keys; make one with `lurus key create`")

    run(command, data_dir)


@app.command()
def show(key_id: Id, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Shows one key, without its secret."""

    async def command(mesh: Mesh) -> None:
        found = await mesh.billing.GetKey(pb.GetKeyRequest(key_id=key_id))
        _show(found.key, as_json)

    run(command, data_dir)


@app.command()
@fields.flattened
def create(
    given: Fields,
    account: Annotated[str, typer.Option(metavar="ACCOUNT", help="Who pays.")] = ACCOUNT_ID,
    key_id: Annotated[str, typer.Option("--id", metavar="ID", help="`key_…`; one is made if not said.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Makes a key and prints its secret, this once: on standard output, everything else on standard error.

    \b
    Example:
        export LURUS_API_KEY=$(lurus key create --name laptop)
    """
    message = pb.Key(key_id=key_id, account_id=account)
    fields.fill(message, given)

    async def command(mesh: Mesh) -> None:
        created = await mesh.billing.CreateKey(pb.CreateKeyRequest(key=message))
        if as_json:
            return print_json(created)
        if not created.secret:
            raise CommandFailed(f"{created.key.key_id} was made before; its secret is not shown again")
        print(f"{created.key.key_id} of {created.key.account_id}; shown this once:", file=sys.stderr)
        return print(created.secret)

    run(command, data_dir)


@app.command()
@fields.flattened
def update(key_id: Id, given: Fields, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Changes what is given, and nothing else; `--model ''` allows all models."""
    change = pb.Key(key_id=key_id)
    request = fields.masked(pb.UpdateKeyRequest(), fields.fill(change, given))
    request.key.CopyFrom(change)

    async def command(mesh: Mesh) -> None:
        updated = await mesh.billing.UpdateKey(request)
        _show(updated.key, as_json)

    run(command, data_dir)


@app.command()
def revoke(key_id: Id, yes: Yes = False, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Stops a key for good."""
    options.confirm(f"Revoke {key_id}? It never works again.", yes)

    async def command(mesh: Mesh) -> None:
        revoked = await mesh.billing.RevokeKey(pb.RevokeKeyRequest(key_id=key_id))
        return print_json(revoked.key) if as_json else print(f"{key_id} is revoked")

    run(command, data_dir)


app.command("delete", help="The same as `revoke`: keys are kept for the ledger.")(revoke)


def _show(message: pb.Key, as_json: bool) -> None:
    if as_json:
        return print_json(message)
    return print_fields(
        [
            ("id", message.key_id),
            ("account", message.account_id),
            ("name", message.display_name),
            ("secret", f"{message.secret_prefix}…" if message.secret_prefix else ""),
            ("models", ", ".join(message.allowed_models) or "all"),
            ("expires", local_time(message, "expire_time") or "never"),
            ("revoked", local_time(message, "revoke_time")),
            ("limits", rate_limits(message.rate_limits)),
            ("demands", demands(message.demands)),
            ("created", local_time(message, "create_time")),
        ]
    )


_COLUMNS: list[Column[pb.Key]] = [
    ("ID", lambda row: row.key_id),
    ("ACCOUNT", lambda row: row.account_id),
    ("NAME", lambda row: row.display_name),
    ("SECRET", lambda row: f"{row.secret_prefix}…" if row.secret_prefix else ""),
    ("MODELS", lambda row: ", ".join(row.allowed_models) or "all"),
    ("EXPIRES", lambda row: local_time(row, "expire_time") or "never"),
    ("LIMITS", lambda row: rate_limits(row.rate_limits)),
    ("REVOKED", lambda row: local_time(row, "revoke_time")),
]
