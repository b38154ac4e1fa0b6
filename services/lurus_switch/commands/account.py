"""`lurus account`: who pays."""

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import grpc.aio
import typer

from lurus.billing.v1 import billing_pb2 as pb
from lurus_common.ids import new_id
from lurus_switch.amounts import factor, usd
from lurus_switch.commands import fields, options
from lurus_switch.commands.demands import MaxInputPrice, MaxOutputPrice, RequiredTags, demands
from lurus_switch.commands.options import AsJson, DataDir, Yes
from lurus_switch.commands.rate_limits import (
    ConcurrentRequests,
    RequestsPerMinute,
    TokensPerMinute,
    rate_limits,
)
from lurus_switch.mesh import Mesh, run, whole_list
from lurus_switch.output import Column, enum_word, local_time, print_fields, print_json, print_table

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its id, `acct_…`.")]
Kind = Annotated[
    int | None,
    typer.Option(
        parser=options.enum_parser(pb.TransactionKind.DESCRIPTOR),
        metavar="KIND",
        help="top_up, refund or adjustment; top_up above zero, refund below, if not said.",
    ),
]


def _policy_option(name: str, when: str) -> Any:
    return typer.Option(
        name,
        parser=options.enum_parser(pb.InterruptionPolicy.DESCRIPTOR),
        metavar="POLICY",
        help=f"Where {when}: `bill` what was served (the default), or `waive` it.",
    )


@dataclass
class Fields:
    """What can be said of an account."""

    display_name: Annotated[str | None, typer.Option("--name", help="For people.")] = None
    credit_limit_nano_usd: Annotated[
        Any,
        typer.Option(
            "--credit-limit",
            parser=options.positive_nano_usd_parser,
            metavar="USD",
            help="How far below zero its balance may go.",
        ),
    ] = None
    offline_policy: Annotated[
        Any,
        typer.Option(
            "--offline",
            parser=options.enum_parser(pb.OfflinePolicy.DESCRIPTOR),
            metavar="POLICY",
            help="When billing is away: `lease` goes on until the lease is used up, `open` without limit, "
            "`closed` refuses.",
        ),
    ] = None
    time_zone: Annotated[
        str | None, typer.Option("--time-zone", help="In which its days begin, e.g. Europe/Berlin.")
    ] = None
    price_multiplier_ppm: Annotated[
        Any,
        typer.Option(
            "--price-multiplier",
            parser=options.ppm_parser,
            metavar="FACTOR",
            help="On every price, e.g. 1.2; 0 means 1.",
        ),
    ] = None
    settlement_policy__client_gone: Annotated[Any, _policy_option("--client-gone", "a client left")] = None
    settlement_policy__upstream_error: Annotated[
        Any, _policy_option("--upstream-error", "the provider reported an error midway")
    ] = None
    settlement_policy__timeout: Annotated[Any, _policy_option("--timeout", "the provider fell silent")] = None
    settlement_policy__truncated: Annotated[
        Any, _policy_option("--truncated", "the provider's answer broke off")
    ] = None
    settlement_policy__client_gone_drain_milliseconds: Annotated[
        int | None,
        typer.Option(
            "--drain-ms",
            min=0,
            max=2000,
            help="How long to read on after a client has left, to charge the provider's own count.",
        ),
    ] = None
    rate_limits__requests_per_minute: RequestsPerMinute = None
    rate_limits__tokens_per_minute: TokensPerMinute = None
    rate_limits__concurrent_requests: ConcurrentRequests = None
    demands__required_tags: RequiredTags = None
    demands__max_input_nano_usd: MaxInputPrice = None
    demands__max_output_nano_usd: MaxOutputPrice = None


@app.callback()
def account() -> None:
    """Who pays: balances belong to accounts, keys to one account each.

    \b
    Examples:
        lurus account create acct_team --name "A team"
        lurus account credit acct_team 25.00
        lurus balance acct_team
    """


@app.command("list")
def list_accounts(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Lists accounts by id."""

    async def command(mesh: Mesh) -> None:
        found = await whole_list(
            mesh.billing.ListAccounts, pb.ListAccountsRequest(), pb.ListAccountsResponse()
        )
        if as_json:
            return print_json(found)
        return print_table(_COLUMNS, found.accounts, "no accounts; add one with `lurus account create`")

    run(command, data_dir)


@app.command()
def show(account_id: Id, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Shows one account; `lurus balance` shows its money."""

    async def command(mesh: Mesh) -> None:
        found = await mesh.billing.GetAccount(pb.GetAccountRequest(account_id=account_id))
        _show(found.account, as_json)

    run(command, data_dir)


@app.command()
@fields.flattened
def create(
    given: Fields,
    account_id: Annotated[
        str, typer.Argument(metavar="ACCOUNT", help="Its id, `acct_…`; one is made if not said.")
    ] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Opens an account, with a balance of 0."""
    message = pb.Account(account_id=account_id)
    fields.fill(message, given)

    async def command(mesh: Mesh) -> None:
        created = await mesh.billing.CreateAccount(pb.CreateAccountRequest(account=message))
        _show(created.account, as_json)

    run(command, data_dir)


@app.command()
@fields.flattened
def update(account_id: Id, given: Fields, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Changes what is given, and nothing else."""
    change = pb.Account(account_id=account_id)
    request = fields.masked(pb.UpdateAccountRequest(), fields.fill(change, given))
    request.account.CopyFrom(change)

    async def command(mesh: Mesh) -> None:
        updated = await mesh.billing.UpdateAccount(request)
        _show(updated.account, as_json)

    run(command, data_dir)


@app.command()
def delete(account_id: Id, yes: Yes = False, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Closes an account: its keys stop, its ledger stays."""
    options.confirm(f"Close the account {account_id}? Its keys stop working.", yes)

    async def command(mesh: Mesh) -> None:
        deleted = await mesh.billing.DeleteAccount(pb.DeleteAccountRequest(account_id=account_id))
        return print_json(deleted) if as_json else print(f"{account_id} is closed")

    run(command, data_dir)


@app.command(context_settings={"ignore_unknown_options": True})
def credit(
    account_id: Id,
    amount: Annotated[
        int,
        typer.Argument(
            parser=options.nano_usd_parser, metavar="USD", help="E.g. 25.00; below zero takes money away."
        ),
    ],
    kind: Kind = None,
    note: Annotated[str, typer.Option(help="Why, for people.")] = "",
    corrects: Annotated[
        str, typer.Option(metavar="ID", help="The request or transaction that this adjustment corrects.")
    ] = "",
    transaction_id: Annotated[
        str, typer.Option("--id", metavar="ID", help="`tx_…`: the same id again moves nothing.")
    ] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Moves money into an account, or out of it, by an entry in the ledger.

    \b
    Examples:
        lurus account credit acct_team 25.00 --id tx_invoice-4711
        lurus account credit acct_team -3.50 --kind adjustment --note "a gift taken back"
        lurus account credit acct_team 0.12 --corrects req_01J… --note "the price was wrong"
    """
    standard = pb.TRANSACTION_KIND_TOP_UP if amount > 0 else pb.TRANSACTION_KIND_REFUND
    standard = pb.TRANSACTION_KIND_ADJUSTMENT if corrects else standard
    request = pb.CreateTransactionRequest(
        transaction_id=transaction_id or new_id("tx"),
        account_id=account_id,
        kind=pb.TransactionKind.ValueType(kind or standard),
        amount_nano_usd=amount,
        description=note,
        corrects_transaction_id=corrects,
    )

    async def command(mesh: Mesh) -> None:
        created = await _move(mesh, request)
        row = created.transaction
        if as_json:
            return print_json(row)
        return print(
            f"{usd(row.amount_nano_usd)} for {row.account_id}, balance {usd(row.balance_after_nano_usd)}"
            f" ({row.transaction_id})"
        )

    run(command, data_dir)


async def _move(mesh: Mesh, request: pb.CreateTransactionRequest) -> pb.CreateTransactionResponse:
    """Books a transaction; where that may or may not have happened, tells how to repeat it safely."""
    try:
        return await mesh.billing.CreateTransaction(request)
    except grpc.aio.AioRpcError as error:
        if error.code() in _OPEN_ENDS:
            print(f"to repeat it without moving money twice: --id {request.transaction_id}", file=sys.stderr)
        raise


_OPEN_ENDS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)


def _show(message: pb.Account, as_json: bool) -> None:
    if as_json:
        return print_json(message)
    return print_fields(
        [
            ("id", message.account_id),
            ("name", message.display_name),
            ("credit limit", usd(message.credit_limit_nano_usd)),
            ("offline", _policy(message)),
            ("time zone", message.time_zone or "UTC"),
            ("price multiplier", factor(message.price_multiplier_ppm)),
            ("interrupted", _settlement(message.settlement_policy)),
            ("limits", rate_limits(message.rate_limits)),
            ("demands", demands(message.demands)),
            ("open", "no" if message.is_closed else "yes"),
            ("created", local_time(message, "create_time")),
        ]
    )


def _policy(message: pb.Account) -> str:
    return enum_word(pb.OfflinePolicy.DESCRIPTOR, message.offline_policy) or "lease"


def _settlement(policy: pb.SettlementPolicy) -> str:
    waived = [
        name.replace("_", " ")
        for name in ("client_gone", "upstream_error", "timeout", "truncated")
        if getattr(policy, name) == pb.INTERRUPTION_POLICY_WAIVE
    ]
    drain = policy.client_gone_drain_milliseconds
    words = f"waived if {', '.join(waived)}; else billed" if waived else "billed"
    return f"{words}; read on for {drain} ms" if drain else words


_COLUMNS: list[Column[pb.Account]] = [
    ("ID", lambda row: row.account_id),
    ("NAME", lambda row: row.display_name),
    ("CREDIT LIMIT", lambda row: usd(row.credit_limit_nano_usd)),
    ("OFFLINE", _policy),
    ("LIMITS", lambda row: rate_limits(row.rate_limits)),
    ("OPEN", lambda row: "no" if row.is_closed else "yes"),
    ("CREATED", lambda row: local_time(row, "create_time")),
]
