"""Requests that are priced again, in PostgreSQL."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from google.protobuf.message import Message

from lurus.billing.v1 import billing_pb2 as pb
from lurus.provider.v1.provider_pb2 import Price
from lurus.usage.v1.usage_pb2 import Tokens, UsageEvent
from lurus_billing import booking, ledger, repricing
from lurus_billing.repricing import CORRECTION_PREFIX, Left, Priced
from lurus_common import postgres
from lurus_common.errors import FailedPrecondition, InvalidRequest, NotFound
from lurus_common.paging import decode_token, encode_token, page_limit
from lurus_common.postgres import Connection, transaction
from lurus_common.prices import DatedPrice, PriceList, price_of

DEFAULT_PAGE = 200
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST, _LATEST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)

_NOT_PRICED_SINCE = f"""
NOT EXISTS (
    SELECT 1 FROM billing.transfer c
    WHERE c.corrects_transaction_id = t.transaction_id
        AND starts_with(c.transaction_id, '{CORRECTION_PREFIX}')
)
"""  # noqa: S608  # our own words
_PAGE = f"""
SELECT t.*, u.payload FROM billing.transfer t
LEFT JOIN billing.usage_event u ON u.request_id = t.transaction_id
WHERE t.kind = 1 AND t.model = $1 AND ($2 = '' OR t.account_id = $2)
    AND t.event_time >= $3 AND t.event_time < $4 AND (t.event_time, t.transaction_id) > ($5, $6)
    AND (NOT $7 OR (t.is_unpriced AND {_NOT_PRICED_SINCE}))
ORDER BY t.event_time, t.transaction_id LIMIT $8
"""  # noqa: S608  # our own words
_CORRECTIONS = """
SELECT * FROM billing.transfer WHERE corrects_transaction_id = ANY($1) ORDER BY account_id, sequence
"""
_COUNTS = (
    "input",
    "cache_read",
    "cache_write_5m",
    "cache_write_30m",
    "cache_write_1h",
    "cache_write_12h",
    "output",
    "reasoning",
)
_UNPRICED = f"""
SELECT model, count(*) AS request_count, min(event_time) AS first_time, max(event_time) AS last_time,
    {", ".join(f"sum({name}_tokens)::bigint AS {name}" for name in _COUNTS)}
FROM billing.transfer t
WHERE is_unpriced AND model > $1 AND event_time >= $2 AND event_time < $3 AND {_NOT_PRICED_SINCE}
GROUP BY model ORDER BY model LIMIT $4
"""  # noqa: S608  # our own words

FindPrices = Callable[[str], Awaitable[Sequence[Price]]]


@dataclass(frozen=True, slots=True)
class _Prices:
    """The price that was asked for, else those in the catalogue."""

    chosen: DatedPrice | None
    dated: PriceList

    def of(self, priced: Priced) -> DatedPrice | None:
        event = priced.event
        if self.chosen is not None or event is None:
            return self.chosen
        time = event.start_time if event.HasField("start_time") else event.event_time
        return self.dated.find(event.provider_id, event.upstream_model, event.model, time.ToNanoseconds())


class RepricingStore:
    """Prices what is booked again."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def unpriced(self, request: pb.ListUnpricedModelsRequest) -> pb.ListUnpricedModelsResponse:
        """Returns a page of models whose requests have no price yet."""
        limit = page_limit(request.page_size)
        position = decode_token(request.page_token, str) or [""]
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(_UNPRICED, position[0], *_span(request), limit + 1)
        token = encode_token(rows[limit - 1]["model"]) if len(rows) > limit else ""
        models = [
            pb.UnpricedModel(
                model=row["model"],
                request_count=row["request_count"],
                tokens=Tokens(**{name: row[name] for name in _COUNTS}),
                first_time=row["first_time"],
                last_time=row["last_time"],
            )
            for row in rows[:limit]
        ]
        return pb.ListUnpricedModelsResponse(models=models, next_page_token=token)

    async def reprice(
        self, request: pb.RepriceUsageRequest, find: FindPrices, chosen: Price | None
    ) -> pb.RepriceUsageResponse:
        """Prices a page of requests again; what it books is one transaction.

        Args:
            find: returns all prices of a name.
            chosen: the price to apply to all; None for the one of each request's time.

        Raises:
            FailedPrecondition: if a balance would not fit 64 bits.
        """
        limit = page_limit(request.page_size or DEFAULT_PAGE)
        rows = await self._rows(request, limit + 1)
        page, token = rows[:limit], ""
        if len(rows) > limit:
            token = encode_token(_micros(page[-1]["event_time"]), page[-1]["transaction_id"])
        response = pb.RepriceUsageResponse(next_page_token=token)
        if page:
            prices = await _prices(page, find, chosen)
            await self._book(request, page, prices, response)
        return response

    async def _rows(self, request: pb.RepriceUsageRequest, limit: int) -> Sequence[asyncpg.Record]:
        micros, last_id = decode_token(request.page_token, int, str) or (_micros(_EARLIEST), "")
        after = (_moment(micros), last_id)
        async with postgres.connection(self._pool) as connection:
            rows: Sequence[asyncpg.Record] = await connection.fetch(
                _PAGE,
                request.model,
                request.account_id,
                *_span(request),
                *after,
                request.only_unpriced,
                limit,
            )
        return rows

    async def _book(
        self,
        request: pb.RepriceUsageRequest,
        page: Sequence[asyncpg.Record],
        prices: _Prices,
        response: pb.RepriceUsageResponse,
    ) -> None:
        accounts = {row["account_id"] for row in page}
        touched = sorted(accounts | {ledger.HOUSE_OF_KIND[pb.TRANSACTION_KIND_ADJUSTMENT]})
        async with transaction(self._pool, read_only=request.is_dry_run) as connection:
            # What is decided here is decided once: who comes at the same time waits, and sees it.
            standings = {} if request.is_dry_run else await booking.lock(connection, touched)
            entries = []
            for priced in await _priced(connection, page):
                decided = repricing.decide(priced, prices.of(priced), recounts=request.recounts)
                if isinstance(decided, Left):
                    _count(response, decided)
                    continue
                entries.append(decided[1])
                response.repricings.append(decided[0])
            if request.is_dry_run:
                for one in response.repricings:
                    one.ClearField("transaction_id")
                return
            try:
                await booking.write(connection, entries, standings)
            except OverflowError as error:
                raise FailedPrecondition("a balance would not fit 64 bits") from error


async def _priced(connection: Connection, page: Sequence[asyncpg.Record]) -> list[Priced]:
    corrections = defaultdict(list)
    for row in await connection.fetch(_CORRECTIONS, [row["transaction_id"] for row in page]):
        corrections[row["corrects_transaction_id"]].append(booking.transaction_of(row))
    return [
        Priced(booking.transaction_of(row), corrections[row["transaction_id"]], _event(row)) for row in page
    ]


async def _prices(page: Sequence[asyncpg.Record], find: FindPrices, chosen: Price | None) -> _Prices:
    if chosen is not None:
        dated = DatedPrice(chosen.price_id, chosen.effective_time.ToNanoseconds(), price_of(chosen))
        return _Prices(dated, PriceList(()))
    found: list[Price] = []
    for name in sorted(_names(page)):
        found += await find(name)
    return _Prices(None, PriceList(found))


def _names(page: Iterable[asyncpg.Record]) -> set[str]:
    events = [event for row in page if (event := _event(row)) is not None]
    return {name for event in events for name in (event.model, event.upstream_model) if name}


def _event(row: asyncpg.Record) -> UsageEvent | None:
    return None if row["payload"] is None else UsageEvent.FromString(row["payload"])


def _count(response: pb.RepriceUsageResponse, left: Left) -> None:
    response.unchanged_count += left is Left.UNCHANGED
    response.unpriced_count += left is Left.UNPRICED
    response.skipped_count += left is Left.SKIPPED


def _span(request: pb.RepriceUsageRequest | pb.ListUnpricedModelsRequest) -> tuple[datetime, datetime]:
    return _time(request, "start_time", _EARLIEST), _time(request, "end_time", _LATEST)


def _time(request: Message, name: str, default: datetime) -> datetime:
    if not request.HasField(name):
        return default
    try:
        found: datetime = getattr(request, name).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{name} is not a time", param=name) from error
    return found


def _micros(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


def _moment(micros: Any) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=micros)
    except OverflowError as error:
        raise InvalidRequest("page_token is not ours", param="page_token") from error


def require_price(price: Price | None, price_id: str) -> Price:
    """Raises NotFound if there is no such price."""
    if price is None:
        raise NotFound("no such price", resource="price", id=price_id)
    return price
