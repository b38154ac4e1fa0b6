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
class InsertWithData:
    """An INSERT followed by its data, in pieces: `INSERT INTO t (a)`, SETTINGS clause, format, data."""

    target: bytes
    settings: bytes
    format: str
    data_start: int


@dataclass(frozen=True, slots=True)
class Statement:
    """What the words of a statement say, outside of parentheses."""

    keyword: str = ""
    format: str | None = None
    is_temporary: bool = False
    has_totals: bool = False
    is_several: bool = False
    insert: InsertWithData | None = None

    @property
    def answers(self) -> bool:
        """Whether it returns rows."""
        return self.keyword in _ANSWERING

    @property
    def streams(self) -> bool:
        """Whether its rows may be sent block by block; totals would get lost."""
        return self.keyword in _SELECTING and not self.has_totals

    @property
    def changes_session(self) -> bool:
        """Whether it leaves something behind in the session that runs it."""
        return self.keyword in _STICKY or self.is_temporary


def read_statement(text: bytes) -> Statement:
    """Reads a statement, or the beginning of one that is followed by data.

    A word FORMAT counts if it and the name after it are the last words, but
    for SETTINGS; of an INSERT the first one counts, since data follows.
    """
    words = _top_level_words(text)
    keyword = next((word.upper() for word, _, _ in words if word), "")
    if keyword == "INSERT":
        return Statement(keyword, insert=_read_insert(text, words))
    return _read_other(keyword, text, words)


def _read_insert(text: bytes, words: Iterator[tuple[str, int, int]]) -> InsertWithData | None:
    """Returns None for `INSERT … SELECT` and for VALUES, which the engine reads itself."""
    previous, format_at, settings_at = "", 0, None
    for word, start, end in words:
        if previous == "FORMAT" and word:
            settings_at = format_at if settings_at is None else settings_at
            target, settings = text[:settings_at], text[settings_at:format_at]
            return InsertWithData(target, settings, word, _data_start(text, end))
        previous = word.upper()
        if previous in ("VALUES", "SELECT", "WITH"):
            return None
        if previous == "FORMAT":
            format_at = start
        elif previous == "SETTINGS":
            settings_at = start
    return None


def _read_other(keyword: str, text: bytes, words: Iterator[tuple[str, int, int]]) -> Statement:
    format_name, previous, seen = None, keyword, {keyword}
    is_settings = is_several = False
    for word, start, end in words:
        is_several = is_several or previous == ";"
        if previous == "FORMAT" and word:
            format_name = word
        elif word.upper() == "SETTINGS" and format_name:
            is_settings = True
        elif not is_settings and text[start:end] != b";":
            format_name = None
        previous = word.upper() or text[start:end].decode(errors="replace")
        seen.add(previous)
    is_temporary = keyword == "CREATE" and "TEMPORARY" in seen
    return Statement(keyword, format_name, is_temporary, "TOTALS" in seen, is_several)


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
