"""`lurus balance`, `lurus quota`, `lurus transactions`."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from lurus.billing.v1 import billing_pb2 as pb
from lurus_switch.amounts import usd
from lurus_switch.bootstrap import ACCOUNT_ID
from lurus_switch.commands import fields, options
from lurus_switch.commands.options import AsJson, DataDir, Limit
from lurus_switch.mesh import Mesh, run, whole_list
from lurus_switch.output import (
    Column,
    all_input,
    enum_word,
    local_time,
    print_fields,
    print_json,
    print_table,
)

app = typer.Typer(rich_markup_mode=None, add_completion=False)

Account = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its id, `acct_…`.")]


def _cap(name: str, what: str) -> Any:
    return typer.Option(name, parser=options.positive_nano_usd_parser, metavar="USD", help=what)


@dataclass
class Caps:
    """Caps to be set."""

    daily_limit_nano_usd: Annotated[Any, _cap("--daily", "Per day; 0 means no cap.")] = None
    monthly_limit_nano_usd: Annotated[Any, _cap("--monthly", "Per month; 0 means no cap.")] = None
    total_limit_nano_usd: Annotated[Any, _cap("--total", "For all time; 0 means no cap.")] = None


@app.command()
def balance(account_id: Account = ACCOUNT_ID, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Shows what an account has, what is lent to workers, and what new requests may use."""

    async def command(mesh: Mesh) -> None:
        found = await mesh.billing.GetBalance(pb.GetBalanceRequest(account_id=account_id))
        if as_json:
            return print_json(found)
        return print_fields(
            [
                ("account", found.account_id),
                ("balance", usd(found.balance_nano_usd)),
                ("leased", f"{usd(found.leased_nano_usd)} (lent to workers, not spent yet)"),
                ("reserved", f"{usd(found.reserved_nano_usd)} (set aside by reservations)"),
                ("available", usd(found.available_nano_usd)),
            ]
        )

    run(command, data_dir)


@app.command()
@fields.flattened
def quota(
    given: Caps, account_id: Account = ACCOUNT_ID, as_json: AsJson = False, data_dir: DataDir = None
) -> None:
    """Shows an account's caps and what is used of each; sets those that are given.

    \b
    Examples:
        lurus quota acct_team
        lurus quota acct_team --daily 5.00 --monthly 100
        lurus quota acct_team --daily 0              no cap
    """

    async def command(mesh: Mesh) -> None:
        found = await mesh.billing.GetQuota(pb.GetQuotaRequest(account_id=account_id))
        if fields.fill(found.quota, given):
            request = pb.UpdateQuotaRequest(account_id=account_id, quota=found.quota)
            await mesh.billing.UpdateQuota(request)
            found = await mesh.billing.GetQuota(pb.GetQuotaRequest(account_id=account_id))
        if as_json:
            return print_json(found)
        caps = found.quota
        print_fields([("account", found.account_id)])
        return print_table(
            _CAP_COLUMNS,
            [
                ("day", caps.daily_limit_nano_usd, found.daily_used_nano_usd, *_rest(found, "daily")),
                ("month", caps.monthly_limit_nano_usd, found.monthly_used_nano_usd, *_rest(found, "monthly")),
                ("all time", caps.total_limit_nano_usd, found.total_used_nano_usd, *_rest(found, "total")),
            ],
            "",
        )

    run(command, data_dir)


@app.command()
def transactions(
    account_id: Account = ACCOUNT_ID,
    kind: Annotated[
        int | None,
        typer.Option(
            parser=options.enum_parser(pb.TransactionKind.DESCRIPTOR),
            metavar="KIND",
            help="Only usage, top_up, refund or adjustment.",
        ),
    ] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Lists the ledger of an account, newest first. Usage has the request's id.

    \b
    Examples:
        lurus transactions --kind usage -n 100
        lurus transactions acct_team --json -n 0
    """

    async def command(mesh: Mesh) -> None:
        request = pb.ListTransactionsRequest(
            account_id=account_id, kind=pb.TransactionKind.ValueType(kind or 0)
        )
        found = await whole_list(mesh.billing.ListTransactions, request, pb.ListTransactionsResponse(), limit)
        if as_json:
            return print_json(found)
        return print_table(_COLUMNS, found.transactions, "no transactions")

    run(command, data_dir)


def _rest(found: pb.GetQuotaResponse, period: str) -> tuple[str, str]:
    """What is left of a cap, and when it resets."""
    left = usd(getattr(found, f"{period}_left_nano_usd")) if found.HasField(f"{period}_left_nano_usd") else ""  # type: ignore[arg-type]
    return left, "" if period == "total" else local_time(found, f"{period}_reset_time")


Cap = tuple[str, int, int, str, str]
_CAP_COLUMNS: list[Column[Cap]] = [
    ("PER", lambda row: row[0]),
    ("CAP", lambda row: usd(row[1]) if row[1] else "none"),
    ("USED", lambda row: usd(row[2])),
    ("LEFT", lambda row: row[3]),
    ("RESETS", lambda row: row[4]),
]


def _what(row: pb.Transaction) -> str:
    if row.kind != pb.TRANSACTION_KIND_USAGE:
        return row.description
    count = f"{all_input(row.tokens)} in, {row.tokens.output} out"
    return f"{row.model}: {count}{', unpriced' if row.is_unpriced else ''}"


_COLUMNS: list[Column[pb.Transaction]] = [
    ("TIME", lambda row: local_time(row, "create_time")),
    ("KIND", lambda row: enum_word(pb.TransactionKind.DESCRIPTOR, row.kind)),
    ("AMOUNT", lambda row: usd(row.amount_nano_usd)),
    ("BALANCE", lambda row: usd(row.balance_after_nano_usd)),
    ("WHAT", _what),
    ("ID", lambda row: row.transaction_id),
]
