"""Ids and names of tools where the dialects' limits differ (wire-contract T8)."""

import base64
import hashlib
import re
from typing import Final

from lurus_dialects import loose
from lurus_dialects.surrogates import joined

MAX_NAME_CHARACTERS: Final = 64
NAMESPACE_SEPARATOR: Final = "__"
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_-]")


def call_id(given: str) -> str:
    """Returns an id of a call that every dialect takes; the same one for a call and its result."""
    if _PLAIN_ID.match(given):
        return given
    digest = hashlib.sha256(given.encode("utf-8", "surrogatepass")).digest()
    return "call_" + base64.b32encode(digest).decode().lower()[:26]


def flat_name(name: str, namespace: str = "") -> str:
    """Returns a name that every dialect takes; if it is another one, answers must be mapped back."""
    full = f"{namespace}{NAMESPACE_SEPARATOR}{name}" if namespace else name
    if _PLAIN_NAME.match(full):
        return full
    digest = hashlib.sha256(full.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{_FORBIDDEN.sub('_', full)[:55]}_{digest}"


def unwrapped(arguments: str) -> str:
    """Returns the text for a custom tool out of the arguments of the function that stands for it (T11)."""
    value = loose.decode(arguments.encode())
    text = value.get("input") if isinstance(value, dict) else None
    return joined(text) if isinstance(text, str) else arguments
