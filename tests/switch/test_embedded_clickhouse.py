"""ClickHouse's HTTP interface over chDB, as clickhouse-connect and plain HTTP clients see it."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import clickhouse_connect
import lz4.frame  # type: ignore[import-untyped]
import pytest
from backports import zstd
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError

from lurus_switch.embedded import EmbeddedBackends
from lurus_switch.embedded.clickhouse_sql import read_statement

pytestmark = pytest.mark.anyio

COLUMNS = ["id", "model", "at", "cost", "tags"]
TABLE = """
CREATE TABLE {name} (id UInt64, model LowCardinality(String), at DateTime64(3, 'UTC'), cost Nullable(Int64),
tags Array(String)) ENGINE = ReplacingMergeTree ORDER BY id
"""


@pytest.fixture(scope="module")
def url(module_directory: Path) -> Iterator[str]:
    with EmbeddedBackends.running(module_directory / "data", names=("clickhouse",)) as backends:
        yield backends.urls.clickhouse_url


async def connect(url: str, **options: Any) -> AsyncClient:
    parts = urlsplit(url)
    given = {"username": parts.username, "password": parts.password, "database": parts.path[1:], **options}
    return await clickhouse_connect.get_async_client(host=parts.hostname or "", port=parts.port or 0, **given)


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncClient]:
    client = await connect(url)
    yield client
    await client.close()


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    parts = urlsplit(url)
    headers = {"Authorization": aiohttp.encode_basic_auth(parts.username or "", parts.password or "")}
    async with aiohttp.ClientSession(f"http://{parts.hostname}:{parts.port}", headers=headers) as session:
        yield session


NOON = datetime.fromisoformat("2026-01-02T12:00:00.678")
"""Without a zone: that is how clickhouse-connect returns UTC."""


def rows(count: int) -> list[list[Any]]:
    return [[i, f"model-{i % 3}", NOON, i % 2 or None, ["a", "b"]] for i in range(count)]


class TestClient:
    @pytest.mark.parametrize("compression", [False, "lz4", "zstd", "gzip"])
    async def test_what_is_inserted_is_read_again(self, url: str, compression: bool | str) -> None:
        client = await connect(url, compress=compression)
        name = f"insert_{str(compression).lower()}"
        await client.command(TABLE.format(name=name))
        summary = await client.insert(name, rows(3000), column_names=COLUMNS)
        assert summary.written_rows == 3000
        read = await client.query(f"SELECT * FROM {name} ORDER BY id")
        assert [list(row) for row in read.result_rows] == rows(3000)
        await client.close()

    async def test_final_replaces_rows_of_the_same_key(self, client: AsyncClient) -> None:
        await client.command(TABLE.format(name="replacing"))
        for cost in (1, 2):
            await client.insert("replacing", [[7, "m", NOON, cost, []]], column_names=COLUMNS)
        read = await client.query("SELECT id, cost FROM replacing FINAL")
        assert read.result_rows == [(7, 2)]

    async def test_parameters_travel_apart_from_the_query(self, client: AsyncClient) -> None:
        nasty = "it's a\ttab, a\nline, a \\ and {x:String}"
        query = "SELECT {a:String}, {b:UInt64} + 1, {c:Array(String)}, {d:DateTime64(3)}"
        parameters = {"a": nasty, "b": 41, "c": [nasty, ""], "d": NOON}
        read = await client.query(query, parameters=parameters)
        assert read.result_rows == [(nasty, 42, [nasty, ""], parameters["d"])]
        long = await client.query("SELECT length({a:String})", parameters={"a": nasty * 5000})
        assert long.result_rows == [(len(nasty) * 5000,)]

    async def test_settings_hold_for_one_query(self, client: AsyncClient) -> None:
        query = "SELECT value FROM system.settings WHERE name = 'max_block_size'"
        default = (await client.query(query)).result_rows
        assert (await client.query(query, settings={"max_block_size": 1234})).result_rows == [("1234",)]
        await client.command("SET max_block_size = 777")
        assert {tuple((await client.query(query)).result_rows) for _ in range(10)} == {tuple(default)}
        with pytest.raises(DatabaseError, match="UNKNOWN_SETTING") as caught:
            await client.query("SELECT 1", settings={"no_such_setting": 1})
        assert caught.value.code == 115

    async def test_use_holds_for_one_request(self, client: AsyncClient) -> None:
        await client.command("USE system")
        assert {await client.command("SELECT currentDatabase()") for _ in range(10)} == {"lurus"}

    @pytest.mark.parametrize(
        ("query", "code", "name"),
        [
            ("SELECT * FROM no_such_table", 60, "UNKNOWN_TABLE"),
            ("SELLECT 1", 62, "SYNTAX_ERROR"),
            ("SELECT no_such_column", 47, "UNKNOWN_IDENTIFIER"),
            ("SELECT throwIf(number = 9) FROM numbers(10)", 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        ],
    )
    async def test_errors_have_their_code(
        self, client: AsyncClient, query: str, code: int, name: str
    ) -> None:
        with pytest.raises(DatabaseError) as caught:
            await client.query(query)
        assert (caught.value.code, caught.value.name) == (code, name)
        assert await client.command("SELECT 1") == 1

    async def test_a_failed_insert_has_its_code_and_keeps_nothing(self, client: AsyncClient) -> None:
        await client.command(
            "CREATE TABLE strict (id UInt64, CONSTRAINT small CHECK id < 10) ENGINE = MergeTree ORDER BY id"
        )
        with pytest.raises(DatabaseError) as caught:
            await client.insert("strict", [[1], [99]], column_names=["id"])
        assert caught.value.code == 469
        assert await client.command("SELECT count() FROM strict") == 0

    async def test_a_failed_view_fails_the_insert(self, client: AsyncClient) -> None:
        await client.command("CREATE TABLE seen (id UInt64) ENGINE = MergeTree ORDER BY id")
        await client.command(
            "CREATE MATERIALIZED VIEW seen_view ENGINE = MergeTree ORDER BY x"
            " AS SELECT throwIf(id = 9) AS x FROM seen"
        )
        with pytest.raises(DatabaseError) as caught:
            await client.insert("seen", [[9]], column_names=["id"])
        assert caught.value.code == 395

    async def test_binary_data_may_contain_anything(self, client: AsyncClient) -> None:
        """The bytes of the numbers contain line breaks, semicolons and quotes."""
        await client.command("CREATE TABLE anything (id UInt64, s String) ENGINE = MergeTree ORDER BY id")
        data: list[tuple[int, str]] = [(i, ";\n\n'" * (i % 3)) for i in range(70_000)]
        await client.insert(
            "anything", data, column_names=["id", "s"], settings={"max_insert_block_size": 1000}
        )
        read = await client.query("SELECT count(), sum(id), sum(length(s)) FROM anything")
        assert read.result_rows == [(70_000, sum(range(70_000)), sum(len(s) for _, s in data))]

    async def test_a_repeated_insert_with_the_same_token_is_one(self, client: AsyncClient) -> None:
        await client.command(
            "CREATE TABLE once (id UInt64) ENGINE = MergeTree ORDER BY id"
            " SETTINGS non_replicated_deduplication_window = 10"
        )
        for _ in range(2):
            await client.insert(
                "once", [[1], [2]], column_names=["id"], settings={"insert_deduplication_token": "e1"}
            )
        assert await client.command("SELECT count() FROM once") == 2

    async def test_an_insert_may_be_asynchronous(self, client: AsyncClient) -> None:
        await client.command("CREATE TABLE later (id UInt64) ENGINE = MergeTree ORDER BY id")
        settings = {"async_insert": 1, "wait_for_async_insert": 1}
        await client.insert("later", [[1]], column_names=["id"], settings=settings)
        assert await client.command("SELECT count() FROM later") == 1

    async def test_totals_are_not_lost(self, client: AsyncClient) -> None:
        query = "SELECT number % 2 AS k, count() FROM numbers(10) GROUP BY k WITH TOTALS ORDER BY k"
        assert await client.raw_query(query, fmt="TSV") == b"0\t5\n1\t5\n\n0\t10\n"

    async def test_a_long_statement_is_read_to_its_end(self, client: AsyncClient) -> None:
        numbers = ",".join(str(i) for i in range(20_000))
        answer = await client.raw_query(
            f"SELECT number FROM numbers(200000) WHERE number IN ({numbers})", fmt="JSON"
        )
        assert json.loads(answer)["rows"] == 20_000

    async def test_several_statements_are_refused(self, client: AsyncClient) -> None:
        with pytest.raises(DatabaseError, match="Multi-statements"):
            await client.command("SELECT 1; DROP TABLE x")
        assert await client.command("SELECT 1;") == 1

    async def test_a_long_answer_is_streamed(self, client: AsyncClient) -> None:
        stream = await client.query_row_block_stream("SELECT number, toString(number) FROM numbers(300000)")
        async with stream:
            blocks = [len(block) async for block in stream]
        assert sum(blocks) == 300_000
        assert len(blocks) > 1

    async def test_a_failure_within_a_stream_reaches_the_client(self, url: str) -> None:
        client = await connect(url, compress="zstd")
        with pytest.raises((StreamFailureError, DatabaseError)) as caught:
            async with await client.query_row_block_stream(
                "SELECT throwIf(number = 290000), number FROM numbers(300000)"
            ) as stream:
                async for _ in stream:
                    pass
        assert caught.value.code == 395
        await client.close()

    async def test_queries_run_at_the_same_time(self, client: AsyncClient) -> None:
        began = asyncio.get_running_loop().time()
        answers = await asyncio.gather(*(client.query(f"SELECT sleep(0.3), {i}") for i in range(8)))
        assert sorted(answer.result_rows[0][1] for answer in answers) == list(range(8))
        assert asyncio.get_running_loop().time() - began < 1.5

    async def test_raw_formats_pass(self, client: AsyncClient) -> None:
        await client.command("CREATE TABLE raw (id UInt64, name String) ENGINE = MergeTree ORDER BY id")
        await client.raw_insert("raw", ["id", "name"], b'{"id": 1, "name": "one"}\n', fmt="JSONEachRow")
        await client.raw_insert(
            "raw", ["id", "name"], gzip.compress(b"2,two\n"), fmt="CSV", compression="gzip"
        )
        await client.command("INSERT INTO raw VALUES (3, 'three'), (4, 'FORMAT Native')")
        assert (
            await client.raw_query("SELECT name FROM raw ORDER BY id", fmt="TSV")
            == b"one\ntwo\nthree\nFORMAT Native\n"
        )

    @pytest.mark.parametrize("wrong", [{"password": "guess"}, {"username": "default"}, {"password": ""}])
    async def test_a_wrong_password_is_refused(self, url: str, wrong: dict[str, str]) -> None:
        with pytest.raises(DatabaseError) as caught:
            await connect(url, **wrong)
        assert caught.value.code == 516


class TestHttp:
    async def test_ping_needs_no_password(self, url: str) -> None:
        parts = urlsplit(url)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{parts.hostname}:{parts.port}/ping") as response:
                assert (response.status, await response.text()) == (200, "Ok.\n")
            async with session.get(f"http://{parts.hostname}:{parts.port}/?query=SELECT+1") as response:
                assert response.status == 403
                assert response.headers["X-ClickHouse-Exception-Code"] == "516"

    async def test_credentials_are_taken_from_each_usual_place(self, url: str) -> None:
        parts = urlsplit(url)
        user, password = parts.username or "", parts.password or ""
        places: list[dict[str, Any]] = [
            {"headers": {"X-ClickHouse-User": user, "X-ClickHouse-Key": password}},
            {"headers": {"Authorization": aiohttp.encode_basic_auth(user, password)}},
            {"params": {"user": user, "password": password}},
        ]
        async with aiohttp.ClientSession() as session:
            for place in places:
                async with session.post(
                    f"http://{parts.hostname}:{parts.port}/", data="SELECT 1", **place
                ) as response:
                    assert await response.text() == "1\n"

    async def test_the_query_may_be_in_the_url_or_the_body_or_both(self, http: aiohttp.ClientSession) -> None:
        async def post(query: str, body: str) -> str:
            async with http.post("/", params={"query": query}, data=body) as response:
                return await response.text()

        assert await post("SELECT 1", "") == await post("", "SELECT 1") == await post("SELECT", "1") == "1\n"

    async def test_get_only_reads(self, http: aiohttp.ClientSession) -> None:
        async with http.get("/", params={"query": "CREATE DATABASE x"}) as response:
            assert response.headers["X-ClickHouse-Exception-Code"] == "164"

    async def test_headers_tell_about_the_query(self, http: aiohttp.ClientSession) -> None:
        parameters = {
            "query": "SELECT number FROM numbers(5) FORMAT CSV",
            "query_id": "q-1",
            "wait_end_of_query": "1",
        }
        async with http.get("/", params=parameters) as response:
            assert await response.text() == "0\n1\n2\n3\n4\n"
            assert response.headers["X-ClickHouse-Query-Id"] == "q-1"
            assert response.headers["X-ClickHouse-Format"] == "CSV"
            assert json.loads(response.headers["X-ClickHouse-Summary"])["result_rows"] == "5"

    @pytest.mark.parametrize(
        ("encoding", "encode"),
        [
            ("lz4", lz4.frame.compress),
            ("zstd", zstd.compress),
            ("gzip", gzip.compress),
            ("deflate", zlib.compress),
            ("identity", bytes),
        ],
    )
    async def test_bodies_come_encoded_in_chunks_and_in_several_frames(
        self, http: aiohttp.ClientSession, encoding: str, encode: Any
    ) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            body = encode(b"INSERT INTO FUNCTION null('n UInt64') FORMAT ") + encode(
                b"TSV\n" + b"12345\n" * 200_000
            )
            for start in range(0, len(body), 1000):
                yield body[start : start + 1000]

        async with http.post("/", data=chunks(), headers={"Content-Encoding": encoding}) as response:
            assert response.status == 200, await response.text()
            assert json.loads(response.headers["X-ClickHouse-Summary"])["written_rows"] == "200000"

    @pytest.mark.parametrize("encoding", ["lz4", "zstd", "gzip", "br"])
    async def test_a_malformed_body_is_an_error(self, http: aiohttp.ClientSession, encoding: str) -> None:
        query = {"query": "INSERT INTO FUNCTION null('n UInt64') FORMAT TSV"}
        headers = {"Content-Encoding": encoding}
        async with http.post("/", params=query, data=b"nonsense" * 99, headers=headers) as response:
            assert response.headers["X-ClickHouse-Exception-Code"] in ("48", "271")
        async with http.post("/", data=b"SELECT 1") as response:
            assert await response.text() == "1\n"

    async def test_a_body_that_unpacks_to_too_much_is_refused(self, http: aiohttp.ClientSession) -> None:
        bomb = zstd.compress(b"INSERT INTO FUNCTION null('s String') FORMAT TSV\n" + bytes(300 * 1024**2))
        assert len(bomb) < 100_000
        async with http.post("/", data=bomb, headers={"Content-Encoding": "zstd"}) as response:
            assert response.status == 413

    async def test_a_malformed_request_is_refused(self, http: aiohttp.ClientSession) -> None:
        async with http.post("/", params={"decompress": "1"}, data=b"x") as response:
            assert response.status == 501
        async with http.post("/elsewhere", data=b"SELECT 1") as response:
            assert response.status == 404


class TestStatement:
    @pytest.mark.parametrize(
        ("text", "keyword", "format_name"),
        [
            ("SELECT 1", "SELECT", None),
            ("select 1 format JSON", "SELECT", "JSON"),
            ("SELECT format, x FROM t", "SELECT", None),
            ("SELECT 1 FORMAT CSV SETTINGS max_threads = 1;", "SELECT", "CSV"),
            ("SELECT 'FORMAT CSV'", "SELECT", None),
            ("-- FORMAT CSV\n/* FORMAT CSV */ (SELECT 1 FORMAT TSV) FORMAT CSV", "SELECT", "CSV"),
            ("WITH 1 AS x SELECT x", "WITH", None),
            ("", "", None),
        ],
    )
    def test_the_last_format_counts(self, text: str, keyword: str, format_name: str | None) -> None:
        statement = read_statement(text.encode())
        assert (statement.keyword, statement.format, statement.insert) == (keyword, format_name, None)

    @pytest.mark.parametrize(
        "head",
        [
            "INSERT INTO t (a, b) ",
            "INSERT INTO `FORMAT TSV` ",
            "insert into t SETTINGS async_insert = 1 ",
            "INSERT INTO FUNCTION null('a String') ",
        ],
    )
    def test_data_begins_after_the_format_of_an_insert(self, head: str) -> None:
        text = f"{head}FORMAT Native\n\x00\n FORMAT TSV".encode()
        insert = read_statement(text).insert
        assert insert
        assert ((insert.target + insert.settings).decode(), insert.format) == (head, "Native")
        assert text[insert.data_start :] == b"\x00\n FORMAT TSV"

    @pytest.mark.parametrize(
        "text", ["INSERT INTO t VALUES ('FORMAT x')", "INSERT INTO t SELECT 1", "INSERT INTO t VALUES FORMAT"]
    )
    def test_other_inserts_are_plain_statements(self, text: str) -> None:
        assert read_statement(text.encode()).insert is None

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("SET x = 1", True),
            ("use db", True),
            ("CREATE TEMPORARY TABLE t (a Int8)", True),
            ("SELECT 1", False),
        ],
    )
    def test_what_changes_the_session_is_seen(self, text: str, expected: bool) -> None:
        assert read_statement(text.encode()).changes_session is expected
