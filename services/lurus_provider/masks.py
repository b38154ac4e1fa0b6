"""Update masks: which fields of a stored resource an update replaces."""

from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from typing import TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from lurus_common.errors import InvalidRequest

Resource = TypeVar("Resource", bound=Message)


def merge(stored: Resource, given: Resource, mask: FieldMask, fixed: Collection[str]) -> Resource:
    """Returns a copy of `stored` with the fields that the mask names as they are in `given`.

    An empty mask names every field that is set, inside nested messages too. A
    named field that is not set is cleared. Lists are replaced as a whole.

    Args:
        stored: what is there.
        given: the new values.
        mask: paths such as `level` or `limits.idle_timeout`.
        fixed: fields that never change.

    Raises:
        InvalidRequest: a path is unknown or fixed.
    """
    merged = deepcopy(stored)
    for path in list(mask.paths) or _set_paths(given, fixed):
        names = path.split(".")
        _require_path(given, names, path, fixed)
        _replace(merged, given, names)
    return merged


def names(mask: FieldMask, given: Message, field: str) -> bool:
    """Whether an update with this mask replaces the top-level `field`."""
    if mask.paths:
        return field in mask.paths
    return any(found.name == field for found, _ in given.ListFields())


def _set_paths(message: Message, fixed: Collection[str] = (), prefix: str = "") -> Iterator[str]:
    for field, value in message.ListFields():
        if field.name in fixed:
            continue
        if _is_nested(message, field.name):
            yield from _set_paths(value, (), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _is_nested(message: Message, name: str) -> bool:
    """Whether a field is a single message of ours, into which a path may go."""
    field = message.DESCRIPTOR.fields_by_name[name]
    kind = field.message_type
    return kind is not None and not field.is_repeated and kind.full_name.startswith("lurus.")


def _require_path(message: Message, path: Sequence[str], text: str, fixed: Collection[str]) -> None:
    if path[0] in fixed:
        raise InvalidRequest(f"update_mask: {text!r} cannot be changed", param="update_mask", path=text)
    for depth, name in enumerate(path):
        is_last = depth == len(path) - 1
        is_known = name in message.DESCRIPTOR.fields_by_name
        if not is_known or not (is_last or _is_nested(message, name)):
            raise InvalidRequest(f"update_mask: {text!r} is not a field", param="update_mask", path=text)
        if not is_last:
            message = getattr(message, name)


def _replace(target: Message, source: Message, path: Sequence[str]) -> None:
    for name in path[:-1]:
        target, source = getattr(target, name), getattr(source, name)
    only = deepcopy(source)
    for field, _ in source.ListFields():
        if field.name != path[-1]:
            only.ClearField(field.name)
    target.ClearField(path[-1])
    target.MergeFrom(only)
