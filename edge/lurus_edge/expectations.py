"""What a field of a contract takes, in the words of who fills it by HTTP."""

from collections.abc import Sequence

from google.protobuf.descriptor import Descriptor, FieldDescriptor

MAX_SHOWN_VALUES = 20
_KINDS = {
    FieldDescriptor.CPPTYPE_INT32: "an integer of 32 bits",
    FieldDescriptor.CPPTYPE_INT64: "an integer of 64 bits",
    FieldDescriptor.CPPTYPE_UINT32: "an integer of 32 bits, not below 0",
    FieldDescriptor.CPPTYPE_UINT64: "an integer of 64 bits, not below 0",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
}
# Source: the JSON mapping of ProtoJSON.
_MESSAGES = {
    "google.protobuf.Timestamp": "a time such as 2026-01-31T09:00:00Z",
    "google.protobuf.Duration": "seconds such as 1.5s",
    "google.protobuf.FieldMask": "names of fields, separated by commas",
}


def expectation(message: Descriptor, path: Sequence[str]) -> str:
    """Returns `page_size must be an integer of 32 bits`; empty if the path leads to no field.

    Args:
        message: in which the path begins.
        path: names of fields, each inside the one before.
    """
    field: FieldDescriptor | None = None
    for name in path:
        descriptor = field.message_type if field is not None else message
        field = descriptor.fields_by_name.get(name) if descriptor is not None else None
        field = field or (descriptor.fields_by_camelcase_name.get(name) if descriptor is not None else None)
        if field is None:
            return ""
    return f"{'.'.join(path)} must be {_what(field)}" if field is not None else ""


def _what(field: FieldDescriptor) -> str:
    return f"a list, each item {_item(field)}" if field.is_repeated else _item(field)


def _item(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        names = [value.name for value in field.enum_type.values[1:]]
        return "one of " + ", ".join(names[:MAX_SHOWN_VALUES])
    if field.message_type is not None:
        return _MESSAGES.get(field.message_type.full_name, "an object")
    if field.type == FieldDescriptor.TYPE_BYTES:
        return "a text in base64"
    return _KINDS.get(field.cpp_type, "a text of valid Unicode")
