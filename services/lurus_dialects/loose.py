"""Reads JSON that a strict reader refuses, so that odd answers are still counted.

Providers send lone surrogates (a character cut between two events), bytes that
are no UTF-8, NaN, arguments as objects and texts as lists. The data path
decodes strictly, which is fast, and comes here only when that fails.
"""

import json
from functools import cache
from typing import Any, Final, TypeVar, get_args, get_origin

import msgspec

_Struct = TypeVar("_Struct", bound=msgspec.Struct)

# msgspec takes no `Raw | None`: an absent field is empty, a null one is `null`.
ABSENT: Final = msgspec.Raw()
_NULL: Final = msgspec.Raw(b"null")


def decode(text: bytes) -> Any:
    """Returns a JSON value; None if the text is none (or is `null`).

    Bytes that are no UTF-8 become U+FFFD, as in every client that reads events.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        pass
    try:
        return json.loads(str(text, "utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def is_stated(raw: msgspec.Raw) -> bool:
    """True unless a field is absent or null."""
    return bool(raw) and raw != _NULL


def fit(kind: type[_Struct], value: dict[str, Any]) -> _Struct:
    """Returns a struct of what fits it in `value`.

    All fields of `kind` are optional. A field of another type becomes absent; an
    object or list in the place of a text becomes its JSON.
    """
    known = _types(kind)
    return kind(**{name: _fit_value(known[name], value[name]) for name in known.keys() & value.keys()})


@cache
def _types(kind: type[msgspec.Struct]) -> dict[str, Any]:
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    return {name: (get_args(annotation) or (annotation,))[0] for name, annotation in types.items()}


def _fit_value(wanted: Any, value: Any) -> Any:
    if wanted is msgspec.Raw:
        return msgspec.Raw(compact(value))
    if value is None or wanted is type(value):
        return value
    if get_origin(wanted) is list:
        return (
            [fit(get_args(wanted)[0], v) for v in value if isinstance(v, dict)]
            if isinstance(value, list)
            else None
        )
    if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
        return fit(wanted, value) if isinstance(value, dict) else None
    return compact(value).decode() if wanted is str and isinstance(value, dict | list) else None


def compact(value: object) -> bytes:
    """Returns `value` as ASCII JSON without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def text_of(value: dict[str, Any], *names: str) -> str:
    """Returns the texts under `names`, joined; other types count as no text."""
    return "".join(text for name in names if isinstance(text := value.get(name), str))


def objects_in(value: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Returns the objects of the list under `name`; empty if it is no list."""
    items = value.get(name)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
