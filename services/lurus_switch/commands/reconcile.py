"""`lurus reconcile`: whether outboxes, bus, ledger and request log say the same."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated

import grpc.aio
import typer
from rich.console import Console
from rich.progress import track

from lurus.billing.v1 import billing_pb2 as pb
from lurus_common.rpc import error_of
from lurus_switch.amounts import usd
from lurus_switch.commands.options import AsJson, DataDir, earlier_parser
from lurus_switch.failures import FAILED, UNREACHABLE, CommandFailed
from lurus_switch.mesh import Mesh, run
from lurus_switch.output import Column, all_input, enum_word, local_time, print_json, print_table, timestamp

app = typer.Typer(rich_markup_mode=None, add_completion=False)

STEP = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
# Of one comparison.
COMPARE_SECONDS = 600.0
MAX_LISTED = 100
_WORDS = {
    pb.RECONCILE_OUTCOME_GREEN: "all books agree",
    pb.RECONCILE_OUTCOME_DRIFT: "THE BOOKS DIFFER",
    pb.RECONCILE_OUTCOME_UNKNOWN: "NOT KNOWN: not every book could be read whole",
}


@app.command()
def reconcile(
    since: Annotated[
        datetime | None,
        typer.Option(parser=earlier_parser, metavar="TIME", help="From when on: 2h, 7d, or a time. An hour."),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(parser=earlier_parser, metavar="TIME", help="Until when; the last closed minute."),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Publish again what is missing somewhere; repeats change nothing."),
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Compares the four books of usage, request by request, for minutes that ended a minute ago or longer.

    Every request that is finished is in the outbox of its worker, on the bus, in the ledger (but for refused
    ones) and in the request log, with the same account, cost and tokens. Ends with 0 if all agree, with 1 if
    they differ, and with 3 if a book could not be read whole: that is not green.

    \b
    Examples:
        lurus reconcile
        lurus reconcile --since 7d
        lurus reconcile --since 2h --repair && sleep 60 && lurus reconcile --since 2h
    """
    outcomes: list[int] = []

    async def command(mesh: Mesh) -> None:
        whole = pb.ReconcileResponse()
        spans = list(_spans(since, until))
        for start, end in track(spans, "comparing", console=Console(stderr=True), disable=len(spans) < 2):
            async for found in _compared(mesh, start, end, repair=repair):
                _add(whole, found)
        outcomes.append(whole.outcome)
        print_json(whole) if as_json else _show(whole)

    run(command, data_dir)
    codes = {pb.RECONCILE_OUTCOME_GREEN: 0, pb.RECONCILE_OUTCOME_DRIFT: FAILED}
    raise typer.Exit(codes.get(pb.ReconcileOutcome.ValueType(outcomes[0]), UNREACHABLE))


def _spans(
    since: datetime | None, until: datetime | None
) -> Iterator[tuple[datetime | None, datetime | None]]:
    """Gives an hour at a time; the service knows best what an hour is that nobody has named."""
    if since is None and until is None:
        yield None, None
        return
    end = _minute(until or datetime.now(UTC) - MINUTE)
    begin = _minute(since) if since else end - STEP
    if begin >= end:
        raise CommandFailed("there is no closed minute in that time")
    while begin < end:
        yield begin, min(begin + STEP, end)
        begin += STEP


def _minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


async def _compared(
    mesh: Mesh, start: datetime | None, end: datetime | None, *, repair: bool
) -> AsyncIterator[pb.ReconcileResponse]:
    """Compares a span, in halves if it has more requests than one comparison takes."""
    request = pb.ReconcileRequest(is_repair=repair)
    if start and end:
        request.start_time.CopyFrom(timestamp(start))
        request.end_time.CopyFrom(timestamp(end))
    try:
        found = await mesh.billing.Reconcile(request, timeout=COMPARE_SECONDS)
    except grpc.aio.AioRpcError as error:
        end = end or _minute(datetime.now(UTC) - MINUTE)
        start = start or end - STEP
        if "maximum" not in error_of(error).metadata or end - start <= MINUTE:
            raise
    else:
        yield found
        return
    middle = _minute(start + (end - start) / 2)
    for part in ((start, middle), (middle, end)):
        async for found in _compared(mesh, *part, repair=repair):
            yield found


def _add(whole: pb.ReconcileResponse, found: pb.ReconcileResponse) -> None:
    """Adds what another span said."""
    if not whole.books:
        whole.CopyFrom(found)
        return
    whole.drift_count += found.drift_count
    whole.drift_nano_usd += found.drift_nano_usd
    whole.repaired_count += found.repaired_count
    whole.end_time.CopyFrom(found.end_time)
    whole.drifts.extend(found.drifts[: MAX_LISTED - len(whole.drifts)])
    worst = (pb.RECONCILE_OUTCOME_DRIFT, pb.RECONCILE_OUTCOME_UNKNOWN, pb.RECONCILE_OUTCOME_GREEN)
    whole.outcome = min(whole.outcome, found.outcome, key=worst.index)
    for total, book in zip(whole.books, found.books, strict=True):
        total.problem = total.problem or book.problem
        total.request_count += book.request_count
        total.cost_nano_usd += book.cost_nano_usd
        for kind, count in book.tokens.ListFields():
            setattr(total.tokens, kind.name, getattr(total.tokens, kind.name) + count)


def _show(found: pb.ReconcileResponse) -> None:
    typer.echo(f"{local_time(found, 'start_time')} to {local_time(found, 'end_time')}")
    print_table(_BOOKS, found.books, "")
    if found.drifts:
        typer.echo("")
        print_table(_DRIFTS, found.drifts, "")
    if found.drift_count > len(found.drifts):
        typer.echo(f"and {found.drift_count - len(found.drifts)} more")
    if found.drift_count:
        typer.echo(f"\n{found.drift_count} requests differ; in the ledger by {usd(found.drift_nano_usd)}")
    if found.repaired_count:
        typer.echo(f"{found.repaired_count} events were published again: compare anew in a minute")
    typer.echo(f"\n{_WORDS[found.outcome]}")


def _book(number: int) -> str:
    return enum_word(pb.Book.DESCRIPTOR, number)


_BOOKS: tuple[Column[pb.BookReport], ...] = (
    ("BOOK", lambda row: _book(row.book)),
    ("REQUESTS", lambda row: str(row.request_count)),
    ("INPUT", lambda row: str(all_input(row.tokens))),
    ("OUTPUT", lambda row: str(row.tokens.output)),
    ("COST", lambda row: usd(row.cost_nano_usd)),
    ("", lambda row: row.problem),
)
_DRIFTS: tuple[Column[pb.Drift], ...] = (
    ("REQUEST", lambda row: row.request_id),
    ("ENDED", lambda row: local_time(row, "event_time")),
    ("ACCOUNT", lambda row: row.account_id),
    ("COST", lambda row: usd(row.cost_nano_usd)),
    ("MISSING IN", lambda row: " ".join(map(_book, row.missing))),
    ("DIFFERS IN", lambda row: " ".join(map(_book, row.different))),
    ("", lambda row: "parked: see lurus deadletter" if row.is_parked else ""),
)
