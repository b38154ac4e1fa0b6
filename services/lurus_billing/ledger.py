"""The rules of the ledger, without a database.

Every movement is a transfer between two ledger accounts, a customer's and one
of the house's. A customer's balance is what was credited less what was
debited, so the sum over all ledger accounts is 0.

What is booked for a usage event is never refused or clipped: the money is
spent. So an event for an account that nobody created is booked too, on an
account that is then created as closed and unknown, in debt, for the operator
to see; creating that account later adopts its ledger. Only an event that no
row can hold (a NUL character, an impossible time or account id, a cost beyond
`MAX_COST_NANO_USD`) is refused, and parked by the consumer.

A request that was refused before any provider was called, and so used nothing
and costs nothing, is no movement: it has its row in the request log, not here.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1.usage_pb2 import TERMINAL_REFUSED, Tokens, UsageEvent
from lurus_common.errors import InvalidRequest
from lurus_common.money import require_amount

HOUSE_OF_KIND: Mapping[int, str] = {
    pb.TRANSACTION_KIND_USAGE: "house:usage",
    pb.TRANSACTION_KIND_TOP_UP: "house:cash",
    pb.TRANSACTION_KIND_REFUND: "house:cash",
    pb.TRANSACTION_KIND_ADJUSTMENT: "house:adjustment",
}
# One request for a million dollars is a defect; booked, a few of them would fill
# the house's account, and every neighbour would be refused.
MAX_COST_NANO_USD = 10**15
BUCKET_SECONDS = 900
_ACCOUNT_ID = re.compile(r"acct_[0-9A-Za-z_-]{1,58}\Z")


class EventRefused(ValueError):
    """No row of the ledger can hold this event; it is for a person to look at."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Something to book: the cost of an event, or a movement by hand."""

    transaction_id: str
    account_id: str
    kind: pb.TransactionKind.ValueType
    # Signed change of the account's balance.
    amount_nano_usd: int
    body_sha: bytes
    description: str = ""
    event: UsageEvent | None = None
    # When it was used, in seconds since 1970; None if it is no usage.
    used_seconds: int | None = None
    corrects_transaction_id: str = ""
    # Of a request that is priced again: the price that is applied now.
    price_id: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a ledger account stands before a booking."""

    balance_nano_usd: int = 0
    sequence: int = 0
    credit_limit_nano_usd: int = 0


@dataclass(frozen=True, slots=True)
class Posting:
    """An entry as it is booked."""

    entry: Entry
    sequence: int
    debit_account_id: str
    credit_account_id: str
    amount_nano_usd: int
    balance_after_nano_usd: int
    is_overdraft: bool


@dataclass(slots=True)
class Change:
    """What a batch does to one ledger account."""

    balance_nano_usd: int = 0
    used_nano_usd: int = 0
    count: int = 0


@dataclass(frozen=True, slots=True)
class Sorting:
    """A batch, told apart: what is new, what repeats, what repeats with another content, what is nothing."""

    fresh: list[Entry] = field(default_factory=list)
    repeats: list[Entry] = field(default_factory=list)
    conflicts: list[Entry] = field(default_factory=list)
    idle: list[Entry] = field(default_factory=list)


def is_account_id(text: str) -> bool:
    """Whether `text` can be a customer's account; the house's cannot."""
    return _ACCOUNT_ID.match(text) is not None


def usage_entry(event: UsageEvent) -> Entry:
    """Returns what to book for an event that keeps the rules of its contract.

    Raises:
        EventRefused: if no row can hold it.
    """
    if not is_account_id(event.account_id):
        raise EventRefused("account_id is not `acct_` and letters, digits, `_` or `-`")
    if any("\0" in text for text in (event.key_id, event.model, event.price_id, event.lease_id)):
        raise EventRefused("a text contains a NUL character")
    if not 0 <= event.cost_nano_usd <= MAX_COST_NANO_USD:
        raise EventRefused(f"cost_nano_usd is not between 0 and {MAX_COST_NANO_USD}")
    used_seconds = int(event_time(event).timestamp())
    body_sha = hashlib.sha256(event.SerializeToString(deterministic=True)).digest()
    return Entry(
        event.request_id,
        event.account_id,
        pb.TRANSACTION_KIND_USAGE,
        -event.cost_nano_usd,
        body_sha,
        event=event,
        used_seconds=used_seconds,
    )


def is_idle(entry: Entry) -> bool:
    """Whether an entry is of a request that was refused, used nothing and costs nothing."""
    return entry.event is not None and is_idle_event(entry.event)


def is_idle_event(event: UsageEvent) -> bool:
    """Whether an event is of a request that was refused, used nothing and costs nothing."""
    return (
        event.terminal == TERMINAL_REFUSED
        and not event.cost_nano_usd
        and not event.is_unpriced
        and event.tokens == Tokens()
    )


def reservation_entry(request: pb.SettleReservationRequest, account_id: str, now: datetime) -> Entry:
    """Returns what to book for a reservation that is settled now."""
    return Entry(
        request.reservation_id,
        account_id,
        pb.TRANSACTION_KIND_USAGE,
        -request.amount_nano_usd,
        hashlib.sha256(request.SerializeToString(deterministic=True)).digest(),
        "a reservation",
        used_seconds=int(now.timestamp()),
    )


def event_time(event: UsageEvent) -> datetime:
    """When the request was finished.

    Raises:
        EventRefused: if that is not a time.
    """
    try:
        return event.event_time.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise EventRefused("event_time is not a time") from error


def manual_entry(request: pb.CreateTransactionRequest) -> Entry:
    """Returns what to book for a movement by hand."""
    body_sha = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    return Entry(
        request.transaction_id,
        request.account_id,
        request.kind,
        request.amount_nano_usd,
        body_sha,
        request.description,
        corrects_transaction_id=request.corrects_transaction_id,
    )


def require_fitting_kind(request: pb.CreateTransactionRequest) -> None:
    """Raises InvalidRequest if money would go the wrong way for its kind, or the kind corrects nothing."""
    is_in = request.amount_nano_usd > 0
    if request.kind == pb.TRANSACTION_KIND_TOP_UP and not is_in:
        raise InvalidRequest("a top-up is above 0", param="amount_nano_usd")
    if request.kind == pb.TRANSACTION_KIND_REFUND and is_in:
        raise InvalidRequest("a refund is below 0", param="amount_nano_usd")
    if request.corrects_transaction_id and request.kind != pb.TRANSACTION_KIND_ADJUSTMENT:
        raise InvalidRequest("only an adjustment corrects", param="corrects_transaction_id")


def ledger_accounts(entries: Iterable[Entry]) -> list[str]:
    """The ledger accounts that entries touch, in the order in which they are locked."""
    return sorted({entry.account_id for entry in entries} | {HOUSE_OF_KIND[entry.kind] for entry in entries})


def sort(entries: Sequence[Entry], known: Mapping[str, bytes]) -> Sorting:
    """Tells entries apart by id: the first with an id wins, whatever comes later.

    An idle entry never wins, since nothing is kept of it; with an id that is
    booked it is a conflict like any other.

    Args:
        entries: in the order in which they are to be booked.
        known: the body hash of each id that is booked already.
    """
    seen = dict(known)
    sorting = Sorting()
    for entry in sorted(entries, key=is_idle):
        first = seen.get(entry.transaction_id)
        if first is None and is_idle(entry):
            sorting.idle.append(entry)
        elif first is None:
            seen[entry.transaction_id] = entry.body_sha
            sorting.fresh.append(entry)
        elif first == entry.body_sha:
            sorting.repeats.append(entry)
        else:
            sorting.conflicts.append(entry)
    return sorting


def book(entries: Iterable[Entry], standings: Mapping[str, Standing]) -> list[Posting]:
    """Returns the postings of new entries, numbered and with the balance after each.

    Raises:
        OverflowError: if a balance would not fit its column.
    """
    latest = dict(standings)
    postings = []
    for entry in entries:
        before = latest[entry.account_id]
        amount = require_amount(entry.amount_nano_usd, "amount_nano_usd")
        balance = require_amount(before.balance_nano_usd + amount, "balance_nano_usd")
        after = Standing(balance, before.sequence + 1, before.credit_limit_nano_usd)
        latest[entry.account_id] = after
        house = HOUSE_OF_KIND[entry.kind]
        debit, credit = (house, entry.account_id) if amount > 0 else (entry.account_id, house)
        is_overdraft = amount < 0 and balance < -before.credit_limit_nano_usd
        postings.append(Posting(entry, after.sequence, debit, credit, abs(amount), balance, is_overdraft))
    return postings


def changes(postings: Iterable[Posting], standings: Mapping[str, Standing]) -> dict[str, Change]:
    """What postings do to each ledger account; the sum of the balances stays as it was.

    Raises:
        OverflowError: if a balance would not fit its column.
    """
    found: dict[str, Change] = {}
    for posting in postings:
        debit = found.setdefault(posting.debit_account_id, Change())
        credit = found.setdefault(posting.credit_account_id, Change())
        debit.balance_nano_usd -= posting.amount_nano_usd
        credit.balance_nano_usd += posting.amount_nano_usd
        own = found[posting.entry.account_id]
        own.count += 1
        if posting.entry.kind == pb.TRANSACTION_KIND_USAGE:
            own.used_nano_usd += posting.amount_nano_usd
    for ledger_account_id, change in found.items():
        balance = standings[ledger_account_id].balance_nano_usd + change.balance_nano_usd
        require_amount(balance, "balance_nano_usd")
    return found


def usage_buckets(postings: Iterable[Posting], now: datetime) -> dict[tuple[str, int], int]:
    """What was used by account and quarter of an hour, in seconds since 1970.

    By the time of the event, so that late events count for the day they belong
    to; an event from the future counts now.
    """
    latest = int(now.timestamp())
    found: dict[tuple[str, int], int] = {}
    for posting in postings:
        if posting.entry.used_seconds is None or not posting.amount_nano_usd:
            continue
        seconds = min(posting.entry.used_seconds, latest)
        bucket = (posting.entry.account_id, seconds - seconds % BUCKET_SECONDS)
        found[bucket] = found.get(bucket, 0) + posting.amount_nano_usd
    return found


def lease_settlements(postings: Iterable[Posting]) -> dict[tuple[str, str], int]:
    """What was settled of each lease, by lease id and account."""
    found: dict[tuple[str, str], int] = {}
    for posting in postings:
        event = posting.entry.event
        if event is None or not event.lease_id or not posting.amount_nano_usd:
            continue
        lease = (event.lease_id, posting.entry.account_id)
        found[lease] = found.get(lease, 0) + posting.amount_nano_usd
    return found
