"""Reads just enough of a ClickHouse statement to route it: its kind, its format, where inline data begins."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

DEFAULT_FORMAT = "TabSeparated"

STREAMABLE_FORMATS = frozenset({"Native", "TabSeparated", "TSV", "CSV", "RowBinary", "JSONEachRow"})
"""Formats without header and footer: the engine's blocks, one after the other, are the whole answer."""

_ANSWERING = frozenset(
    {"SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK", "FROM", "VALUES"}
)
_SELECTING = frozenset({"SELECT", "WITH", "FROM"})
_STICKY = frozenset({"USE", "SET"})

_TOKEN = re.compile(
    rb"""
      (?P<space>\s+|--[^\n]*(?:\n|$)|\#[!\ ][^\n]*(?:\n|$)|/\*.*?\*/)
    | (?P<quoted>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`)
    | (?P<word>[A-Za-z_][A-Za-z_0-9]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Statement:
    """What a statement's words say.

    `data_start` is where the data of an INSERT begins, in bytes, or None if it
    has no FORMAT clause; `head` is then the INSERT before FORMAT.
    """

    keyword: str
    format: str | None = None
    is_temporary: bool = False
    head: bytes = b""
    data_start: int | None = None

    @property
    def is_insert(self) -> bool:
        return self.keyword == "INSERT"

    @property
    def answers(self) -> bool:
        """Whether it returns rows."""
        return self.keyword in _ANSWERING

    @property
    def selects(self) -> bool:
        return self.keyword in _SELECTING

    @property
    def changes_session(self) -> bool:
        """Whether it leaves something behind in the session that runs it."""
        return self.keyword in _STICKY or self.is_temporary


def read_statement(text: bytes) -> Statement:
    """Reads a statement, or the beginning of one that is followed by data.

    A word FORMAT counts if it and the name after it are the last words, but
    for SETTINGS; of an INSERT the first one counts, since data follows.
    """
    keyword, format_name, is_temporary = "", None, False
    previous, format_at = "", 0
    for word, start, end in _top_level_words(text):
        if not keyword:
            keyword = word.upper()
        elif previous == "FORMAT" and word:
            if keyword == "INSERT":
                return Statement(keyword, word, False, text[:format_at], _data_start(text, end))
            format_name = word
        elif word.upper() == "SETTINGS" and format_name:
            break
        elif word or text[start:end] != b";":
            format_name = None
        if word.upper() == "FORMAT":
            format_at = start
        if keyword == "INSERT" and word.upper() == "VALUES":
            break
        is_temporary |= previous in ("CREATE", "REPLACE") and word.upper() == "TEMPORARY"
        previous = word.upper()
    return Statement(keyword, format_name, is_temporary)


def _top_level_words(text: bytes) -> Iterator[tuple[str, int, int]]:
    """Yields each word outside of parentheses with its place, and an empty word for other signs."""
    position, depth, has_word = 0, 0, False
    while match := _TOKEN.match(text, position):
        position = match.end()
        depth += {b"(": 1, b")": -1}.get(match[0], 0)
        if match["space"] is not None or (depth and has_word):
            continue
        has_word = has_word or match["word"] is not None
        yield (match["word"] or b"").decode(), match.start(), match.end()


def _data_start(text: bytes, position: int) -> int:
    """Skips blanks after the format's name, up to and including one line break.

    Not more: binary data may itself begin with white space.
    """
    while text[position : position + 1] in (b" ", b"\t", b"\r", b";") and position < len(text):
        position += 1
    return position + 1 if text[position : position + 1] == b"\n" else position
