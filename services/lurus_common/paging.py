"""Page sizes and page tokens, the same in every list."""

import base64
import binascii

import msgspec

from lurus_common.errors import InvalidRequest

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000


def page_limit(page_size: int, default: int = DEFAULT_PAGE_SIZE, maximum: int = MAX_PAGE_SIZE) -> int:
    """Returns how many rows a page holds: 0 means the default, too many means the maximum.

    Raises:
        InvalidRequest: if `page_size` is below 0.
    """
    if page_size < 0:
        raise InvalidRequest("page_size must not be below 0", param="page_size")
    return min(page_size or default, maximum)


def encode_token(*position: str | int) -> str:
    """Returns the opaque token of a position: the sort key of the last row shown."""
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode().rstrip("=")


def decode_token(token: str, *types: type) -> list[object] | None:
    """Returns the position of a token, or None for the first page.

    Raises:
        InvalidRequest: if it is not one of ours, or not of this list.
    """
    if not token:
        return None
    try:
        padded = token + "=" * (-len(token) % 4)
        values = msgspec.json.decode(base64.urlsafe_b64decode(padded), type=list[str | int])
    except (msgspec.MsgspecError, binascii.Error, ValueError):
        values = []
    fits = all(isinstance(value, str) or -(2**63) <= value < 2**63 for value in values)
    if not fits or [type(value) for value in values] != list(types):
        raise InvalidRequest("page_token is not one that this list returned", param="page_token")
    return list(values)
