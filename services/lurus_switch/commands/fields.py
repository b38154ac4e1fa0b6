"""Resources on the command line: the options of a dataclass fill a message and its update mask.

The dataclass's fields have the names of the message's; `limits__idle_timeout`
stands for `limits.idle_timeout`.
"""

import dataclasses
import inspect
from collections.abc import Callable
from datetime import datetime
from typing import Any, get_type_hints

import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from lurus_switch.output import timestamp


def flattened(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command in which each field of a parameter that is a dataclass is an option of its own."""
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for name, parameter in signature.parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            groups[name] = hints[name]
            parameters += _parameters_of(hints[name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

    def call(**values: Any) -> None:
        for name, kind in groups.items():
            own = {field.name: values.pop(field.name) for field in dataclasses.fields(kind)}
            values[name] = kind(**own)
        command(**values)

    call.__name__, call.__doc__, call.__module__ = command.__name__, command.__doc__, command.__module__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameters_of(kind: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(kind)
    ]


def fill(message: Message, given: Any) -> list[str]:
    """Sets the fields of `message` that options state, and returns their paths, for an update mask.

    A list with one empty value empties the list.
    """
    paths = []
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if value is not None and value != []:
            path = field.name.replace("__", ".")
            _set(message, path, value)
            paths.append(path)
    return paths


def _set(message: Any, path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        message = getattr(message, parent)
        message.SetInParent()
    if isinstance(value, list):
        getattr(message, name).extend(item for item in value if item != "")
    elif isinstance(value, datetime):
        getattr(message, name).CopyFrom(timestamp(value))
    elif isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
    else:
        setattr(message, name, value)


def masked(request: Any, paths: list[str]) -> Any:
    """Returns an update request with its mask.

    Raises:
        typer.BadParameter: if nothing would change.
    """
    if not paths:
        raise typer.BadParameter("say what to change; see --help")
    request.update_mask.paths.extend(paths)
    return request


def seconds(text: str) -> Duration:
    """Returns a number of seconds, to the millisecond, as a message."""
    try:
        milliseconds = round(float(text) * 1000)
    except (ValueError, OverflowError):
        milliseconds = 0
    if not 0 < milliseconds <= 86_400_000:
        raise ValueError(f"{text!r} is not a number of seconds between 0.001 and 86400")
    duration = Duration()
    duration.FromMilliseconds(milliseconds)
    return duration
