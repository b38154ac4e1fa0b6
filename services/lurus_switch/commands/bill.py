"""`lurus bill`: a provider's own report beside what we have metered."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from lurus.log.v1 import log_pb2
from lurus.usage.v1.usage_pb2 import TOKEN_SOURCE_ESTIMATED, TOKEN_SOURCE_PARTIAL, Attempt
from lurus_switch.amounts import usd
from lurus_switch.bill_check import COST, Checked, Difference, Ours, Verdict, check, plain_model
from lurus_switch.commands.options import AsJson, DataDir
from lurus_switch.failures import FAILED, OK, UNREACHABLE, CommandFailed
from lurus_switch.mesh import Mesh, run
from lurus_switch.output import Column, print_table, timestamp
from lurus_switch.provider_bills import MAX_BYTES, TOKEN_KINDS, UNIT_KINDS, Bill, BillUnreadable, read_bill

app = typer.Typer(rich_markup_mode=None, add_completion=False)

MAX_DAYS = 400
MAX_SHOWN = 200
_CODES = {Verdict.AGREES: OK, Verdict.DIFFERS: FAILED, Verdict.INCOMPLETE: UNREACHABLE}
_WORDS = {
    Verdict.AGREES: "bill and gateway agree",
    Verdict.DIFFERS: "BILL AND GATEWAY DIFFER",
    Verdict.INCOMPLETE: "NOT KNOWN: the report is not whole",
}

Metered = dict[tuple[date, str], Ours]


@app.command()
def bill(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The report: JSON of the vendor's, or CSV.")],
    provider_id: Annotated[str, typer.Option("--provider", help="Whose bill it is.")],
    keys: Annotated[
        list[str] | None,
        typer.Option(
            "--key", help="The vendor's id of a key that this gateway uses; may be repeated. Default all."
        ),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="DAY", help="First day, UTC; its month's first."),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="DAY", help="Last day, UTC; its month's last."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, max=50, metavar="PERCENT", help="A difference up to this is none.")
    ] = 0.1,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Compares a provider's usage or cost report with what the gateway has metered, by day, model and kind.

    Reads Anthropic's `usage_report/messages` and `cost_report`, OpenAI's `organization/usage/completions` and
    `organization/costs`, as JSON with days as buckets, and CSV. Ours are the attempts at that provider, those
    that failed included, at the prices without the accounts' multipliers. Each difference is shown with its
    size and its likely cause. Without --since and --until the report has to have whole months, this one until
    yesterday. Ends with 0 if all agrees, with 1 if something differs, and with 3 if the report is not whole.

    \b
    Examples:
        lurus bill usage.json --provider anthropic
        lurus bill costs.json --provider openai --since 2027-01-01 --until 2027-01-31
        lurus bill usage.json --provider anthropic --key apikey_01A --key apikey_01B
    """
    report = _read(path)
    days = _days(report, since, until)
    found: list[Checked] = []

    async def command(mesh: Mesh) -> None:
        metered = await _metered(mesh, provider_id, days)
        checked = check(report, metered, days, keys=keys or (), tolerance=tolerance / 100)
        found.append(checked)
        _print_json(checked) if as_json else _show(checked, days)

    run(command, data_dir)
    raise typer.Exit(_CODES[found[0].verdict])


def _read(path: Path) -> Bill:
    try:
        with path.open("rb") as file:
            return read_bill(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from None
    except BillUnreadable as error:
        raise CommandFailed(f"{path}: {error}") from None


def _days(report: Bill, since: datetime | None, until: datetime | None) -> list[date]:
    """Returns the days to compare: whole months of the report as far as they are over, if nothing is said."""
    if not report.days and not (since and until):
        raise CommandFailed("the report has no day in it")
    first = since.date() if since else min(report.days).replace(day=1)
    last = until.date() if until else _month_end(max(report.days))
    count = (last - first).days + 1
    if not 1 <= count <= MAX_DAYS:
        raise CommandFailed(f"{first} to {last}: not between 1 and {MAX_DAYS} days")
    return [first + timedelta(days=number) for number in range(count)]


def _month_end(day: date) -> date:
    """Returns the last day of a day's month, or yesterday if that is not over; never one before the day."""
    following = (day.replace(day=1) + timedelta(days=31)).replace(day=1)
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    return max(day, min(following - timedelta(days=1), yesterday))


async def _metered(mesh: Mesh, provider_id: str, days: list[date]) -> Metered:
    """Adds up the attempts at a provider from the request log."""
    found: Metered = {}
    wanted = log_pb2.LogFilter(
        start_time=timestamp(_midnight(days[0])),
        end_time=timestamp(_midnight(days[-1] + timedelta(days=1))),
    )
    async for some in mesh.log.ExportLogs(log_pb2.ExportLogsRequest(filter=wanted)):
        for event in some.events:
            day = event.event_time.ToDatetime(tzinfo=UTC).date()
            for attempt in event.attempts:
                if attempt.provider_id == provider_id and attempt.token_source:
                    place = found.setdefault((day, plain_model(attempt.upstream_model)), Ours())
                    _add(place, attempt)
    return found


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _add(place: Ours, attempt: Attempt) -> None:
    tokens = attempt.tokens
    place.counts["requests"] += 1
    for kind in TOKEN_KINDS:
        place.counts[kind] += getattr(tokens, kind)
    # No vendor's report has these apart.
    place.counts["cache_write_5m"] += tokens.cache_write_30m
    place.counts["cache_write_1h"] += tokens.cache_write_12h
    for unit in attempt.units:
        if unit.kind in UNIT_KINDS:
            place.counts[unit.kind] += unit.count
    place.cost_nano_usd += attempt.cost_nano_usd
    place.estimated_count += attempt.token_source in (TOKEN_SOURCE_ESTIMATED, TOKEN_SOURCE_PARTIAL)
    place.unpriced_count += not attempt.price_id


def _show(checked: Checked, days: list[date]) -> None:
    typer.echo(f"{days[0]} to {days[-1]}, UTC: {checked.compared_count} figures compared")
    for said in (*checked.problems, *checked.notes):
        typer.echo(f"  {said}")
    if checked.differences:
        typer.echo("")
        print_table(_COLUMNS, checked.differences[:MAX_SHOWN], "")
    if len(checked.differences) > MAX_SHOWN:
        typer.echo(f"and {len(checked.differences) - MAX_SHOWN} more; --json has all")
    typer.echo(f"\n{_WORDS[checked.verdict]}")


def _amount(difference: Difference, amount: int) -> str:
    return usd(amount) if difference.kind == COST else str(amount)


def _size(difference: Difference) -> str:
    excess = difference.billed - difference.metered
    sign = "+" if excess > 0 else "-"
    part = f" ({sign}{abs(excess) / difference.metered:.1%})" if difference.metered else ""
    return f"{sign}{_amount(difference, abs(excess))}{part}"


_COLUMNS: tuple[Column[Difference], ...] = (
    ("DAY", lambda row: str(row.day)),
    ("MODEL", lambda row: row.model or "all"),
    ("WHAT", lambda row: row.kind),
    ("BILLED", lambda row: _amount(row, row.billed)),
    ("OURS", lambda row: _amount(row, row.metered)),
    ("DIFFERENCE", _size),
    ("LIKELY CAUSE", lambda row: row.cause),
)


def _print_json(checked: Checked) -> None:
    rows = [
        {
            "day": str(row.day),
            "model": row.model,
            "kind": row.kind,
            "billed": row.billed,
            "metered": row.metered,
            "ratio": None if row.ratio is None else round(row.ratio, 6),
            "cause": row.cause,
        }
        for row in checked.differences
    ]
    found = {"verdict": checked.verdict.value, "compared_count": checked.compared_count}
    typer.echo(
        json.dumps(
            {**found, "problems": checked.problems, "notes": checked.notes, "differences": rows}, indent=2
        )
    )
