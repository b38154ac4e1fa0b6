"""The ClickHouse engine of chDB in this process, with several sessions so that queries run at the same time.

Never fork after the engine has started: the child deadlocks.
"""

import contextlib
import queue
import re
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import chdb

from lurus_switch.embedded.clickhouse_sql import DEFAULT_FORMAT, InsertWithData

SESSION_COUNT = 8
SESSION_WAIT_SECONDS = 60.0

SERVER_SETTINGS = {
    "max_server_memory_usage": 1024**3,
    "mark_cache_size": 16 * 1024**2,
    "primary_index_cache_size": 16 * 1024**2,
    "index_mark_cache_size": 4 * 1024**2,
    "query_condition_cache_size": 4 * 1024**2,
    "compiled_expression_cache_size": 4 * 1024**2,
    "vector_similarity_index_cache_size": 1024**2,
    "text_index_tokens_cache_size": 1024**2,
    "text_index_header_cache_size": 1024**2,
    "text_index_postings_cache_size": 1024**2,
}
"""For one machine; by default the caches may grow to gigabytes.

The sizes of thread pools cannot be set: importing chdb starts an engine in
memory, which fixes them. Up to 150 threads idle after parts were merged; they
cost next to nothing.
"""

QUERY_SETTINGS = {
    "max_threads": "4",
    "max_insert_threads": "1",
    "max_memory_usage": str(512 * 1024**2),
    "compile_expressions": "0",
    "date_time_input_format": "best_effort",
}
"""What every session begins with; a request's own settings win."""

READONLY, TOO_MANY_QUERIES, BAD_ARGUMENTS, UNKNOWN_EXCEPTION = 164, 202, 36, 1002

_CODE = re.compile(r"Code: (\d+)\.")
_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")


class QueryFailed(Exception):
    """An error as ClickHouse reports it; `code` is its number."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @classmethod
    def from_engine(cls, error: Exception) -> "QueryFailed":
        text = str(error)
        match = _CODE.search(text)
        if match is None:
            return cls(
                UNKNOWN_EXCEPTION, f"Code: {UNKNOWN_EXCEPTION}. DB::Exception: {text} (UNKNOWN_EXCEPTION)"
            )
        return cls(int(match[1]), text[match.start() :].strip())


def failure(code: int, name: str, text: str) -> QueryFailed:
    """Returns an error of ours in ClickHouse's words."""
    return QueryFailed(code, f"Code: {code}. DB::Exception: {text}. ({name})")


@dataclass(slots=True)
class Summary:
    """What a query has read and written, as far as it is known."""

    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    elapsed_ns: int = 0

    def add(self, result: Any) -> None:
        self.read_rows += result.storage_rows_read()
        self.read_bytes += result.storage_bytes_read()
        self.written_rows += result.rows_written()
        self.written_bytes += result.bytes_written()
        self.result_rows += result.rows_read()
        self.elapsed_ns = int(result.elapsed() * 1e9)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Session:
    """A connection to the engine, used by one thread at a time."""

    def __init__(self, connection: Any, uploads: Path) -> None:
        self._connection = connection
        self._uploads = uploads
        self._settings: dict[str, str] = {}
        self._database = "default"
        self.is_spent = False
        """Set by who leaves something behind in it; it is then replaced."""

    def adapt(self, database: str, settings: Mapping[str, str]) -> None:
        """Brings the session's settings and database to what a request asks for.

        They stay until the next request, which mostly asks for the same.
        """
        wanted = {**QUERY_SETTINGS, **settings}
        for name in settings:
            if not _NAME.fullmatch(name):
                raise failure(BAD_ARGUMENTS, "BAD_ARGUMENTS", f"Invalid setting name {name!r}")
        changes = [f"{name} = {_quoted(v)}" for name, v in wanted.items() if self._settings.get(name) != v]
        changes += [f"{name} = DEFAULT" for name in self._settings if name not in wanted]
        if changes:
            self._run(f"SET {', '.join(changes)}")
            self._settings = wanted
        if database != self._database:
            self._run(f"USE `{database.replace(chr(92), chr(92) * 2).replace('`', chr(92) + '`')}`")
            self._database = database

    def query(self, sql: str, output_format: str, parameters: Mapping[str, str], summary: Summary) -> bytes:
        """Runs a statement and returns its whole answer."""
        try:
            result = self._connection.query(sql, output_format, params=dict(parameters))
        except Exception as error:
            raise QueryFailed.from_engine(error) from None
        summary.add(result)
        return bytes(result.bytes() or b"")

    def stream(
        self, sql: str, output_format: str, parameters: Mapping[str, str], summary: Summary
    ) -> Generator[bytes, None, None]:
        """Runs a SELECT and yields its answer block by block. Closing the iterator cancels the query."""
        try:
            with self._connection.send_query(sql, output_format, params=dict(parameters)) as blocks:
                for block in blocks:
                    summary.add(block)
                    yield bytes(block.bytes())
        except (RuntimeError, chdb.ChdbError) as error:
            raise QueryFailed.from_engine(error) from None

    def insert(self, insert: InsertWithData, chunks: Iterable[bytes], summary: Summary) -> None:
        """Runs an INSERT whose data comes in pieces; if they end with an error, nothing is inserted.

        The data goes through a file: the engine's streaming insert (26.9) hides
        violated constraints and failed views and loses the rows, and data
        within the statement ends at the first empty line.
        """
        with tempfile.NamedTemporaryFile(dir=self._uploads) as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            target, settings = (
                insert.target.decode(errors="replace"),
                insert.settings.decode(errors="replace"),
            )
            source = f"FROM INFILE {_quoted(file.name)} COMPRESSION 'none'"
            self.query(f"{target} {source} {settings} FORMAT {insert.format}", DEFAULT_FORMAT, {}, summary)

    def close(self) -> None:
        self._connection.close()

    def _run(self, sql: str) -> None:
        self.query(sql, DEFAULT_FORMAT, {}, Summary())


class Engine:
    """The engine on one directory, of which no second one can be open at the same time."""

    def __init__(self, directory: Path, database: str) -> None:
        self._path = f"{directory / 'data'}?{urlencode(SERVER_SETTINGS)}"
        self._uploads = directory / "uploads"
        shutil.rmtree(self._uploads, ignore_errors=True)
        self._uploads.mkdir(mode=0o700)
        self._idle: queue.LifoQueue[Session] = queue.LifoQueue()
        first = self._open()
        first.query(f"CREATE DATABASE IF NOT EXISTS `{database}`", DEFAULT_FORMAT, {}, Summary())
        answer = first.query("SELECT version(), timezone()", DEFAULT_FORMAT, {}, Summary())
        self.version, self.timezone = answer.decode().rstrip("\n").split("\t")
        self._idle.put(first)
        for _ in range(SESSION_COUNT - 1):
            self._idle.put(self._open())

    @contextlib.contextmanager
    def session(self, database: str, settings: Mapping[str, str]) -> Iterator[Session]:
        """Lends a session with these settings; one that failed or is spent is replaced by a new one."""
        try:
            session = self._idle.get(timeout=SESSION_WAIT_SECONDS)
        except queue.Empty:
            text = f"Too many simultaneous queries, maximum {SESSION_COUNT}"
            raise failure(TOO_MANY_QUERIES, "TOO_MANY_SIMULTANEOUS_QUERIES", text) from None
        try:
            session.adapt(database, settings)
            yield session
        except BaseException:
            session.is_spent = True
            raise
        finally:
            if session.is_spent:
                session.close()
                session = self._open()
            self._idle.put(session)

    def close(self, seconds: float) -> bool:
        """Closes all sessions; returns False, leaving the rest open, if one is still busy after `seconds`."""
        for _ in range(SESSION_COUNT):
            try:
                self._idle.get(timeout=seconds).close()
            except queue.Empty:
                return False
        return True

    def _open(self) -> Session:
        return Session(chdb.connect(self._path), self._uploads)
