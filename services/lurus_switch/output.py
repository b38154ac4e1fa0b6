"""Prints messages: as aligned columns for people, as protobuf JSON for programs."""

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from lurus.usage.v1.usage_pb2 import Tokens

Row = TypeVar("Row")
Column = tuple[str, Callable[[Row], str]]

MAX_CELL_CHARACTERS = 60


def to_json(message: Message, *, indent: int | None = 2) -> str:
    """Returns a message as REST does: field names as in the contract, 64-bit integers as strings."""
    return json_format.MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=indent,
        ensure_ascii=False,
    )


def print_json(message: Message, *, indent: int | None = 2) -> None:
    """Prints a message as JSON; on one line if `indent` is None."""
    print(to_json(message, indent=indent), flush=indent is None)


def clean(text: str) -> str:
    """Returns text of strangers without what a terminal would obey; tabs and line ends become spaces."""
    return "".join(" " if char in "\t\r\n" else char if char.isprintable() else "?" for char in text)


def print_table(columns: Sequence[Column[Row]], rows: Iterable[Row], empty: str) -> None:
    """Prints rows in columns, or `empty` on standard error if there are none."""
    cells = [[_cell(value(row)) for _, value in columns] for row in rows]
    if not cells:
        print(empty, file=sys.stderr)
        return
    header, *lines = _aligned([[header for header, _ in columns], *cells])
    print(f"{_BOLD}{header}{_PLAIN}" if sys.stdout.isatty() else header)
    for line in lines:
        print(line)


_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Returns lines whose cells stand below each other. Never folded: ids are there to be copied."""
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return ["  ".join(cells).rstrip() for cells in padded]


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Prints names and values below each other; leaves out what is empty."""
    shown = [(name, clean(value)) for name, value in fields if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name.ljust(width)}  {value}")


def _cell(text: str) -> str:
    shown = clean(text)
    return shown if len(shown) <= MAX_CELL_CHARACTERS else shown[: MAX_CELL_CHARACTERS - 1] + "…"


def enum_word(descriptor: EnumDescriptor, number: int) -> str:
    """Returns `openai_chat` for DIALECT_OPENAI_CHAT; empty for the unspecified value."""
    if number == 0 or number not in descriptor.values_by_number:
        return str(number or "")
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return descriptor.values_by_number[number].name.removeprefix(prefix).lower()


def enum_number(descriptor: EnumDescriptor, word: str) -> int:
    """Returns the value whose word this is.

    Raises:
        ValueError: names the words there are.
    """
    words = {enum_word(descriptor, value.number): value.number for value in descriptor.values}
    found = words.get(word.strip().lower().replace("-", "_"))
    if not found:
        raise ValueError(f"{word!r} is not one of {', '.join(filter(None, words))}")
    return found


def local_time(message: Any, field: str) -> str:
    """Returns a timestamp of a message in the local zone, to the second; empty if it is unset."""
    if not message.HasField(field):
        return ""
    moment: Timestamp = getattr(message, field)
    return datetime.fromtimestamp(moment.seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def timestamp(moment: datetime) -> Timestamp:
    """Returns a moment as a message."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def milliseconds(duration: Duration) -> int:
    """Returns a duration in whole milliseconds."""
    return duration.seconds * 1000 + duration.nanos // 1_000_000


def short_duration(message: Any, field: str) -> str:
    """Returns a duration of a message as `812 ms` or `12.3 s`; empty if it is unset."""
    if not message.HasField(field):
        return ""
    value = milliseconds(getattr(message, field))
    return f"{value} ms" if value < 10_000 else f"{value / 1000:.1f} s"


def all_input(tokens: Tokens) -> int:
    """Returns the input tokens, whether fresh, read from a cache or written to one."""
    writes = tokens.cache_write_5m + tokens.cache_write_30m + tokens.cache_write_1h + tokens.cache_write_12h
    return tokens.input + tokens.cache_read + writes
