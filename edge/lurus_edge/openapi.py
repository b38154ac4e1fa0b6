"""The OpenAPI document of the REST routes, made from the contracts' descriptors."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from lurus_edge.bindings import SINGLE_VALUES, Binding

VERSION = "v1"
# Query parameters name the fields of messages in messages to this depth.
MAX_PARAMETER_DEPTH = 3
BEARER = "key"
STREAM_KINDS = ("application/x-ndjson", "text/event-stream")

# Source: https://protobuf.dev/programming-guides/json/
_SCALARS: dict[int, dict[str, Any]] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_SINT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_SFIXED32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "format": "int64"},
    FieldDescriptor.TYPE_FIXED32: {"type": "integer", "format": "int64"},
    FieldDescriptor.TYPE_INT64: {"type": "string", "format": "int64"},
    FieldDescriptor.TYPE_SINT64: {"type": "string", "format": "int64"},
    FieldDescriptor.TYPE_SFIXED64: {"type": "string", "format": "int64"},
    FieldDescriptor.TYPE_UINT64: {"type": "string", "format": "uint64"},
    FieldDescriptor.TYPE_FIXED64: {"type": "string", "format": "uint64"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
}
_WELL_KNOWN: dict[str, dict[str, Any]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?\d+(\.\d{1,9})?s$"},
    "google.protobuf.FieldMask": {"type": "string", "description": "Field names, separated by commas."},
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "reason", "message", "metadata"],
            "properties": {
                "code": {"type": "string", "description": "The gRPC code."},
                "reason": {"type": "string", "description": "A value of lurus.errors.v1.ErrorReason."},
                "message": {"type": "string", "description": "For people; not part of the contract."},
                "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        }
    },
}


def document(bindings: Iterable[Binding], summaries: Mapping[str, str]) -> dict[str, Any]:
    """Returns an OpenAPI 3.1 document of the routes; `summaries` are by gRPC path."""
    schemas = _Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for binding in sorted(bindings, key=lambda binding: binding.template):
        operation = _operation(binding, schemas)
        if summary := summaries.get(binding.rpc_path):
            operation["summary"] = summary
        path = binding.template.replace("=**", "")
        paths.setdefault(path, {})[binding.http_method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Lurus Switch", "version": VERSION},
        "security": [{BEARER: []}],
        "paths": paths,
        "components": {
            "securitySchemes": {BEARER: {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR, **schemas.all()},
        },
    }


def _operation(binding: Binding, schemas: "_Schemas") -> dict[str, Any]:
    method = binding.method
    response = _message_at(method.output_type, binding.response_body)
    kinds = STREAM_KINDS if method.server_streaming else ("application/json",)
    answer = {kind: {"schema": schemas.reference(response)} for kind in kinds}
    failure = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, Any] = {
        "operationId": f"{method.containing_service.name}_{method.name}" + binding.suffix,
        "tags": [binding.area],
        "parameters": [*_path_parameters(binding, schemas), *_query_parameters(binding, schemas)],
        "responses": {
            "200": {"description": response.name, "content": answer},
            "default": {"description": "A failure.", "content": failure},
        },
    }
    if binding.body:
        operation["requestBody"] = _request_body(binding, schemas)
    return operation


def _request_body(binding: Binding, schemas: "_Schemas") -> dict[str, Any]:
    descriptor = _message_at(binding.method.input_type, binding.body.removeprefix("*"))
    content = {"application/json": {"schema": schemas.reference(descriptor)}}
    return {"required": binding.body != "*", "content": content}


def _path_parameters(binding: Binding, schemas: "_Schemas") -> Iterator[dict[str, Any]]:
    for name in binding.variables:
        parents, _, last = name.rpartition(".")
        descriptor = _message_at(binding.method.input_type, parents)
        schema = schemas.of_field(descriptor.fields_by_name[last])
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _message_at(descriptor: Descriptor, path: str) -> Descriptor:
    """The message in a field of a message; the message itself if the path is empty."""
    for name in path.split(".") if path else ():
        inner = descriptor.fields_by_name[name].message_type
        assert inner is not None, f"{name} is not a message"
        descriptor = inner
    return descriptor


def _query_parameters(binding: Binding, schemas: "_Schemas") -> Iterator[dict[str, Any]]:
    if binding.body == "*":
        return
    for name, field in _leaves(binding.method.input_type, "", MAX_PARAMETER_DEPTH):
        if name not in binding.variables and not (binding.body and name.split(".")[0] == binding.body):
            yield {"name": name, "in": "query", "schema": schemas.of_field(field)}


def _leaves(descriptor: Descriptor, prefix: str, depth: int) -> Iterator[tuple[str, FieldDescriptor]]:
    """The fields that a query can set, with their dotted names."""
    for field in descriptor.fields:
        message = field.message_type
        if message is None or message.full_name in SINGLE_VALUES:
            yield prefix + field.name, field
        elif depth > 1 and not field.is_repeated:
            yield from _leaves(message, f"{prefix}{field.name}.", depth - 1)


class _Schemas:
    """The schemas of messages, collected as they are referred to."""

    def __init__(self) -> None:
        self._schemas: dict[str, dict[str, Any]] = {}

    def all(self) -> dict[str, dict[str, Any]]:
        """By full name, sorted."""
        return dict(sorted(self._schemas.items()))

    def reference(self, descriptor: Descriptor) -> dict[str, Any]:
        """Returns how others name the schema of a message."""
        if well_known := _WELL_KNOWN.get(descriptor.full_name):
            return well_known
        if descriptor.full_name not in self._schemas:
            schema: dict[str, Any] = {"type": "object"}
            self._schemas[descriptor.full_name] = schema
            schema["properties"] = {field.name: self.of_field(field) for field in descriptor.fields}
        return {"$ref": f"#/components/schemas/{descriptor.full_name}"}

    def of_field(self, field: FieldDescriptor) -> dict[str, Any]:
        """Returns the schema of a field's value."""
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            return {"type": "object", "additionalProperties": self.of_field(message.fields_by_name["value"])}
        one = self._of_value(field)
        return {"type": "array", "items": one} if field.is_repeated else one

    def _of_value(self, field: FieldDescriptor) -> dict[str, Any]:
        if field.message_type is not None:
            return self.reference(field.message_type)
        if field.enum_type is not None:
            return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
        return _SCALARS[field.type]
