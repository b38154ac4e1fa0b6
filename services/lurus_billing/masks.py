"""Field masks of updates: which fields a caller may change, and which it asks to change."""

from collections.abc import Collection, Iterator

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from lurus_common.errors import InvalidRequest


def changed_fields(resource: Message, mask: FieldMask, changeable: Collection[str]) -> list[str]:
    """Returns the paths of the fields to change, in the order of `changeable`.

    Without a mask these are the changeable fields that are set in `resource`. The path of a message
    stands for all its fields.

    Raises:
        InvalidRequest: if the mask names a field that cannot be changed.
    """
    parents = {path.rpartition(".")[0] for path in changeable} - {""}
    for path in mask.paths:
        if path not in changeable and path not in parents:
            known = ", ".join(changeable)
            raise InvalidRequest(f"update_mask may name: {known}", param="update_mask", path=path)
    named = set(mask.paths) or set(_set_paths(resource, parents))
    return [path for path in changeable if path in named or path.rpartition(".")[0] in named]


def copy_field(source: Message, target: Message, path: str) -> None:
    """Makes a field, such as `time_zone` or `settlement_policy.timeout`, what it is in another message."""
    *parents, name = path.split(".")
    for parent in parents:
        source, target = getattr(source, parent), getattr(target, parent)
    if target.DESCRIPTOR.fields_by_name[name].is_repeated:
        target.ClearField(name)
        getattr(target, name).extend(getattr(source, name))
    else:
        setattr(target, name, getattr(source, name))


def _set_paths(message: Message, parents: Collection[str]) -> Iterator[str]:
    for field, value in message.ListFields():
        if field.name in parents:
            yield from (f"{field.name}.{inner.name}" for inner, _ in value.ListFields())
        else:
            yield field.name
