"""The shipped catalogue of models and prices, from `catalogue.json`."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from lurus.provider.v1.provider_pb2 import Model, Price, PriceTier
from lurus_provider.price_import import CATALOGUE_PREFIX

CATALOGUE = Path(__file__).with_name("catalogue.json")


class Rates(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Nano-USD per million tokens; all of them are stated, none is implied."""

    input_nano_usd: int
    cache_read_nano_usd: int
    cache_write_5m_nano_usd: int
    cache_write_30m_nano_usd: int
    cache_write_1h_nano_usd: int
    cache_write_12h_nano_usd: int
    output_nano_usd: int


class Tier(Rates, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Rates of requests with more input than this, fresh, cached and written together."""

    above_input_tokens: int


class Entry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One model under each of its names; without a price it is unpriced."""

    names: list[str]
    display_name: str
    owned_by: str
    max_input_tokens: int = 0
    max_output_tokens: int = 0
    release_date: date | None = None
    note: str = ""
    price: Rates | None = None
    tiers: list[Tier] = []


class Catalogue(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The file."""

    date: date
    source: str
    note: list[str]
    entries: list[Entry]


def read_catalogue(content: bytes) -> tuple[list[Model], list[Price]]:
    """Returns the models and prices of a catalogue file.

    A price's id holds the file's date, so a later file with another rate adds
    a price and changes none.
    """
    catalogue = msgspec.json.decode(content, type=Catalogue)
    models = [_model(entry, name) for entry in catalogue.entries for name in entry.names]
    prices = [
        _price(catalogue, entry, entry.price, name)
        for entry in catalogue.entries
        for name in entry.names
        if entry.price
    ]
    return models, prices


def _model(entry: Entry, name: str) -> Model:
    model = Model(
        model_id=name,
        display_name=entry.display_name,
        owned_by=entry.owned_by,
        max_input_tokens=entry.max_input_tokens,
        max_output_tokens=entry.max_output_tokens,
    )
    if entry.release_date:
        model.release_time.CopyFrom(_midnight(entry.release_date))
    return model


def _price(catalogue: Catalogue, entry: Entry, rates: Rates, name: str) -> Price:
    source: Sequence[str] = (f"{catalogue.source}, {catalogue.date}, to be verified.", entry.note)
    return Price(
        price_id=f"{CATALOGUE_PREFIX}{catalogue.date:%Y%m%d}-{name}",
        model=name,
        effective_time=_midnight(catalogue.date),
        source=" ".join(part for part in source if part),
        tiers=[PriceTier(**msgspec.structs.asdict(tier)) for tier in entry.tiers],
        **msgspec.structs.asdict(rates),
    )


def _midnight(day: date) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime(day.year, day.month, day.day, tzinfo=UTC))
    return stamp
