"""Joins characters that a provider cut in two between its events.

JSON writes a character beyond the first 65,536 as two escapes, and some
providers send each in its own event. Neither UTF-8 nor protobuf can carry one
without the other.
"""

from typing import Final

_REPLACEMENT: Final = "\ufffd"


class Joiner:
    """Holds half a character until the other half comes."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Returns the text with what was held; a half at its end is held."""
        if not self._held and (text.isascii() or _is_whole(text)):
            return text
        text = self._held + text
        self._held = ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            self._held, text = text[-1], text[:-1]
        return joined(text)

    def finish(self) -> str:
        """Returns a replacement for the half that never found its partner; empty if none is held."""
        held, self._held = self._held, ""
        return _REPLACEMENT if held else ""


def joined(text: str) -> str:
    """Returns `text` with its pairs of halves as characters and its lone halves replaced."""
    if _is_whole(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
