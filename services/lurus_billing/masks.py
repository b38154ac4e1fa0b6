"""Field masks of updates: which fields a caller may change, and which it asks to change."""

from collections.abc import Collection

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from lurus_common.errors import InvalidRequest


def changed_fields(resource: Message, mask: FieldMask, changeable: Collection[str]) -> list[str]:
    """Returns the names of the fields to change, in the order of `changeable`.

    Without a mask these are the changeable fields that are set in `resource`.

    Raises:
        InvalidRequest: if the mask names a field that cannot be changed.
    """
    for path in mask.paths:
        if path not in changeable:
            known = ", ".join(changeable)
            raise InvalidRequest(f"update_mask may name: {known}", param="update_mask", path=path)
    named = set(mask.paths) or {field.name for field, _ in resource.ListFields()}
    return [name for name in changeable if name in named]
