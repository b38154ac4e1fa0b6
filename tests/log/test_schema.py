"""The tables: two starters at once, a newer release."""

import asyncio

import pytest

from lurus_common.errors import DependencyUnavailable
from lurus_common.migrations import SchemaTooNew, require_known
from lurus_common.settings import Settings
from lurus_log import schema
from lurus_log.server import log_server
from lurus_log.store import LogStore

from .events import make_event

pytestmark = pytest.mark.anyio


def test_statements_end_with_a_semicolon_at_the_end_of_a_line() -> None:
    sql = "-- a; comment;\nSELECT ';' AS a,\n  1;\n\n-- b\nSELECT 2;\n"
    assert schema.statements_of(sql) == ["SELECT ';' AS a,\n  1", "SELECT 2"]


async def test_several_starters_at_once_and_later_ones_make_one_schema(clickhouse_url: str) -> None:
    stores = [LogStore(clickhouse_url) for _ in range(4)]
    await asyncio.gather(*(store.start() for store in stores))
    await stores[0].insert([make_event()])
    await stores[1].start()
    assert await stores[1].find(make_event().request_id) is None
    for store in stores:
        await store.close()


async def test_a_newer_schema_refuses_the_start(
    settings: Settings, store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "require_known", lambda applied, _, name: require_known(applied, 0, name))
    with pytest.raises(SchemaTooNew):
        async with log_server(settings):
            pytest.fail("it started")


async def test_before_the_start_everything_is_away(clickhouse_url: str) -> None:
    store = LogStore(clickhouse_url)
    with pytest.raises(DependencyUnavailable):
        await store.find(make_event().request_id)


async def test_an_unreachable_store_is_away(clickhouse_url: str) -> None:
    for url in ("http://lurus:x@127.0.0.1:1/log", clickhouse_url.replace("lurus:", "lurus:wrong", 1)):
        with pytest.raises(DependencyUnavailable):
            await LogStore(url).start()
