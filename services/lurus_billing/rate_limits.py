"""Rate limits as columns of `account` and `key`."""

from collections.abc import Mapping
from typing import Any

from lurus.billing.v1 import billing_pb2 as pb

COLUMNS = tuple(field.name for field in pb.RateLimits.DESCRIPTOR.fields)
PATHS = tuple(f"rate_limits.{name}" for name in COLUMNS)


def rate_limit_values(limits: pb.RateLimits) -> tuple[int, ...]:
    """Returns the values of the columns, in their order."""
    return tuple(getattr(limits, name) for name in COLUMNS)


def rate_limits_of(row: Mapping[str, Any], prefix: str = "") -> pb.RateLimits | None:
    """Returns the limits in a row whose columns have a prefix; None if there are none."""
    values = {name: row[prefix + name] for name in COLUMNS}
    return pb.RateLimits(**values) if any(values.values()) else None
