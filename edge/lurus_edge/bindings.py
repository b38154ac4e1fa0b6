"""The REST routes that the contracts declare with `google.api.http`, and how a request fills a message."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

from google.api.annotations_pb2 import http as http_option
from google.api.http_pb2 import HttpRule
from google.protobuf import json_format
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from lurus_common.errors import InvalidRequest
from lurus_edge.expectations import expectation

MAX_JSON_DEPTH = 64
# Messages that JSON writes as one value, so a query parameter can hold them.
SINGLE_VALUES = frozenset(
    {"google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.FieldMask"}
)

_VARIABLE = re.compile(r"\{([a-z0-9_.]+)(=\*\*)?\}")
_FAILED_FIELD = re.compile(r"Failed to parse (\S+) field")
_UNKNOWN_FIELD = re.compile(r'has no field named "([^"]*)"')


@dataclass(frozen=True, slots=True)
class Binding:
    """One REST route of one method.

    Attributes:
        template: the path with its variables: `/api/v1/providers/{provider_id}`.
        variables: the fields that the path fills.
        body: the field that the body fills; `*` for the whole request, empty for none.
        response_body: the field that is answered; empty for the whole response.
        suffix: tells the routes of one method apart; empty for the first.
    """

    http_method: str
    template: str
    pattern: re.Pattern[str]
    variables: tuple[str, ...]
    body: str
    response_body: str
    method: MethodDescriptor
    suffix: str

    @property
    def area(self) -> str:
        """The service that serves it: `provider` for `lurus.provider.v1`."""
        return str(self.method.containing_service.file.package).split(".")[1]

    @property
    def rpc_path(self) -> str:
        """The method as gRPC names it."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"


def bindings_of(services: Iterable[ServiceDescriptor]) -> list[Binding]:
    """Returns all routes of the services, those with the most literal text first."""
    found = [binding for service in services for binding in _of_service(service)]
    return sorted(found, key=_generality)


def _generality(binding: Binding) -> tuple[int, int]:
    return len(binding.variables), -len(_VARIABLE.sub("", binding.template))


def _of_service(service: ServiceDescriptor) -> Iterator[Binding]:
    for method in service.methods:
        rule = method.GetOptions().Extensions[http_option]
        for position, one in enumerate((rule, *rule.additional_bindings)):
            if kind := one.WhichOneof("pattern"):
                suffix = f"_{position + 1}" if position else ""
                yield _binding(method, one, kind, suffix)


def _binding(method: MethodDescriptor, rule: HttpRule, kind: str, suffix: str) -> Binding:
    template = getattr(rule, kind)
    return Binding(
        http_method=kind.upper(),
        template=template,
        pattern=_pattern(template),
        variables=tuple(match.group(1) for match in _VARIABLE.finditer(template)),
        body=rule.body,
        response_body=rule.response_body,
        method=method,
        suffix=suffix,
    )


def _pattern(template: str) -> re.Pattern[str]:
    pieces: list[str] = []
    end = 0
    for match in _VARIABLE.finditer(template):
        pieces += [re.escape(template[end : match.start()]), "(.+)" if match.group(2) else "([^/]+)"]
        end = match.end()
    return re.compile("".join([*pieces, re.escape(template[end:])]))


def request_of(binding: Binding, values: Sequence[str], query: str, body: bytes) -> Message:
    """Returns the request message of a call.

    Args:
        binding: the route.
        values: what its pattern matched in the raw path.
        query: the query string.
        body: JSON, or nothing.

    Raises:
        InvalidRequest: something does not fit; `param` names it.
    """
    message = GetMessageClass(binding.method.input_type)()
    _fill_body(message, binding.body, body)
    pairs = _query_pairs(query)
    for name, _ in pairs:
        _check_is_free(binding, name)
    pairs += [(name, unquote(value)) for name, value in zip(binding.variables, values, strict=True)]
    _fill_fields(message, pairs, overriding=binding.variables)
    return message


def _query_pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise InvalidRequest("the query is not UTF-8", param="query") from error


def _check_is_free(binding: Binding, name: str) -> None:
    if binding.body == "*" or (binding.body and name.split(".")[0] == binding.body):
        raise InvalidRequest(f"{name} belongs into the body", param=name)


def _fill_fields(message: Message, pairs: Sequence[tuple[str, str]], overriding: Sequence[str]) -> None:
    tree: dict[str, Any] = {}
    descriptor: Any = message.DESCRIPTOR
    for name, value in pairs:
        _plant(tree, descriptor, name, value, overriding)
    try:
        json_format.ParseDict(tree, message)
    except (json_format.ParseError, ValueError) as error:
        raise _misfit(error, descriptor, []) from error


def _plant(
    tree: dict[str, Any], descriptor: Descriptor, name: str, value: str, overriding: Sequence[str]
) -> None:
    """Puts one parameter into the JSON form of the message."""
    *parents, last = name.split(".")
    for parent in parents:
        field = _field(descriptor, parent, name)
        if field.message_type is None or field.is_repeated or _is_map(field):
            raise InvalidRequest(f"{name}: {parent} has no fields", param=name)
        descriptor = field.message_type
        tree = tree.setdefault(field.name, {})
    field = _field(descriptor, last, name)
    if field.message_type is not None and field.message_type.full_name not in SINGLE_VALUES:
        raise InvalidRequest(f"{name} is not a single value; write its fields", param=name)
    if field.is_repeated:
        tree.setdefault(field.name, []).append(_json_value(field, value, name))
    elif field.name in tree and name not in overriding:
        raise InvalidRequest(f"{name} is given twice", param=name)
    else:
        tree[field.name] = _json_value(field, value, name)


def _field(descriptor: Descriptor, name: str, whole_name: str) -> FieldDescriptor:
    field = descriptor.fields_by_name.get(name) or descriptor.fields_by_camelcase_name.get(name)
    if field is None:
        raise InvalidRequest(f"there is no parameter {whole_name}", param=whole_name)
    return field


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _json_value(field: FieldDescriptor, value: str, name: str) -> Any:
    if field.type == FieldDescriptor.TYPE_BOOL:
        if value not in ("true", "false"):
            raise InvalidRequest(f"{name} must be true or false", param=name)
        return value == "true"
    if field.enum_type is not None:
        return _enum_name(field.enum_type, value)
    if field.message_type is not None and field.message_type.name == "FieldMask":
        # JSON wants camel case; the names that we print are the contract's own.
        return re.sub(r"_([a-z0-9])", lambda match: match.group(1).upper(), value)
    return value


def _enum_name(enum: EnumDescriptor, value: str) -> str:
    """Returns the full name also for a short one: `model` for `STATS_GROUP_MODEL`."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    full_name = prefix + value.upper()
    return full_name if full_name in enum.values_by_name else value


def _fill_body(message: Message, field_name: str, body: bytes) -> None:
    if not field_name:
        if body.strip() not in (b"", b"{}"):
            raise InvalidRequest("this call takes no body", param="body")
        return
    target = message if field_name == "*" else getattr(message, field_name)
    if field_name != "*":
        target.SetInParent()
    elif not body.strip():
        return
    if not body.lstrip().startswith(b"{"):
        raise InvalidRequest("the body must be a JSON object", param="body")
    try:
        json_format.Parse(body, target, max_recursion_depth=MAX_JSON_DEPTH)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        target_descriptor: Any = target.DESCRIPTOR
        raise _misfit(error, target_descriptor, ["body"]) from error


def _misfit(error: BaseException, descriptor: Descriptor, whole: Sequence[str]) -> InvalidRequest:
    """Returns what is said of a value that does not fit; `whole` stands for one that nobody can name."""
    text = str(error)
    names: list[str] = _FAILED_FIELD.findall(text)
    unknown = _UNKNOWN_FIELD.findall(text)
    param = ".".join([*names, *unknown] or whole)
    if isinstance(error, RecursionError):
        return InvalidRequest("the body is nested too deeply", param=param)
    if unknown:
        return InvalidRequest(f"there is no field {param}", param=param)
    said = expectation(descriptor, names) or "the body is not valid JSON in UTF-8"
    return InvalidRequest(said, param=param)


def to_json(message: Message, response_body: str) -> bytes:
    """Returns a response as one line of JSON: field names as in the contract, 64-bit integers as strings."""
    source = getattr(message, response_body) if response_body else message
    text = json_format.MessageToJson(
        source,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=None,
        ensure_ascii=False,
    )
    return text.encode()
