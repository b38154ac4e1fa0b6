"""Checks JSON against the types of the vendors' own SDKs: an unknown or missing field is a problem.

The SDKs describe a request as a `TypedDict`; `problems_of` walks it strictly.
"""

from collections.abc import Iterable as AbcIterable
from collections.abc import Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

from typing_extensions import get_type_hints, is_typeddict

# Which fields the vendors' servers do without although their types say required.
OPTIONAL = {
    ("ResponseOutputMessageParam", "id"),
    ("ResponseOutputMessageParam", "status"),
    ("ResponseOutputTextParam", "annotations"),
    ("ResponseInputImageParam", "detail"),
    ("FunctionToolParam", "strict"),
}
MAX_PROBLEMS = 5
# Fields that tell the members of a union apart.
_TAGS = ("type", "role")
_UNIONS = (Union, UnionType)
_SCALARS: dict[Any, tuple[type, ...]] = {
    str: (str,),
    bool: (bool,),
    NoneType: (NoneType,),
    None: (NoneType,),
    int: (int,),
    float: (int, float),
}


def problems_of(value: Any, expected: Any, path: str = "", more: AbcIterable[str] = ()) -> list[str]:
    """Returns what is wrong with a value, empty if nothing is.

    Args:
        value: parsed JSON.
        expected: a type of an SDK.
        path: where the value stands.
        more: fields that are allowed at the top beside those of the type.
    """
    if is_typeddict(expected) and isinstance(value, dict):
        value = {name: field for name, field in value.items() if name not in set(more)}
    return _problems(value, expected, path)[:MAX_PROBLEMS]


def _problems(value: Any, expected: Any, path: str) -> list[str]:
    expected = _bare(expected)
    origin = get_origin(expected)
    if expected in (Any, object):
        return []
    if origin in _UNIONS:
        return _of_union(value, get_args(expected), path)
    if origin is Literal:
        return [] if value in get_args(expected) else [f"{path}: {value!r} is none of {get_args(expected)}"]
    if is_typeddict(expected):
        return _of_dict(value, expected, path)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return [] if isinstance(value, dict) else [f"{path}: no object"]
    if _is_list(expected, origin):
        return _of_list(value, get_args(expected)[0], path)
    return _of_scalar(value, expected, path)


def _bare(expected: Any) -> Any:
    while get_origin(expected) in (Required, NotRequired, Annotated):
        expected = get_args(expected)[0]
    return expected


def _is_list(expected: Any, origin: Any) -> bool:
    if origin is None or not get_args(expected):
        return False
    name = getattr(origin, "__name__", "")
    return name == "SequenceNotStr" or (
        isinstance(origin, type) and issubclass(origin, (list, AbcIterable, Sequence))
    )


def _of_scalar(value: Any, expected: Any, path: str) -> list[str]:
    allowed = _SCALARS.get(expected)
    if allowed is None:
        return [f"{path}: {type(value).__name__} where {getattr(expected, '__name__', expected)} stands"]
    is_right = isinstance(value, allowed) and (expected is bool or not isinstance(value, bool))
    return [] if is_right else [f"{path}: {value!r} is no {expected}"]


def _of_list(value: Any, item: Any, path: str) -> list[str]:
    if not isinstance(value, list):
        return [f"{path}: no list"]
    return [problem for at, one in enumerate(value) for problem in _problems(one, item, f"{path}[{at}]")]


def _of_union(value: Any, branches: tuple[Any, ...], path: str) -> list[str]:
    """The problems of the branch that the value is meant for, or of the one that fits best."""
    tried: list[tuple[bool, list[str]]] = []
    for branch in branches:
        found = _problems(value, branch, path)
        if not found:
            return []
        tried.append((_is_meant(value, branch), found))
    meant = [found for is_meant, found in tried if is_meant] or [found for _, found in tried]
    return min(meant, key=len)


def _is_meant(value: Any, branch: Any) -> bool:
    branch = _bare(branch)
    if isinstance(value, list):
        return _is_list(branch, get_origin(branch))
    if not isinstance(value, dict) or not is_typeddict(branch):
        return get_origin(branch) in _UNIONS and isinstance(value, dict | list)
    fields = _fields(branch)[0]
    tags = [name for name in _TAGS if name in fields and get_origin(_bare(fields[name])) is Literal]
    return bool(tags) and all(value.get(name) in get_args(_bare(fields[name])) for name in tags)


def _of_dict(value: Any, expected: Any, path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: no object"]
    fields, required, is_open = _fields(expected)
    name = expected.__name__
    found = [f"{path}.{key}: missing in {name}" for key in sorted(required - value.keys())]
    for key, field in value.items():
        if key in fields:
            found += _problems(field, fields[key], f"{path}.{key}".lstrip("."))
        elif not is_open:
            found.append(f"{path}.{key}: no field of {name}".lstrip("."))
    return found


@cache
def _fields(expected: Any) -> tuple[dict[str, Any], frozenset[str], bool]:
    """Returns a TypedDict's fields, the names of the required ones, and whether it allows more."""
    hints = get_type_hints(expected, include_extras=True)
    required = _declared_required(expected, hints)
    required -= {name for owner, name in OPTIONAL if owner == expected.__name__}
    config = getattr(expected, "__pydantic_config__", None) or {}
    return hints, frozenset(required), config.get("extra") == "allow"


def _declared_required(expected: Any, hints: dict[str, Any]) -> set[str]:
    bases = [base for base in getattr(expected, "__orig_bases__", ()) if is_typeddict(base)]
    inherited = {name for base in bases for name in _fields(base)[0]}
    found = {
        name for base in bases for name in _declared_required(base, get_type_hints(base, include_extras=True))
    }
    for name, hint in hints.items():
        if name not in inherited:
            is_required = get_origin(hint) is Required
            if is_required or (expected.__total__ and get_origin(hint) is not NotRequired):
                found.add(name)
    return found
