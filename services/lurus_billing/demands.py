"""Demands as a column of `account` and `key`."""

from lurus.billing.v1 import billing_pb2 as pb

PATHS = tuple(f"demands.{field.name}" for field in pb.Demands.DESCRIPTOR.fields)


def demands_value(demands: pb.Demands) -> bytes:
    """Returns the value of the column; those that demand the same have the same."""
    ordered = pb.Demands()
    ordered.CopyFrom(demands)
    ordered.required_tags.sort()
    return ordered.SerializeToString(deterministic=True)


def demands_of(value: bytes) -> pb.Demands | None:
    """Returns the demands in a column; None if there are none."""
    return pb.Demands.FromString(value) if value else None


def merged(key: bytes, account: bytes) -> pb.Demands | None:
    """Returns what counts for a key, from its own column and its account's; None if nothing does."""
    if not (key and account):
        return demands_of(key or account)
    own, default = pb.Demands.FromString(key), pb.Demands.FromString(account)
    return pb.Demands(
        required_tags=own.required_tags or default.required_tags,
        max_input_nano_usd=own.max_input_nano_usd or default.max_input_nano_usd,
        max_output_nano_usd=own.max_output_nano_usd or default.max_output_nano_usd,
    )
