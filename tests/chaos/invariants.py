"""The thirteen invariants of reliability §11.2: what six ledgers have to agree on after any chaos."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lurus.usage.v1 import usage_pb2
from tests.chaos.ledgers import TOKENS, Booked, Books, Served, is_refused

# Of an interrupted stream, how much of what the provider had sent may be missing in its charge.
LOST_SECONDS = 1.0
# The first ten words have three bytes, and the gateway takes four for a token; and one event on its way.
ESTIMATE_WORDS = 4
EXACT = usage_pb2.TOKEN_SOURCE_PROVIDER
TOKENS_PER_PRICE = 1_000_000
# Nano-USD per million tokens; odd, so that a wrong rounding shows.
PRICE = {"input": 3_141_592_653, "cache_read": 314_159_265, "output": 15_926_535_897}
# A table shows no more of them.
MAX_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one invariant: how many were looked at, and which of them break it."""

    name: str
    about: str
    checked: int
    broken: tuple[str, ...]
    note: str = ""


@dataclass(slots=True)
class _View:
    """The books, sorted for looking things up."""

    books: Books
    lost_seconds: float
    served: dict[str, list[Served]]
    booked: dict[str, Booked]
    # Request ids by the mark of their call.
    requests: dict[str, list[str]]

    def pairs(self, *, exact: bool) -> Iterator[tuple[Served, Booked]]:
        """Yields what was served with the row that charges for it."""
        for mark, calls in self.served.items():
            for request_id in self.requests.get(mark, ()):
                row = self.booked.get(request_id)
                if row is not None and (row.token_source == EXACT) is exact:
                    yield self._answered(calls, request_id), row

    def _answered(self, calls: list[Served], request_id: str) -> Served:
        """Of several attempts, the one whose answer the request got."""
        answer_id = self.books.events[request_id].upstream_request_id
        named = [call for call in calls if answer_id and answer_id.endswith(call.answer_id)]
        return named[0] if named else max(calls, key=lambda call: call.output)


def examine(books: Books, lost_seconds: float = LOST_SECONDS) -> list[Finding]:
    """Compares the ledgers; returns a finding for each invariant, in their order."""
    served, requests = defaultdict(list), defaultdict(list)
    for call in books.served:
        served[call.mark].append(call)
    for request_id, event in books.events.items():
        requests[event.user_agent].append(request_id)
    booked = {row.request_id: row for row in books.booked}
    view = _View(books, lost_seconds, dict(served), booked, dict(requests))
    found = []
    for name, (about, look) in INVARIANTS.items():
        checked, broken, note = look(view)
        found.append(Finding(name, about, checked, tuple(broken), note))
    return found


Look = tuple[int, list[str], str]


def _i1(view: _View) -> Look:
    broken = []
    for mark in view.served:
        rows = [request for request in view.requests.get(mark, ()) if request in view.booked]
        if len(rows) != 1:
            broken.append(f"{mark}: {len(rows)} rows {' '.join(view.requests.get(mark, ()))}")
    return len(view.served), broken, ""


def _i2(view: _View) -> Look:
    broken, count = [], 0
    for served, row in view.pairs(exact=True):
        count += 1
        tokens = dict(zip(TOKENS, row.tokens, strict=True))
        told = (tokens["input"], tokens["cache_read"], tokens["output"])
        if served.usage != told:
            broken.append(f"{row.request_id}: booked {told}, served {served.usage}")
    for row in view.books.booked:
        if row.cost_nano_usd != price_of(row.tokens):
            broken.append(f"{row.request_id}: {row.cost_nano_usd} nano-USD for {row.tokens}")
    return count, broken, ""


def _i3(view: _View) -> Look:
    broken, count, worst = [], 0, 0
    for served, row in view.pairs(exact=False):
        count += 1
        missing = served.output - row.tokens[TOKENS.index("output")]
        if served.is_streaming:
            worst = max(worst, missing)
        # Of a plain answer nothing is known until it is there as a whole, and then it is exact.
        allowed = _allowed(served, view.lost_seconds) if served.is_streaming else served.output
        if not 0 <= missing <= allowed:
            broken.append(f"{row.request_id}: {missing} of {served.output} tokens missing, {allowed} allowed")
    return count, broken, f"at most {worst} tokens too few in a stream"


def _allowed(served: Served, seconds: float) -> int:
    if not served.pause_ms:
        return served.output
    return int(seconds * 1000 / served.pause_ms) + ESTIMATE_WORDS


def _i4(view: _View) -> Look:
    rows = view.books.booked
    counts = Counter(row.request_id for row in rows)
    broken = [f"{request_id}: {count} rows" for request_id, count in counts.items() if count > 1]
    broken += view.books.bank.letters
    return len(rows), broken, ""


def _i5(view: _View) -> Look:
    bank, broken = view.books.bank, []
    for account, balance in bank.balances.items():
        if balance != bank.moved.get(account, 0):
            broken.append(f"{account}: {balance}, its transfers say {bank.moved.get(account, 0)}")
    costs: Counter[str] = Counter()
    for row in view.books.booked:
        costs[row.account_id] += row.cost_nano_usd
    for account, cost in costs.items():
        if not cost == bank.used.get(account, 0) == bank.bucketed.get(account, 0):
            broken.append(
                f"{account}: used {cost}, kept {bank.used.get(account)} {bank.bucketed.get(account)}"
            )
    return len(bank.balances), broken, ""


def _i6(view: _View) -> Look:
    total = sum(view.books.bank.balances.values())
    return len(view.books.bank.balances), [f"the sum is {total}"] if total else [], ""


def _i7(view: _View) -> Look:
    broken = []
    logged = {row.request_id: row for row in view.books.logged}
    if len(logged) != len(view.books.logged):
        broken.append(f"{len(view.books.logged)} rows of {len(logged)} requests")
    for request_id, row in view.booked.items():
        other = logged.get(request_id)
        if other is None:
            broken.append(f"{request_id}: not in the log")
        elif (row.account_id, row.cost_nano_usd, row.tokens) != (
            other.account_id,
            other.cost_nano_usd,
            other.tokens,
        ):
            broken.append(f"{request_id}: {row.cost_nano_usd} booked, {other.cost_nano_usd} logged")
    for request_id, other in logged.items():
        if request_id not in view.booked and (other.cost_nano_usd or other.terminal != "REFUSED"):
            broken.append(f"{request_id}: only in the log, {other.terminal}")
    return len(view.booked), broken, f"{len(logged) - len(view.booked)} refused calls only in the log"


def _i8(view: _View) -> Look:
    note = f"{view.books.pending} not acknowledged" if view.books.pending else ""
    # Sent is not enough: each final event that charges is in the ledger.
    lost = [
        f"{request_id}: sent and not booked"
        for request_id, event in view.books.events.items()
        if request_id not in view.booked and not is_refused(event)
    ]
    lost += [
        f"{request_id}: in no outbox" for request_id in view.booked if request_id not in view.books.events
    ]
    return len(view.books.events), [*view.books.unsent, *lost], note


def _i9(view: _View) -> Look:
    return view.books.bank.hold_count, list(view.books.bank.old_holds), ""


def _i10(view: _View) -> Look:
    whole = [seen for seen in view.books.seen if seen.is_whole]
    broken = []
    for seen in whole:
        row = view.booked.get(seen.request_id)
        if row is None or row.token_source != EXACT:
            broken.append(f"{seen.request_id or seen.mark}: {'no row' if row is None else 'estimated'}")
    return len(whole), broken, ""


def _i11(view: _View) -> Look:
    broken = [
        f"{seen.request_id}: {seen.begin_count} begins" for seen in view.books.seen if seen.begin_count > 1
    ]
    return sum(seen.begin_count > 0 for seen in view.books.seen), broken, ""


def _i12(view: _View) -> Look:
    events = view.books.events
    rows = [row for row in view.books.booked if row.request_id in events]
    idle = [row for row in rows if events[row.request_id].user_agent not in view.served]
    return len(idle), [f"{row.request_id}: {row.cost_nano_usd}" for row in idle if row.cost_nano_usd], ""


def _i13(view: _View) -> Look:
    broken = []
    for request_id, row in view.booked.items():
        told = view.books.exported.get(request_id, [])
        if told != [(row.account_id, row.cost_nano_usd)]:
            broken.append(f"{request_id}: {row.account_id} {row.cost_nano_usd} booked, Lago bills {told}")
    broken += [f"{name}: only in Lago" for name in view.books.exported if name not in view.booked]
    return len(view.booked), broken, ""


INVARIANTS: dict[str, tuple[str, Callable[[_View], Look]]] = {
    "I1": ("what the provider served has one row in the ledger", _i1),
    "I2": ("exact rows: tokens as served, cost as priced", _i2),
    "I3": ("estimated rows: never too much, at most 1 s too little", _i3),
    "I4": ("nothing is booked twice, nothing is set aside", _i4),
    "I5": ("balances are the sums of their transfers", _i5),
    "I6": ("all balances together are 0", _i6),
    "I7": ("the request log says what the ledger says", _i7),
    "I8": ("the outboxes have nothing that is not booked", _i8),
    "I9": ("no money is set aside longer than it may be", _i9),
    "I10": ("who saw the terminal event has an exact row", _i10),
    "I11": ("no stream begins twice", _i11),
    "I12": ("what was not served costs nothing", _i12),
    "I13": ("the export to Lago says what the ledger says", _i13),
}


def price_of(tokens: tuple[int, ...]) -> int:
    """Returns what tokens cost, computed here anew: the product's own sum is what is examined."""
    rates = [PRICE.get(name, PRICE["input"] if name.startswith("cache_write") else 0) for name in TOKENS]
    return -(-sum(count * rate for count, rate in zip(tokens, rates, strict=True)) // TOKENS_PER_PRICE)
