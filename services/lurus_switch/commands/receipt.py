"""`lurus receipt`: what one request cost, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import grpc.aio
import typer

from lurus.billing.v1 import billing_pb2 as pb
from lurus.log.v1 import log_pb2
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import NotFound
from lurus_common.money import TOKENS_PER_PRICE_UNIT, UNITS_PER_PRICE_UNIT
from lurus_common.prices import price_of, tokens_of
from lurus_common.rpc import error_of
from lurus_switch.amounts import factor, usd
from lurus_switch.commands.logs import ATTEMPT_COLUMNS
from lurus_switch.commands.options import AsJson, DataDir
from lurus_switch.failures import CommandFailed
from lurus_switch.mesh import Mesh, run
from lurus_switch.output import (
    Column,
    enum_word,
    local_time,
    print_fields,
    print_json,
    print_table,
    short_duration,
)

app = typer.Typer(rich_markup_mode=None, add_completion=False)

UNKNOWN = "unknown"
HTTP_REFUSED = 400

_ENDS: Mapping[int, str] = {
    usage_pb2.TERMINAL_COMPLETE: "the provider finished its answer",
    usage_pb2.TERMINAL_INCOMPLETE: "the provider stopped at a limit of its own",
    usage_pb2.TERMINAL_UPSTREAM_ERROR: "the provider answered with an error",
    usage_pb2.TERMINAL_TRUNCATED: "the provider's answer ended without its terminator",
    usage_pb2.TERMINAL_CLIENT_GONE: "the client left first",
    usage_pb2.TERMINAL_TIMEOUT: "nothing came for too long",
    usage_pb2.TERMINAL_REFUSED: "refused before any provider was called",
    usage_pb2.TERMINAL_WORKER_LOST: "the worker died; settled from its last checkpoint",
}
_SOURCES: Mapping[int, str] = {
    usage_pb2.TOKEN_SOURCE_UNSPECIFIED: "nothing was used",
    usage_pb2.TOKEN_SOURCE_PROVIDER: "the provider's final numbers",
    usage_pb2.TOKEN_SOURCE_PARTIAL: "the provider's numbers so far, of an answer that was cut",
    usage_pb2.TOKEN_SOURCE_ESTIMATED: "counted here from what was forwarded",
}
_CHARGES: Mapping[int, str] = {
    usage_pb2.CHARGE_REASON_COMPLETE: "the answer is complete",
    usage_pb2.CHARGE_REASON_NOTHING_SERVED: "nothing was served, nothing is charged",
    usage_pb2.CHARGE_REASON_BILLED_BY_POLICY: "interrupted; the account's policy bills what was served",
    usage_pb2.CHARGE_REASON_WAIVED_BY_POLICY: "interrupted; the account's policy waives it",
}
_GAPS: Mapping[int, str] = {
    pb.RECEIPT_GAP_UPSTREAM_COST: "what every attempt cost at its provider",
    pb.RECEIPT_GAP_PRICE: "the rates of the price: the provider service does not know it, or did not answer",
    pb.RECEIPT_GAP_MULTIPLIER: "why the amount is not what was used by rates and multipliers",
    pb.RECEIPT_GAP_EVENT: "how the request went: it was booked without its event",
    pb.RECEIPT_GAP_UNIT_RATE: "what some units cost: the price has no rate for them, they were not charged",
}
_KINDS = {
    "input": "input",
    "cache_read": "cache read",
    "cache_write_5m": "cache write 5m",
    "cache_write_30m": "cache write 30m",
    "cache_write_1h": "cache write 1h",
    "cache_write_12h": "cache write 12h",
    "output": "output",
}


@app.command()
def receipt(
    request_id: Annotated[
        str, typer.Argument(metavar="REQUEST", help="Its id, `req_…`, or that of a reservation, `rsv_…`.")
    ],
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Explains what one request cost: tokens by kind, the price and its rates, attempts, corrections.

    What is not recorded is said to be unknown, never guessed.

    \b
    Examples:
        lurus receipt req_01J…
        lurus receipt req_01J… --json
    """

    async def command(mesh: Mesh) -> None:
        found = await _receipt(mesh, request_id)
        if as_json:
            return print_json(found)
        return _show(found)

    run(command, data_dir)


async def _receipt(mesh: Mesh, request_id: str) -> pb.GetReceiptResponse:
    """Returns a receipt; of a request that was refused and not charged, what the log knows."""
    try:
        return await mesh.billing.GetReceipt(pb.GetReceiptRequest(request_id=request_id))
    except grpc.aio.AioRpcError as error:
        if not isinstance(error_of(error), NotFound):
            raise
        event = await _logged(mesh, request_id)
        if event is None:
            raise
    if event.terminal == usage_pb2.TERMINAL_REFUSED and not event.cost_nano_usd:
        return pb.GetReceiptResponse(event=event)
    raise CommandFailed(
        f"{request_id} is in the request log and not booked yet",
        reason="NOT_FOUND",
        remedy="`lurus status` shows what waits for the ledger; `lurus deadletter list` what was set aside.",
    )


async def _logged(mesh: Mesh, request_id: str) -> usage_pb2.UsageEvent | None:
    try:
        return (await mesh.log.GetLog(log_pb2.GetLogRequest(request_id=request_id))).event
    except grpc.aio.AioRpcError:
        return None


def _show(found: pb.GetReceiptResponse) -> None:
    _show_charge(found)
    if found.transaction.HasField("tokens"):
        print()
        print_table(_TOKEN_COLUMNS, _lines(found), "")
    if found.HasField("event"):
        print()
        print_table(
            [*ATTEMPT_COLUMNS, ("UPSTREAM COST", _upstream_cost), ("FACTOR", _attempt_factor)],
            found.event.attempts,
            "no provider was called",
        )
    if found.corrections:
        print()
        print_table(_CORRECTION_COLUMNS, found.corrections, "")
    for gap in found.gaps:
        print(f"not known: {_GAPS.get(gap, gap)}")


def _show_charge(found: pb.GetReceiptResponse) -> None:
    event, transaction = found.event, found.transaction
    print_fields(
        [
            ("request", transaction.transaction_id or event.request_id),
            ("account", transaction.account_id or event.account_id),
            ("charged", _charged(found)),
            ("after corrections", _corrected(found)),
            ("booked", local_time(transaction, "create_time")),
            ("finished", local_time(event, "event_time")),
            ("model", transaction.model or event.model),
            ("provider", "/".join(filter(None, [event.provider_id, event.credential_id]))),
            ("upstream model", event.upstream_model),
            ("ended", _end(event) if found.HasField("event") else UNKNOWN),
            ("first byte", short_duration(event, "first_event_duration")),
            ("total", short_duration(event, "total_duration")),
            ("counted by", _source(transaction)),
            ("price", _price(found)),
            ("multipliers", _multipliers(event)),
            ("why", _CHARGES.get(event.charge_reason, "")),
            ("waived", usd(event.waived_nano_usd) if event.waived_nano_usd else ""),
            ("upstream cost", usd(found.upstream_cost_nano_usd) if event.attempts else ""),
            ("lost cache", _lost_cache(event)),
        ]
    )


def _multipliers(event: usage_pb2.UsageEvent) -> str:
    if not event.provider_multiplier_ppm and not event.account_multiplier_ppm:
        return ""
    return (
        f"{factor(event.provider_multiplier_ppm)} of the provider, "
        f"{factor(event.account_multiplier_ppm)} of the account"
    )


def _lost_cache(event: usage_pb2.UsageEvent) -> str:
    if not event.HasField("lost_cache_tokens"):
        return ""
    tokens = f"{event.lost_cache_tokens:,} tokens were cached at another credential"
    return f"{tokens}, which cost {usd(event.lost_cache_nano_usd)}"


def _upstream_cost(attempt: usage_pb2.Attempt) -> str:
    if attempt.price_id:
        return usd(attempt.cost_nano_usd)
    refused = not attempt.token_source and attempt.http_status >= HTTP_REFUSED
    return usd(0) if refused else UNKNOWN


def _attempt_factor(attempt: usage_pb2.Attempt) -> str:
    return factor(attempt.provider_multiplier_ppm) if attempt.token_source else ""


def _charged(found: pb.GetReceiptResponse) -> str:
    if not found.HasField("transaction"):
        return "nothing: the request was refused, and nothing is booked"
    if found.transaction.is_unpriced:
        return f"{usd(0)} (no price was known)"
    return usd(-found.transaction.amount_nano_usd)


def _corrected(found: pb.GetReceiptResponse) -> str:
    if not found.corrections:
        return ""
    changes = sum(correction.amount_nano_usd for correction in found.corrections)
    return usd(-found.transaction.amount_nano_usd - changes)


def _end(event: usage_pb2.UsageEvent) -> str:
    word = enum_word(usage_pb2.Terminal.DESCRIPTOR, event.terminal)
    reasons = ", ".join(filter(None, [event.error_reason, event.stop_reason]))
    explained = f"{word}: {_ENDS[event.terminal]}" if event.terminal in _ENDS else UNKNOWN
    return f"{explained} [{reasons}]" if reasons else explained


def _source(transaction: pb.Transaction) -> str:
    if not transaction.HasField("tokens"):
        return ""
    word = enum_word(usage_pb2.TokenSource.DESCRIPTOR, transaction.token_source)
    return ": ".join(filter(None, [word, _SOURCES.get(transaction.token_source, UNKNOWN)]))


def _price(found: pb.GetReceiptResponse) -> str:
    if not found.HasField("price"):
        return found.transaction.price_id
    price = found.price
    since = f"in effect since {local_time(price, 'effective_time')}"
    tier = found.tier_above_input_tokens
    rates = f"rates above {tier:,} input tokens" if tier else ""
    return ", ".join(filter(None, [price.price_id, since, rates, price.source]))


@dataclass(frozen=True, slots=True)
class Line:
    """What was used of one kind, and its rate in nano-USD; None if that is not known."""

    kind: str
    count: int
    rate: int | None
    # For how many the rate is stated: a million tokens, a thousand of others.
    per: int = TOKENS_PER_PRICE_UNIT

    @property
    def amount(self) -> str:
        """Exactly: rounding comes once, at the sum."""
        if self.rate is None:
            return UNKNOWN
        return _exact_usd(self.count * self.rate * (TOKENS_PER_PRICE_UNIT // self.per))


def _lines(found: pb.GetReceiptResponse) -> list[Line]:
    """What was used of each kind, and its rate."""
    tokens = found.transaction.tokens
    price = price_of(found.price) if found.HasField("price") else None
    rates = price.rates_of(tokens_of(tokens)) if price else None
    lines = [
        Line(word, getattr(tokens, kind), getattr(rates, kind) if rates else None)
        for kind, word in _KINDS.items()
        if getattr(tokens, kind) or kind in ("input", "output")
    ]
    for unit in found.event.units:
        rate = price.unit_rates.get(unit.kind) if price else None
        lines.append(Line(unit.kind, unit.count, rate, UNITS_PER_PRICE_UNIT))
    return lines


def _exact_usd(scaled: int) -> str:
    """Returns an amount in millionths of a nano-USD, exactly: rounding comes once, at the sum."""
    nano, rest = divmod(scaled, TOKENS_PER_PRICE_UNIT)
    if not rest:
        return usd(nano)
    whole, decimals = divmod(nano, 10**9)
    return f"${whole:,}.{decimals:09}{rest:06}".rstrip("0")


_TOKEN_COLUMNS: list[Column[Line]] = [
    ("USED", lambda row: row.kind),
    ("COUNT", lambda row: f"{row.count:,}"),
    ("RATE", lambda row: UNKNOWN if row.rate is None else usd(row.rate)),
    ("PER", lambda row: f"{row.per:,}"),
    ("AMOUNT", lambda row: row.amount),
]
_CORRECTION_COLUMNS: list[Column[pb.Transaction]] = [
    ("CORRECTED", lambda row: local_time(row, "create_time")),
    ("AMOUNT", lambda row: usd(row.amount_nano_usd)),
    ("WHAT", lambda row: row.description),
    ("ID", lambda row: row.transaction_id),
]
