"""`lurus price unpriced` and `lurus price reprice`: what had no price, or a wrong one."""

from typing import Annotated, Any

import typer

from lurus.billing.v1 import billing_pb2 as pb
from lurus_switch.amounts import usd
from lurus_switch.commands import options
from lurus_switch.commands.options import AsJson, DataDir
from lurus_switch.mesh import Mesh, run, whole_list
from lurus_switch.output import Column, all_input, local_time, print_json, print_table, timestamp

Since = Annotated[
    Any, typer.Option("--since", parser=options.earlier_parser, metavar="TIME", help="15m, 2h, 2026-11-23.")
]
Until = Annotated[
    Any, typer.Option("--until", parser=options.earlier_parser, metavar="TIME", help="As --since.")
]


def unpriced(
    since: Since = None, until: Until = None, as_json: AsJson = False, data_dir: DataDir = None
) -> None:
    """Lists models whose requests had no price and are not priced since, with what they used.

    \b
    Examples:
        lurus price unpriced
        lurus logs --unpriced --model new-model
    """
    request = pb.ListUnpricedModelsRequest()
    _set_span(request, since, until)

    async def command(mesh: Mesh) -> None:
        found = await whole_list(mesh.billing.ListUnpricedModels, request, pb.ListUnpricedModelsResponse())
        if as_json:
            return print_json(found)
        return print_table(_UNPRICED_COLUMNS, found.models, "every request has a price")

    run(command, data_dir)


def reprice(
    model: Annotated[str, typer.Option("--model", help="Exact name, as the clients sent it.")],
    since: Since = None,
    until: Until = None,
    account_id: Annotated[str, typer.Option("--account", help="Only of this one.")] = "",
    price_id: Annotated[
        str,
        typer.Option("--price", metavar="PRICE", help="Apply this one; else the one of each request's time."),
    ] = "",
    only_unpriced: Annotated[
        bool, typer.Option("--only-unpriced", help="Leave requests alone that have a price.")
    ] = False,
    recounts: Annotated[
        bool, typer.Option("--recount", help="Read the tokens anew from what the provider said.")
    ] = False,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be booked, and book nothing.")
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Prices requests again and books each difference as a new entry. A repeat books nothing.

    A price counts from its time on: for requests of the past, add one with
    `lurus price create MODEL … --from TIME` first.

    \b
    Examples:
        lurus price reprice --model new-model --dry-run
        lurus price reprice --model new-model --since 7d
    """
    request = pb.RepriceUsageRequest(
        model=model,
        account_id=account_id,
        price_id=price_id,
        only_unpriced=only_unpriced,
        recounts=recounts,
        is_dry_run=is_dry_run,
    )
    _set_span(request, since, until)

    async def command(mesh: Mesh) -> None:
        found = await _whole(mesh, request)
        if as_json:
            return print_json(found)
        print_table(_REPRICING_COLUMNS, found.repricings, "nothing changes")
        change = sum(one.cost_nano_usd - one.previous_nano_usd for one in found.repricings)
        words = "would be priced again" if is_dry_run else "priced again"
        return print(
            f"{len(found.repricings)} {words}, {usd(change)} in all; "
            f"{found.unchanged_count} priced so already, {found.unpriced_count} without a price, "
            f"{found.skipped_count} left alone"
        )

    run(command, data_dir)


async def _whole(mesh: Mesh, request: pb.RepriceUsageRequest) -> pb.RepriceUsageResponse:
    """Goes through all pages. Where it breaks off it can be asked again: what is booked stays booked once."""
    whole = pb.RepriceUsageResponse()
    while True:
        page = await mesh.billing.RepriceUsage(request)
        request.page_token = page.next_page_token
        whole.repricings.extend(page.repricings)
        whole.unchanged_count += page.unchanged_count
        whole.unpriced_count += page.unpriced_count
        whole.skipped_count += page.skipped_count
        if not page.next_page_token:
            return whole


def _set_span(request: pb.ListUnpricedModelsRequest | pb.RepriceUsageRequest, since: Any, until: Any) -> None:
    if since is not None:
        request.start_time.CopyFrom(timestamp(since))
    if until is not None:
        request.end_time.CopyFrom(timestamp(until))


_UNPRICED_COLUMNS: list[Column[pb.UnpricedModel]] = [
    ("MODEL", lambda row: row.model),
    ("REQUESTS", lambda row: str(row.request_count)),
    ("IN", lambda row: str(all_input(row.tokens))),
    ("OUT", lambda row: str(row.tokens.output)),
    ("FIRST", lambda row: local_time(row, "first_time")),
    ("LAST", lambda row: local_time(row, "last_time")),
]
_REPRICING_COLUMNS: list[Column[pb.Repricing]] = [
    ("REQUEST", lambda row: row.request_id),
    ("ACCOUNT", lambda row: row.account_id),
    ("WAS", lambda row: usd(row.previous_nano_usd)),
    ("IS", lambda row: usd(row.cost_nano_usd)),
    ("PRICE", lambda row: row.price_id),
    ("ENTRY", lambda row: row.transaction_id),
]
