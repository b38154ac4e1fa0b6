"""The whole set of providers, models and prices at one revision, in memory: look-up, pages, matches."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

from google.protobuf.message import Message

from lurus.provider.v1.provider_pb2 import (
    MatchedProvider,
    Model,
    Price,
    Provider,
    WatchProvidersResponse,
)
from lurus_common.errors import NotFound
from lurus_common.matching import DEFAULT_LEVEL, ModelRules, rank
from lurus_common.paging import decode_token, encode_token, page_limit

# A page ends early rather than exceed what a channel takes.
MAX_PAGE_BYTES = 3 * 1024 * 1024

Resource = TypeVar("Resource", bound=Message)
Position = tuple[str | int, ...]


class ProviderSet:
    """One revision of everything, without secrets. Never changes; what it returns is not to be changed."""

    def __init__(self, message: WatchProvidersResponse) -> None:
        self.revision = message.revision
        self._providers = sorted(message.providers, key=_provider_position)
        self._models = sorted(message.models, key=_model_position)
        self._prices = sorted(message.prices, key=_price_position)

    def provider(self, provider_id: str) -> Provider:
        """Returns one provider; raises NotFound."""
        return _get(self._providers_by_id, "provider", provider_id)

    def model(self, model_id: str) -> Model:
        """Returns one model; raises NotFound."""
        return _get(self._models_by_id, "model", model_id)

    def price(self, price_id: str) -> Price:
        """Returns one price; raises NotFound."""
        return _get(self._prices_by_id, "price", price_id)

    def provider_page(self, page_size: int, page_token: str, tag: str) -> tuple[list[Provider], str]:
        """Returns providers by level, then id, and the token of the next page."""
        rows = [row for row in self._providers if tag in row.tags] if tag else self._providers
        return _page(rows, _provider_position, page_size, decode_token(page_token, int, str))

    def model_page(self, page_size: int, page_token: str) -> tuple[list[Model], str]:
        """Returns models by id, and the token of the next page."""
        return _page(self._models, _model_position, page_size, decode_token(page_token, str))

    def price_page(
        self, page_size: int, page_token: str, model: str, at_time_ns: int | None
    ) -> tuple[list[Price], str]:
        """Returns prices by model, then effective time, and the token of the next page.

        Args:
            page_size, page_token: as in every list.
            model: only of this one, unless empty.
            at_time_ns: only those in effect then, in nanoseconds since 1970.
        """
        rows = [price for price in self._prices if not model or price.model == model]
        if at_time_ns is not None:
            rows = _in_effect(rows, at_time_ns)
        return _page(rows, _price_position, page_size, decode_token(page_token, str, int, str))

    def matches(self, model: str, dialect: int) -> list[MatchedProvider]:
        """Returns the enabled providers that serve `model`, by level, then rule, then id.

        Args:
            model: the name that a client would send.
            dialect: only providers that speak it, unless 0.
        """
        found = [
            (provider, match)
            for provider, rules in self._enabled_rules
            if (not dialect or dialect in provider.dialects) and (match := rules.match(model))
        ]
        found.sort(key=lambda pair: rank(*pair))
        return [
            MatchedProvider(provider=provider, upstream_model=match.upstream_model, rule=match.rule)
            for provider, match in found
        ]

    @cached_property
    def _providers_by_id(self) -> dict[str, Provider]:
        return {provider.provider_id: provider for provider in self._providers}

    @cached_property
    def _models_by_id(self) -> dict[str, Model]:
        return {model.model_id: model for model in self._models}

    @cached_property
    def _prices_by_id(self) -> dict[str, Price]:
        return {price.price_id: price for price in self._prices}

    @cached_property
    def _enabled_rules(self) -> list[tuple[Provider, ModelRules]]:
        return [(provider, ModelRules(provider)) for provider in self._providers if not provider.is_disabled]


def _get(rows: dict[str, Resource], kind: str, key: str) -> Resource:
    found = rows.get(key)
    if found is None:
        raise NotFound(f"no such {kind}", resource=kind, id=key)
    return found


def _provider_position(provider: Provider) -> Position:
    return provider.level or DEFAULT_LEVEL, provider.provider_id


def _model_position(model: Model) -> Position:
    return (model.model_id,)


def _price_position(price: Price) -> Position:
    return price.model, price.effective_time.ToNanoseconds(), price.price_id


def _in_effect(prices: Sequence[Price], time_ns: int) -> list[Price]:
    """Of prices in order of time, the newest at a moment for each model and provider."""
    newest = {
        (price.model, price.provider_id): price
        for price in prices
        if price.effective_time.ToNanoseconds() <= time_ns
    }
    return sorted(newest.values(), key=_price_position)


def _page(
    rows: Sequence[Resource],
    position: Callable[[Resource], Position],
    page_size: int,
    after: list[Any] | None,
) -> tuple[list[Resource], str]:
    limit = page_limit(page_size)
    start = 0 if after is None else bisect_right(rows, tuple(after), key=position)
    page: list[Resource] = []
    size = 0
    for row in rows[start : start + limit]:
        size += row.ByteSize()
        if page and size > MAX_PAGE_BYTES:
            break
        page.append(row)
    has_more = start + len(page) < len(rows)
    return page, encode_token(*position(page[-1])) if has_more else ""
