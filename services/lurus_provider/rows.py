"""Messages as rows and back. No row holds a secret that is not sealed."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from lurus.provider.v1.provider_pb2 import Credential, Model, Price, Provider
from lurus_common.money import require_amount

RATES = (
    "input_nano_usd",
    "cache_read_nano_usd",
    "cache_write_5m_nano_usd",
    "cache_write_30m_nano_usd",
    "cache_write_1h_nano_usd",
    "cache_write_12h_nano_usd",
    "output_nano_usd",
)
PRICE_COLUMNS = ("price_id", "model", "provider_id", "effective_time", *RATES, "source", "surcharges")

Row = Mapping[str, Any]
Resource = TypeVar("Resource", Provider, Model)


def content_of(resource: Provider | Model) -> bytes:
    """Returns the part of a resource that is not in columns of its own."""
    content: Message = deepcopy(resource)
    for name in ("credentials", "create_time", "update_time"):
        if name in content.DESCRIPTOR.fields_by_name:
            content.ClearField(name)
    return content.SerializeToString(deterministic=True)


def credential_rows(provider: Provider) -> list[tuple[str, str, int, bytes, str, bool]]:
    """Returns the credentials in the order of the columns of `provider.credential`."""
    return [
        (
            provider.provider_id,
            credential.credential_id,
            position,
            credential.sealed_secret,
            credential.last_four,
            credential.is_disabled,
        )
        for position, credential in enumerate(provider.credentials)
    ]


def providers_of(rows: Iterable[Row], credentials: Iterable[Row]) -> list[Provider]:
    """Returns providers with their sealed credentials."""
    by_provider: defaultdict[str, list[Credential]] = defaultdict(list)
    for row in credentials:
        by_provider[row["provider_id"]].append(
            Credential(
                credential_id=row["credential_id"],
                sealed_secret=row["sealed_secret"],
                last_four=row["last_four"],
                is_disabled=row["is_disabled"],
            )
        )
    providers = []
    for row in rows:
        provider = _with_times(Provider.FromString(row["content"]), row)
        provider.credentials.extend(by_provider[provider.provider_id])
        providers.append(provider)
    return providers


def model_of(row: Row) -> Model:
    """Returns a model."""
    return _with_times(Model.FromString(row["content"]), row)


def price_of(row: Row) -> Price:
    """Returns a price."""
    price = Price.FromString(row["surcharges"])
    for name in (*RATES, "price_id", "model", "provider_id", "source"):
        setattr(price, name, row[name])
    price.effective_time.CopyFrom(_timestamp(row["effective_time"]))
    price.create_time.CopyFrom(_timestamp(row["create_time"]))
    return price


def price_values(price: Price) -> Sequence[object]:
    """Returns a price in the order of `PRICE_COLUMNS`; no effective time is None."""
    time = price.effective_time.ToDatetime(tzinfo=UTC) if price.HasField("effective_time") else None
    amounts = [require_amount(getattr(price, name), name) for name in RATES]
    surcharges = Price(tiers=price.tiers, unit_rates=price.unit_rates).SerializeToString(deterministic=True)
    return [price.price_id, price.model, price.provider_id, time, *amounts, price.source, surcharges]


def _with_times(resource: Resource, row: Row) -> Resource:
    resource.create_time.CopyFrom(_timestamp(row["create_time"]))
    resource.update_time.CopyFrom(_timestamp(row["update_time"]))
    return resource


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def is_same(stored: Message, given: Message, ignored: Iterable[str]) -> bool:
    """Whether two resources agree, but for the fields ignored."""
    left, right = deepcopy(stored), deepcopy(given)
    for name in ignored:
        left.ClearField(name)
        right.ClearField(name)
    return left == right
