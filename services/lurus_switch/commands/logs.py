"""`lurus logs`: the request log."""

import asyncio
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import grpc.aio
import typer

from lurus.log.v1 import log_pb2 as pb
from lurus.usage.v1 import usage_pb2
from lurus_switch.amounts import usd
from lurus_switch.commands import fields, options
from lurus_switch.commands.decision import print_decision
from lurus_switch.commands.options import AsJson, DataDir, Limit
from lurus_switch.mesh import Mesh, run, whole_list
from lurus_switch.output import (
    Column,
    all_input,
    clean,
    enum_word,
    local_time,
    print_fields,
    print_json,
    print_table,
    short_duration,
)

app = typer.Typer(rich_markup_mode=None, add_completion=False)

RECONNECT_SECONDS = 1.0


@dataclass
class Filter:
    """Which requests."""

    account_id: Annotated[str | None, typer.Option("--account", help="Who paid.")] = None
    key_id: Annotated[str | None, typer.Option("--key", help="Which key, by id.")] = None
    model: Annotated[
        str | None, typer.Option("--model", help="Asked for: exact, or a prefix that ends in *.")
    ] = None
    provider_id: Annotated[str | None, typer.Option("--provider", help="Who answered.")] = None
    dialect: Annotated[
        Any,
        typer.Option("--dialect", parser=options.dialect_parser, metavar="DIALECT", help="Of the client."),
    ] = None
    terminal: Annotated[
        Any,
        typer.Option(
            "--terminal",
            parser=options.enum_parser(usage_pb2.Terminal.DESCRIPTOR),
            metavar="END",
            help="How it ended: complete, truncated, client_gone, refused, …",
        ),
    ] = None
    start_time: Annotated[
        Any,
        typer.Option("--since", parser=options.earlier_parser, metavar="TIME", help="15m, 2h, 2026-11-23."),
    ] = None
    end_time: Annotated[
        Any, typer.Option("--until", parser=options.earlier_parser, metavar="TIME", help="As --since.")
    ] = None
    min_http_status: Annotated[
        int | None, typer.Option("--status", min=100, max=599, help="HTTP status of at least this.")
    ] = None
    session_id: Annotated[str | None, typer.Option("--session", help="Session of the client.")] = None
    only_unpriced: Annotated[
        bool | None, typer.Option("--unpriced", help="Only requests without a price.")
    ] = None


Errors = Annotated[bool, typer.Option("--errors", help="Only requests with a status of 400 or above.")]


def make_filter(given: Filter, errors: bool) -> pb.LogFilter:
    """Returns what the options say."""
    wanted = pb.LogFilter(min_http_status=400 if errors else 0)
    fields.fill(wanted, given)
    return wanted


@app.callback(invoke_without_command=True)
@fields.flattened
def logs(
    context: typer.Context,
    given: Filter,
    errors: Errors = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show requests as they finish.")] = False,
    limit: Limit = 20,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Lists requests, newest first: who asked for what, who answered, what it took and cost.

    \b
    Examples:
        lurus logs --since 2h --errors
        lurus logs --follow --model 'claude-*'
        lurus logs show req_01J…
        lurus logs --json -n 0 --since 1d          all of a day, for programs
    """
    if context.invoked_subcommand:
        return
    wanted = make_filter(given, errors)

    async def command(mesh: Mesh) -> None:
        if follow:
            await _follow(mesh, wanted, as_json)
            return
        request = pb.ListLogsRequest(filter=wanted)
        found = await whole_list(mesh.log.ListLogs, request, pb.ListLogsResponse(), limit)
        if as_json:
            print_json(found)
        else:
            print_table(_COLUMNS, found.events, "no requests; `lurus ask hello` makes one")

    run(command, data_dir)


@app.command()
def show(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST", help="Its id, `req_…`.")],
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Shows all that is known of one request."""

    async def command(mesh: Mesh) -> None:
        found = await mesh.log.GetLog(pb.GetLogRequest(request_id=request_id))
        if as_json:
            return print_json(found.event)
        _show(found.event)
        print_decision(found.event.decision)
        return print_table(ATTEMPT_COLUMNS, found.event.attempts, "no provider was called")

    run(command, data_dir)


async def _follow(mesh: Mesh, wanted: pb.LogFilter, as_json: bool) -> None:
    """Prints requests as they finish, until the caller has enough; reconnects when the service comes back."""
    has_begun = False
    while True:
        try:
            async for response in mesh.log.WatchUsage(pb.WatchUsageRequest(filter=wanted)):
                has_begun = True
                if response.skipped_count:
                    print(f"skipped {response.skipped_count} requests: too slow to read", file=sys.stderr)
                if response.HasField("event"):
                    _print_event(response.event, as_json)
        except grpc.aio.AioRpcError as error:
            if not has_begun or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        print("the log service has gone; waiting for it", file=sys.stderr)
        await asyncio.sleep(RECONNECT_SECONDS)


def _print_event(event: usage_pb2.UsageEvent, as_json: bool) -> None:
    if as_json:
        print_json(event, indent=None)
        return
    cells = [value(event) for _, value in _COLUMNS]
    print("  ".join(clean(cell) or "-" for cell in cells), flush=True)


def _show(event: usage_pb2.UsageEvent) -> None:
    tokens = event.tokens
    caches = all_input(tokens) - tokens.input - tokens.cache_read
    counts = f"{tokens.input} in, {tokens.output} out"
    counts += f", {tokens.cache_read} cache read" if tokens.cache_read else ""
    counts += f", {caches} cache write" if caches else ""
    counts += f", {tokens.reasoning} of out reasoning" if tokens.reasoning else ""
    print_fields(
        [
            ("request", event.request_id),
            ("finished", local_time(event, "event_time")),
            ("account", event.account_id),
            ("key", event.key_id),
            ("model", event.model),
            ("dialect", enum_word(usage_pb2.Dialect.DESCRIPTOR, event.dialect)),
            ("path", event.path),
            ("provider", "/".join(filter(None, [event.provider_id, event.credential_id]))),
            ("upstream model", event.upstream_model),
            ("status", str(event.http_status or "")),
            ("ended", _end(event)),
            ("stop reason", event.stop_reason),
            ("tokens", counts),
            ("counted by", enum_word(usage_pb2.TokenSource.DESCRIPTOR, event.token_source)),
            ("cost", "no price is known" if event.is_unpriced else usd(event.cost_nano_usd)),
            ("price", event.price_id),
            ("first byte", short_duration(event, "first_event_duration")),
            ("total", short_duration(event, "total_duration")),
            ("bytes", f"{event.request_bytes} in, {event.response_bytes} out"),
            ("session", event.session_id),
            ("user agent", event.user_agent),
            ("worker", event.worker_id),
        ]
    )


def _end(event: usage_pb2.UsageEvent) -> str:
    word = enum_word(usage_pb2.Terminal.DESCRIPTOR, event.terminal)
    return f"{word} ({event.error_reason})" if event.error_reason else word


_COLUMNS: list[Column[usage_pb2.UsageEvent]] = [
    ("TIME", lambda row: local_time(row, "event_time")),
    ("MODEL", lambda row: row.model),
    ("PROVIDER", lambda row: row.provider_id),
    ("STATUS", lambda row: str(row.http_status or "")),
    ("END", lambda row: enum_word(usage_pb2.Terminal.DESCRIPTOR, row.terminal)),
    ("IN", lambda row: str(all_input(row.tokens))),
    ("OUT", lambda row: str(row.tokens.output)),
    ("COST", lambda row: "unpriced" if row.is_unpriced else usd(row.cost_nano_usd)),
    ("TOTAL", lambda row: short_duration(row, "total_duration")),
    ("ACCOUNT", lambda row: row.account_id),
    ("REQUEST", lambda row: row.request_id),
]
ATTEMPT_COLUMNS: list[Column[usage_pb2.Attempt]] = [
    ("ATTEMPT", lambda row: "/".join(filter(None, [row.provider_id, row.credential_id]))),
    ("ASKED FOR", lambda row: row.upstream_model),
    ("STATUS", lambda row: str(row.http_status or "")),
    ("ERROR", lambda row: row.error_reason),
    ("FIRST BYTE", lambda row: short_duration(row, "first_event_duration")),
    ("TOTAL", lambda row: short_duration(row, "total_duration")),
]
