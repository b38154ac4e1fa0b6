"""The key table as a stream over real gRPC."""

import asyncio
import time
from typing import Any

import asyncpg
import pytest
from tests.billing.calls import new_account, new_key, stub_of, until

from lurus.billing.v1 import billing_pb2 as pb
from lurus_billing import key_watch
from lurus_common.settings import Settings

pytestmark = pytest.mark.anyio


class _Table:
    """What a routing worker makes of the stream."""

    def __init__(self, stub: Any) -> None:
        self.revisions: list[int] = []
        self.snapshots = 0
        self.grants: dict[str, pb.KeyGrant] = {}
        self._call = stub.WatchKeys(pb.WatchKeysRequest())
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for response in self._call:
            self.snapshots += response.is_snapshot
            self.revisions.append(response.revision)
            self.grants.update({grant.key_id: grant for grant in response.grants})

    async def has(self, key_id: str) -> bool:
        return key_id in self.grants

    async def is_revoked(self, key_id: str) -> bool:
        return key_id in self.grants and self.grants[key_id].is_revoked

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.wait([self._task])


class TestWatchKeys:
    async def test_it_sends_the_whole_table_then_changes_at_once(
        self, stub: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(key_watch, "POLL_SECONDS", 60.0)
        name = await new_account(stub)
        before = await new_key(stub, name)
        table = _Table(stub)
        await until(lambda: table.has(before.key.key_id))
        await stub.RevokeKey(pb.RevokeKeyRequest(key_id=before.key.key_id))
        await until(lambda: table.is_revoked(before.key.key_id))
        after = await new_key(stub, name)
        await until(lambda: table.has(after.key.key_id))
        await stub.DeleteAccount(pb.DeleteAccountRequest(account_id=name))
        await until(lambda: table.is_revoked(after.key.key_id))
        assert (table.snapshots, table.revisions) == (1, sorted(table.revisions))
        await table.close()

    async def test_it_misses_nothing_of_100_writes_at_once(self, stub: Any) -> None:
        table = _Table(stub)
        names = [await new_account(stub) for _ in range(6)]
        made = await asyncio.gather(*(new_key(stub, names[number % 6]) for number in range(60)))
        ids = [answer.key.key_id for answer in made]
        for key_id in ids:
            await until(lambda key_id=key_id: table.has(key_id))
        late = _Table(stub)  # begins in the middle of the changes
        closed, others = names[0], [one.key for one in made if one.key.account_id != names[0]]
        await asyncio.gather(
            *(stub.RevokeKey(pb.RevokeKeyRequest(key_id=key.key_id)) for key in others),
            stub.DeleteAccount(pb.DeleteAccountRequest(account_id=closed)),
            *(new_key(stub, names[1]) for _ in range(20)),
        )
        for one in (table, late):
            for key_id in ids:
                await until(lambda one=one, key_id=key_id: one.is_revoked(key_id))
            await one.close()

    async def test_it_goes_on_after_its_listener_was_cut(self, stub: Any, pool: asyncpg.Pool) -> None:
        name = await new_account(stub)
        table = _Table(stub)
        await until(lambda: _snapshot(table))
        await pool.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE 'LISTEN%' OR query = 'SELECT 1'"
        )
        key = await new_key(stub, name)
        await until(lambda: table.has(key.key.key_id))
        await table.close()

    async def test_the_server_stops_at_once_with_a_watcher(
        self, settings: Settings, pool: asyncpg.Pool
    ) -> None:
        async with stub_of(settings) as stub:
            table = _Table(stub)
            await until(lambda: _snapshot(table))
            start = time.monotonic()
        assert time.monotonic() - start < 15
        await table.close()


async def _snapshot(table: _Table) -> bool:
    return table.snapshots > 0
