"""`lurus stats`: the request log, summed up."""

from typing import Annotated

import typer

from lurus.log.v1 import log_pb2 as pb
from lurus_switch.amounts import usd
from lurus_switch.commands.fields import flattened
from lurus_switch.commands.logs import Errors, Filter, make_filter
from lurus_switch.commands.options import AsJson, DataDir
from lurus_switch.mesh import Mesh, run
from lurus_switch.output import Column, all_input, enum_number, print_json, print_table, short_duration

app = typer.Typer(rich_markup_mode=None, add_completion=False)

MAX_GROUPS = 3


def _groups(text: str) -> str:
    read_groups(text)
    return text


def read_groups(text: str) -> list[pb.StatsGroup.ValueType]:
    """Returns the groups of `model,day`; none for an empty text.

    Raises:
        typer.BadParameter: names the groups there are.
    """
    try:
        found = [enum_number(pb.StatsGroup.DESCRIPTOR, word) for word in text.split(",") if word.strip()]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if len(found) > MAX_GROUPS:
        raise typer.BadParameter(f"at most {MAX_GROUPS} groups")
    return [pb.StatsGroup.ValueType(number) for number in found]


@app.command()
@flattened
def stats(
    given: Filter,
    errors: Errors = False,
    by: Annotated[
        str,
        typer.Option(
            callback=_groups, help="Up to three of hour, day, model, provider, account, key; with commas."
        ),
    ] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Rows at most.")] = 100,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Requests, errors, tokens, cost and latency; of the last 24 hours if --since is not said.

    \b
    Examples:
        lurus stats --by model
        lurus stats --by day,account --since 30d
        lurus stats --by hour --model 'claude-*' --errors
    """
    groups = read_groups(by)
    request = pb.GetStatsRequest(filter=make_filter(given, errors), group_by=groups, page_size=limit)

    async def command(mesh: Mesh) -> None:
        found = await mesh.log.GetStats(request)
        if as_json:
            return print_json(found)
        columns = [_GROUP_COLUMNS[group] for group in groups] + _COLUMNS
        print_table(columns, found.rows, "no requests in that time")
        return print(f"only the first {limit} rows are shown; see --limit") if found.is_truncated else None

    run(command, data_dir)


def _bucket(row: pb.StatsRow) -> str:
    """Begin of the hour, in UTC as the groups are."""
    return row.bucket_time.ToDatetime().strftime("%Y-%m-%d %H:%M")


def _cached(row: pb.StatsRow) -> str:
    """Share of the input that was read from a cache."""
    total = all_input(row.tokens)
    return f"{100 * row.tokens.cache_read // total} %" if total else ""


_GROUP_COLUMNS: dict[int, Column[pb.StatsRow]] = {
    pb.STATS_GROUP_HOUR: ("HOUR (UTC)", _bucket),
    pb.STATS_GROUP_DAY: ("DAY (UTC)", lambda row: _bucket(row)[:10]),
    pb.STATS_GROUP_MODEL: ("MODEL", lambda row: row.model),
    pb.STATS_GROUP_PROVIDER: ("PROVIDER", lambda row: row.provider_id),
    pb.STATS_GROUP_ACCOUNT: ("ACCOUNT", lambda row: row.account_id),
    pb.STATS_GROUP_KEY: ("KEY", lambda row: row.key_id),
}
_COLUMNS: list[Column[pb.StatsRow]] = [
    ("REQUESTS", lambda row: f"{row.request_count:,}"),
    ("ERRORS", lambda row: f"{row.error_count:,}"),
    ("IN", lambda row: f"{all_input(row.tokens):,}"),
    ("CACHED", _cached),
    ("OUT", lambda row: f"{row.tokens.output:,}"),
    ("COST", lambda row: usd(row.cost_nano_usd)),
    ("UNPRICED", lambda row: str(row.unpriced_count or "")),
    ("FIRST BYTE P50", lambda row: short_duration(row.first_event, "p50_duration")),
    ("P95", lambda row: short_duration(row.first_event, "p95_duration")),
    ("TOTAL P50", lambda row: short_duration(row.total, "p50_duration")),
    ("P95", lambda row: short_duration(row.total, "p95_duration")),
]
