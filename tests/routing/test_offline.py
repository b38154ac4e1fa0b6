"""A worker without the services behind it: what it knows from disk, what it refuses, what it spends."""

import asyncio
import json
import shutil
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from lurus.billing.v1 import billing_pb2
from lurus.routing.v1 import routing_pb2
from lurus_common.errors import (
    AccountingUnavailable,
    AuthenticationUnavailable,
    DependencyUnavailable,
    KeyInvalid,
)
from lurus_common.life import Life
from lurus_common.secrets import new_api_key
from lurus_common.settings import Settings
from lurus_routing import follow, keeper, keys
from lurus_switch.targets import TARGETS
from tests.support.scripted_upstream import plain

from .rig import (
    ADMIN_TOKEN,
    ANTHROPIC,
    COST,
    PRICE,
    SECRET,
    Rig,
    make_provider,
    plain_answer,
    refusal,
    until,
)

pytestmark = pytest.mark.anyio

ADMIN = (("authorization", f"Bearer {ADMIN_TOKEN}"),)


def state(rig: Rig, name: str) -> Path:
    """A file of last known state."""
    return Path(rig.settings.data_dir) / "last-good" / name


async def kept(rig: Rig, name: str, text: bytes) -> None:
    """Waits until a file holds a text."""
    await until(lambda: state(rig, name).exists() and text in state(rig, name).read_bytes())


@pytest.fixture
async def rig(one_loop: None, settings: Settings) -> AsyncIterator[Rig]:
    """A rig whose parts the tests start and stop."""
    rig = Rig(settings, "in process")
    async with rig.upstream, rig.other:
        rig.use(one={})
        rig.provider.prices.append(PRICE)
        rig.upstream.script = plain(plain_answer(ANTHROPIC))
        yield rig


async def learn(rig: Rig) -> None:
    """Lets a worker learn all there is, and take its neighbours away while it still runs."""
    async with rig.running():
        assert (await rig.relay()).head.status == 200
        await kept(rig, "keys", rig.account_id.encode())
        await kept(rig, "providers", b"one")
        await rig.billing_server.stop()
        await rig.provider_server.stop()


class TestRestart:
    async def test_known_keys_work_and_unknown_ones_may_come_back(self, rig: Rig) -> None:
        revoked = rig.billing.add_key(is_revoked=True)
        await learn(rig)
        async with rig.routing():
            assert (await rig.relay()).head.status == 200
            error = await refusal(rig.relay(credentials=[new_api_key()]))
            assert isinstance(error, AuthenticationUnavailable)
            assert isinstance(await refusal(rig.relay(credentials=[revoked])), KeyInvalid)
            status = await rig.stub.GetStatus(routing_pb2.GetStatusRequest(), metadata=ADMIN)
            modes = {row.name: row.mode for row in status.dependencies}
            assert (modes["provider"], modes["billing"]) == (routing_pb2.MODE_OFFLINE,) * 2
            assert (modes["snapshot"], modes["keys"]) == (routing_pb2.MODE_ONLINE,) * 2
            assert status.mode == routing_pb2.MODE_DEGRADED

    async def test_nothing_on_disk_opens_a_door(self, rig: Rig) -> None:
        await learn(rig)
        for name in ("keys", "keys.previous", "providers", "providers.previous"):
            data = state(rig, name).read_bytes() if state(rig, name).exists() else b""
            assert rig.key.encode() not in data
            assert SECRET.encode() not in data

    @pytest.mark.row("F32")
    async def test_without_a_whole_snapshot_it_is_not_ready(self, rig: Rig) -> None:
        await learn(rig)
        for name in ("providers", "providers.previous"):
            state(rig, name).write_bytes(b"torn")
        async with rig.routing(is_awaited=False):
            assert isinstance(await refusal(rig.relay()), DependencyUnavailable)
            await rig.provider_server.start()
            await rig.until_ready()
            assert (await rig.relay()).head.status == 200

    @pytest.mark.row("F32")
    async def test_a_gateway_without_a_snapshot_says_so_where_clients_ask(self, rig: Rig) -> None:
        await learn(rig)
        for name in ("providers", "providers.previous"):
            state(rig, name).write_bytes(b"torn")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            settings = msgspec.structs.replace(
                rig.settings, provider_address=f"127.0.0.1:{rig.provider_server.port}"
            )
            async with AsyncExitStack() as stack, aiohttp.ClientSession() as session:
                await TARGETS["gateway"](stack, settings, Life(listener))
                stack.push_async_callback(rig.provider_server.stop)

                async def ready() -> tuple[int, list[str]]:
                    async with session.get(url + "/ready", headers={"connection": "close"}) as answer:
                        return answer.status, list((await answer.json()).get("problems", ()))

                assert await ready() == (503, ["providers"])
                async with session.get(url + "/health") as answer:
                    assert answer.status == 200
                await rig.provider_server.start()
                async with asyncio.timeout(30):
                    while await ready() != (200, []):
                        await asyncio.sleep(0.05)

    @pytest.mark.row("F32")
    @pytest.mark.parametrize("length", [0, 100, -1])
    async def test_a_torn_snapshot_gives_the_one_before(self, rig: Rig, length: int) -> None:
        await learn(rig)
        shutil.copy(state(rig, "providers"), state(rig, "providers.previous"))
        state(rig, "providers").write_bytes(state(rig, "providers").read_bytes()[:length])
        async with rig.routing():
            assert (await rig.relay()).head.status == 200

    async def test_what_changes_is_kept(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(keeper, "PAUSE_SECONDS", 0.05)
        async with rig.running():
            await kept(rig, "providers", b"one")
            rig.provider.tell(deleted_provider_ids=["one"], providers=[make_provider("two", rig.other.url)])
            await kept(rig, "providers", b"two")
            revoked = rig.key
            rig.billing.change_key(revoked, is_revoked=True)
            before = state(rig, "keys").read_bytes()
            rig.key = rig.billing.add_key()
            await until(lambda: state(rig, "keys").read_bytes() != before)
            await kept(rig, "keys", rig.account_id.encode())
            await rig.billing_server.stop()
            await rig.provider_server.stop()
        rig.other.script = plain(plain_answer(ANTHROPIC))
        async with rig.routing():
            assert isinstance(await refusal(rig.relay(credentials=[revoked])), KeyInvalid)
            assert isinstance(await refusal(rig.relay()), AccountingUnavailable)  # its account has no lease
        assert not rig.upstream.requests


class TestRevoked:
    async def test_the_file_never_outweighs_billing(self, rig: Rig) -> None:
        await learn(rig)
        rig.billing.grant_of(rig.key).is_revoked = True  # while nobody watches
        await rig.billing_server.start()
        async with rig.routing():
            for _ in range(5):
                assert isinstance(await refusal(rig.relay()), KeyInvalid)

    async def test_a_key_that_billing_does_not_know_goes(self, rig: Rig) -> None:
        await learn(rig)
        rig.billing.grants.clear()  # a backup was restored
        await rig.billing_server.start()
        async with rig.routing():
            assert isinstance(await refusal(rig.relay()), KeyInvalid)
            await until(lambda: rig.billing.lookup_count)

    async def test_a_silent_stream_is_asked_anew(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        """The watch hangs while billing can be reached: what it does not tell comes with the next one."""
        monkeypatch.setattr(follow, "SILENCE_SECONDS", 0.5)
        async with rig.running():
            assert (await rig.relay()).head.status == 200
            rig.billing.grant_of(rig.key).is_revoked = True  # and nobody is told

            async def is_refused() -> bool:
                try:
                    await rig.relay()
                except KeyInvalid:
                    return True
                return False

            deadline = time.monotonic() + 20
            while not await is_refused():
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)

    async def test_a_table_is_told_in_pages_and_never_has_a_hole(self) -> None:
        def grant(number: int, **fields: Any) -> billing_pb2.KeyGrant:
            return billing_pb2.KeyGrant(key_id=f"key_{number}", verifier=bytes([number]) * 32, **fields)

        table = keys.KeyTable("pepper", None, 100.0, lambda: None)  # type: ignore[arg-type]
        message = billing_pb2.WatchKeysResponse
        assert table.take(message(is_snapshot=True, grants=[grant(1), grant(2)]))
        assert not table.take(message(is_complete=True))
        table.take(message(is_snapshot=True, grants=[grant(1, is_revoked=True)]))
        assert {row.key_id: row.is_revoked for row in table.grants} == {"key_1": True, "key_2": False}
        table.note_outage()  # the rest of that table never came
        assert not table.take(message(is_complete=True))
        assert len(table.grants) == 2
        table.take(message(is_snapshot=True, grants=[grant(1, is_revoked=True)]))
        assert table.take(message(is_complete=True))
        assert [row.key_id for row in table.grants] == ["key_1"]
        assert table.by_id("key_2") is None


class TestAge:
    async def test_keys_count_for_a_day_without_billing(self, rig: Rig) -> None:
        rig.settings = msgspec.structs.replace(rig.settings, offline_key_seconds=1.0)
        revoked = rig.billing.add_key(is_revoked=True)
        await learn(rig)
        async with rig.routing():

            async def is_too_old() -> bool:
                try:
                    await rig.relay()
                except AuthenticationUnavailable:
                    return True
                return False

            deadline = time.monotonic() + 20
            while not await is_too_old():
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            assert isinstance(await refusal(rig.relay(credentials=[revoked])), KeyInvalid)
            await rig.billing_server.start()
            while await is_too_old():
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)

    async def test_an_operator_may_limit_the_age_of_a_snapshot(self, rig: Rig) -> None:
        rig.settings = msgspec.structs.replace(rig.settings, offline_snapshot_seconds=1.0)
        await learn(rig)
        await asyncio.sleep(1.1)
        async with rig.routing(is_awaited=False):
            error = await refusal(rig.relay())
            assert isinstance(error, DependencyUnavailable)
            assert error.metadata["dependency"] == "provider"


class TestLeases:
    @pytest.mark.parametrize("is_rolled", [False, True], ids=["restarted", "rolled"])
    async def test_a_worker_spends_what_its_predecessor_left_and_no_more(
        self, rig: Rig, is_rolled: bool
    ) -> None:
        """Ten times the cost is lent; however often a worker starts, ten calls are served in all."""
        rig.settings = msgspec.structs.replace(rig.settings, lease_nano_usd=COST * 10)
        await learn(rig)
        names = [rig.settings.worker_id] * 2
        if is_rolled:
            names[1] += "-b"
        served, rows = 1, {**rig.rows()}
        for number in range(4):
            if is_rolled:
                rig.settings = msgspec.structs.replace(
                    rig.settings, worker_id=names[1 - number % 2], predecessor_id=names[number % 2]
                )
            async with rig.routing():
                for _ in range(4):
                    try:
                        assert (await rig.relay()).head.status == 200
                        served += 1
                    except AccountingUnavailable:
                        break
            rows |= rig.rows()
        # What is reserved for a call is more than it costs, so a little may stay unused.
        assert 7 <= served <= 10
        cost = sum(event.cost_nano_usd for _, event in rows.values())
        assert cost == served * COST <= COST * 10

    async def test_billing_learns_what_was_spent_of_it(self, rig: Rig) -> None:
        await learn(rig)
        lease_id = next(iter(rig.rows().values()))[1].lease_id
        async with rig.routing():
            assert (await rig.relay()).head.status == 200
            rig.billing.lease_requests.clear()
            await rig.billing_server.start()
            deadline = time.monotonic() + 20
            while not rig.billing.lease_requests:
                assert time.monotonic() < deadline
                await rig.relay()
                await asyncio.sleep(0.05)
        request = rig.billing.lease_requests[0]
        assert request.previous_lease_id == lease_id
        assert request.previous_spent_nano_usd >= 2 * COST

    async def test_what_was_handed_back_is_not_spent(self, rig: Rig) -> None:
        async with rig.running():
            assert (await rig.relay()).head.status == 200
            await kept(rig, "keys", rig.account_id.encode())
            await kept(rig, "providers", b"one")
            # A stop in order: billing takes the lease back.
        async with rig.routing():
            assert isinstance(await refusal(rig.relay()), AccountingUnavailable)

    async def test_while_billing_answers_a_lease_from_disk_is_replaced(self, rig: Rig) -> None:
        await learn(rig)
        count = len(rig.billing.lease_requests)
        await rig.billing_server.start()
        async with rig.routing():
            assert (await rig.relay()).head.status == 200
            assert len(rig.billing.lease_requests) == count + 1
            assert rig.billing.lease_requests[-1].previous_lease_id


async def test_the_ops_port_tells_how_it_is(rig: Rig, settings: Settings) -> None:
    from lurus_switch.embedded import free_port
    from lurus_switch.mesh_health import fetch

    rig.settings = msgspec.structs.replace(settings, ops_port=free_port())
    async with rig.running():

        async def modes() -> dict[str, str]:
            status, body = await fetch(f"127.0.0.1:{rig.settings.ops_port}", "/status")
            assert status == 200
            assert ADMIN_TOKEN.encode() not in body
            found = json.loads(body)
            return {row["name"]: row["mode"] for row in found["dependencies"]} | {"": found["mode"]}

        deadline = time.monotonic() + 20
        while set((await modes()).values()) != {"MODE_ONLINE"}:
            assert time.monotonic() < deadline, await modes()
            await asyncio.sleep(0.05)
        assert list(await modes()) == ["provider", "snapshot", "billing", "keys", "nats", "outbox", ""]
