"""`lurus price import` and `lurus price export`."""

import enum
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from lurus.provider.v1 import provider_pb2 as pb
from lurus_common.matching import allows
from lurus_switch import litellm_prices, price_files
from lurus_switch.amounts import usd
from lurus_switch.commands import options
from lurus_switch.commands.options import AsJson, DataDir
from lurus_switch.failures import CommandFailed
from lurus_switch.mesh import Mesh, run, whole_list
from lurus_switch.output import Column, local_time, print_json, print_table, timestamp
from lurus_switch.price_files import Reading, Row

MAX_SHOWN_PROBLEMS = 100
MAX_PRICES = 5_000


class Format(enum.StrEnum):
    """What a file is written in."""

    JSON = "json"
    CSV = "csv"


def import_prices(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="JSON or CSV of ours, or LiteLLM's map.")],
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="Only this one, or `name-*`; may be repeated. Default all."),
    ] = None,
    provider_id: Annotated[
        str, typer.Option("--provider", help="For rows that name no provider; default all providers.")
    ] = "",
    effective_time: Annotated[
        Any,
        typer.Option(
            "--from",
            parser=options.later_parser,
            metavar="TIME",
            help="For rows that state no time; default now.",
        ),
    ] = None,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Adds the prices of a file, all of them or none; what is in effect already is left as it is.

    Amounts are USD per million tokens, exact to the nano-USD; of units USD per thousand.

    \b
    Examples:
        lurus price import prices.json --dry-run
        lurus price import prices.csv --from 2027-01-01
        lurus price import model_prices_and_context_window.json --model 'claude-*'
    """
    reading = _read(path, models or [])
    request = pb.ImportPricesRequest(is_dry_run=is_dry_run)
    for row in reading.rows:
        row.price.provider_id = row.price.provider_id or provider_id
        if effective_time is not None and not row.price.HasField("effective_time"):
            row.price.effective_time.CopyFrom(timestamp(effective_time))
        request.prices.append(row.price)

    async def command(mesh: Mesh) -> None:
        found = await mesh.provider.ImportPrices(request)
        _refuse([_problem(reading.rows, problem) for problem in found.problems])
        if as_json:
            return print_json(found)
        for note in reading.left_out[:MAX_SHOWN_PROBLEMS]:
            print(f"left out: {note}", file=sys.stderr)
        print_table(_CHANGE_COLUMNS, found.changes, "nothing changes")
        words = "would be added" if is_dry_run else "added"
        return print(f"{len(found.changes)} {words}, {found.unchanged_count} in effect already")

    run(command, data_dir)


def export_prices(
    form: Annotated[Format, typer.Option("--format", help="json or csv.")] = Format.JSON,
    at_time: Annotated[
        Any,
        typer.Option("--at", parser=options.earlier_parser, metavar="TIME", help="In effect then; else now."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also past and future prices.")] = False,
    model: Annotated[str, typer.Option(help="Only of this model.")] = "",
    data_dir: DataDir = None,
) -> None:
    """Prints prices as `lurus price import` reads them.

    \b
    Examples:
        lurus price export > prices.json
        lurus price export --format csv --at 2026-11-01
    """
    request = pb.ListPricesRequest(model=model)
    if not everything:
        request.at_time.CopyFrom(timestamp(at_time or datetime.now(UTC)))

    async def command(mesh: Mesh) -> None:
        found = await whole_list(mesh.provider.ListPrices, request, pb.ListPricesResponse())
        write = price_files.write_json if form is Format.JSON else price_files.write_csv
        print(write(list(found.prices)).rstrip("\n"))

    run(command, data_dir)


def _read(path: Path, patterns: list[str]) -> Reading:
    """Returns what a file says.

    Raises:
        CommandFailed: it cannot be read, or there is something wrong with it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(price_files.MAX_FILE_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path} cannot be read: {error}") from error
    if len(content) > price_files.MAX_FILE_BYTES:
        raise CommandFailed(f"{path} is larger than {price_files.MAX_FILE_BYTES} bytes")
    reading = _parse(path, text, patterns)
    _refuse(reading.problems)
    if not 0 < len(reading.rows) <= MAX_PRICES:
        raise CommandFailed(f"{path} holds {len(reading.rows)} prices; 1 to {MAX_PRICES} fit one import")
    return reading


def _parse(path: Path, text: str, patterns: list[str]) -> Reading:
    if path.suffix.lower() == ".csv":
        return _only(price_files.read_csv(text), patterns)
    try:
        is_litellm = litellm_prices.looks_like_litellm(json.loads(text))
    except (ValueError, RecursionError):
        is_litellm = False  # what is wrong with it is said below
    if is_litellm:
        return litellm_prices.read_litellm(text, patterns)
    return _only(price_files.read_json(text), patterns)


def _only(reading: Reading, patterns: list[str]) -> Reading:
    reading.rows = [row for row in reading.rows if allows(patterns, row.price.model)]
    return reading


def _problem(rows: list[Row], problem: pb.ImportProblem) -> str:
    place = rows[problem.index].place if problem.index < len(rows) else f"number {problem.index}"
    return f"{place}{'.' if problem.field else ''}{problem.field}: {problem.message}"


def _refuse(problems: list[str]) -> None:
    if not problems:
        return
    shown = problems[:MAX_SHOWN_PROBLEMS]
    more = len(problems) - len(shown)
    lines = [*shown, *([f"and {more} more"] if more else [])]
    raise CommandFailed(
        f"nothing is imported: {len(problems)} of the file's entries cannot be", remedy="\n".join(lines)
    )


def _was(change: pb.PriceChange, name: str) -> str:
    new = getattr(change.price, name)
    if not change.HasField("previous") or getattr(change.previous, name) == new:
        return usd(new)
    return f"{usd(getattr(change.previous, name))} -> {usd(new)}"


def _beside(change: pb.PriceChange) -> str:
    price = change.price
    tiers = [f"above {tier.above_input_tokens:,}" for tier in price.tiers]
    return ", ".join([*tiers, *(rate.kind for rate in price.unit_rates)])


_CHANGE_COLUMNS: list[Column[pb.PriceChange]] = [
    ("MODEL", lambda row: row.price.model),
    ("PROVIDER", lambda row: row.price.provider_id),
    ("FROM", lambda row: local_time(row.price, "effective_time")),
    ("INPUT", lambda row: _was(row, "input_nano_usd")),
    ("READ", lambda row: _was(row, "cache_read_nano_usd")),
    ("WRITE 5M", lambda row: _was(row, "cache_write_5m_nano_usd")),
    ("WRITE 1H", lambda row: _was(row, "cache_write_1h_nano_usd")),
    ("OUTPUT", lambda row: _was(row, "output_nano_usd")),
    ("TIERS AND UNITS", _beside),
    ("INSTEAD OF", lambda row: row.previous.price_id),
]
