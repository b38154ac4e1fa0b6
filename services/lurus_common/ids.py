"""Ids that we make: a prefix and a ULID, ordered by time also within a millisecond."""

import re

from ulid import ULID

_REQUEST_ID = re.compile(r"req_[0-9A-HJKMNP-TV-Z]{26}\Z")


def new_id(prefix: str) -> str:
    """Returns a new id such as `req_01J…`. Unique across processes, ascending within one."""
    return f"{prefix}_{ULID()}"


def is_request_id(text: str) -> bool:
    """Whether `text` has the shape of a request id that we made."""
    return _REQUEST_ID.match(text) is not None
