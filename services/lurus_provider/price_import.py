"""What an import of prices would change. No database, no clock."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from lurus.provider.v1.provider_pb2 import ImportPricesResponse, ImportProblem, Price, PriceChange
from lurus_common.errors import InvalidRequest
from lurus_common.ids import new_id
from lurus_provider import validation
from lurus_provider.rows import is_same

CATALOGUE_PREFIX = "price_catalogue-"
MAX_PROBLEMS = 1_000
# What does not make two prices differ.
_OTHER = ("price_id", "effective_time", "source", "create_time")

Owner = tuple[str, str]


@dataclass
class Import:
    """What comes of an import: prices to store, each with what it follows, or what is wrong."""

    changes: list[PriceChange] = field(default_factory=list)
    unchanged_count: int = 0
    problems: list[ImportProblem] = field(default_factory=list)

    def response(self, *, is_dry_run: bool) -> ImportPricesResponse:
        """Returns what the caller is told; without the ids of prices that were not stored."""
        if is_dry_run or self.problems:
            for change in self.changes:
                change.price.ClearField("price_id")
        return ImportPricesResponse(
            changes=self.changes,
            unchanged_count=self.unchanged_count,
            problems=self.problems[:MAX_PROBLEMS],
        )


class Importer:
    """Compares prices with those that are there.

    Args:
        existing: all prices.
        provider_ids: all providers.
        now: from when on a price counts that states no time.
    """

    def __init__(self, existing: Iterable[Price], provider_ids: Iterable[str], now: datetime) -> None:
        self._now = Timestamp()
        self._now.FromDatetime(now)
        self._provider_ids = frozenset(provider_ids)
        self._by_id: dict[str, Price] = {}
        self._by_owner: defaultdict[Owner, list[Price]] = defaultdict(list)
        for price in existing:
            self._by_id[price.price_id] = price
            self._by_owner[price.provider_id, price.model].append(price)
        self._taken: dict[tuple[str, str, int], int] = {}

    def compare(self, given: Sequence[Price]) -> Import:
        """Returns what storing `given` would change."""
        found = Import()
        for index, price in enumerate(given):
            price = deepcopy(price)
            problem = self._problem(index, price)
            if problem is not None:
                found.problems.append(problem)
                continue
            previous = self._previous(price)
            if previous is not None and is_same(previous, price, _OTHER):
                found.unchanged_count += 1
            else:
                price.price_id = price.price_id or new_id("price")
                found.changes.append(PriceChange(price=price, previous=previous))
        return found

    def _problem(self, index: int, price: Price) -> ImportProblem | None:
        """Puts a price into its one spelling; returns why it cannot be stored, None if it can."""
        try:
            validation.normalise_price(price)
            validation.check_price(price)
        except InvalidRequest as error:
            field_name = str(error.metadata.get("param", "")).removeprefix("price.")
            return ImportProblem(index=index, field=field_name, message=error.message)
        if not price.HasField("effective_time"):
            price.effective_time.CopyFrom(self._now)
        if price.provider_id and price.provider_id not in self._provider_ids:
            return ImportProblem(index=index, field="provider_id", message="no such provider")
        key = (price.provider_id, price.model, price.effective_time.ToNanoseconds())
        first = self._taken.setdefault(key, index)
        if first != index:
            words = f"the same model, provider and time as number {first}"
            return ImportProblem(index=index, field="model", message=words)
        return self._clash(index, price)

    def _clash(self, index: int, price: Price) -> ImportProblem | None:
        known = self._by_id.get(price.price_id)
        if known is not None and not is_same(known, price, ("source", "create_time")):
            return ImportProblem(index=index, field="price_id", message="it exists with another content")
        if known is None and price.price_id.startswith(CATALOGUE_PREFIX):
            words = f"{CATALOGUE_PREFIX}… is for shipped prices"
            return ImportProblem(index=index, field="price_id", message=words)
        previous = self._previous(price)
        if previous is None or previous.effective_time != price.effective_time:
            return None
        if is_same(previous, price, _OTHER):
            return None
        words = f"{previous.price_id} counts from the same moment on, with other rates"
        return ImportProblem(index=index, field="effective_time", message=words)

    def _previous(self, price: Price) -> Price | None:
        """What is in effect at the time of a price, for the same model and provider."""
        time = price.effective_time.ToNanoseconds()
        owned = self._by_owner.get((price.provider_id, price.model), ())
        before = [one for one in owned if one.effective_time.ToNanoseconds() <= time]
        return max(before, key=lambda one: one.effective_time.ToNanoseconds(), default=None)
