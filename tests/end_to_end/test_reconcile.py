"""Reconciliation on a whole mesh: events of ten minutes ago, and books that are spoilt on purpose."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
import nats
import psutil
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.support.mesh import Mesh, eventually
from ulid import ULID

from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common import bus
from lurus_routing.outbox import Outbox
from lurus_routing.outbox_reading import read_outboxes

COUNT = 30
COST = 1_000
SECONDS = 60.0

pytestmark = pytest.mark.timeout(240)


def event_of(account_id: str, minutes_ago: float = 10.0, **fields: Any) -> UsageEvent:
    """Returns what a request of a while ago has left."""
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC) - timedelta(minutes=minutes_ago))
    return UsageEvent(
        request_id=f"req_{ULID.from_datetime(moment.ToDatetime(tzinfo=UTC))}",
        account_id=account_id,
        model="m",
        event_time=moment,
        **{
            "terminal": usage_pb2.TERMINAL_COMPLETE,
            "cost_nano_usd": COST,
            "token_source": usage_pb2.TOKEN_SOURCE_PROVIDER,
            "tokens": usage_pb2.Tokens(input=7, output=5),
            **fields,
        },
    )


class Shop:
    """A mesh with usage of ten minutes ago in all its books."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.account_id = "acct_reconcile"
        mesh.rest("POST", "accounts", json={"account_id": self.account_id})
        self._urls = psutil.Process(mesh.pid("billing")).environ()
        self._urls |= psutil.Process(mesh.pid("log")).environ()
        self.events = [event_of(self.account_id) for _ in range(COUNT)]
        refused = {"terminal": usage_pb2.TERMINAL_REFUSED, "cost_nano_usd": 0, "tokens": None}
        self.events.append(event_of(self.account_id, **{**refused, "token_source": 0}))
        asyncio.run(self.publish(self.events))

    async def publish(self, events: list[UsageEvent]) -> None:
        """Puts events on the bus as a worker does."""
        client = await nats.connect(self._urls["LURUS_NATS_URL"])
        for event in events:
            payload = event.SerializeToString()
            await bus.publish(client.jetstream(), event.request_id, bus.subject_of(event), payload)
        await client.close()

    def clickhouse(self, statement: str) -> None:
        """Does something to the request log behind its back."""
        parts = urlsplit(self._urls["LURUS_CLICKHOUSE_URL"])
        client = clickhouse_connect.get_client(
            host=parts.hostname or "",
            port=parts.port or 0,
            username=parts.username or "",
            password=parts.password or "",
            database=parts.path.strip("/"),
        )
        try:
            client.command(f"{statement} SETTINGS mutations_sync = 1")
        finally:
            client.close()

    def reconcile(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Compares the last half hour."""
        return self.run("reconcile", "--since", "30m", *arguments)

    def run(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Runs a command; returns its exit code and what it says."""
        program = Path(sys.executable).with_name("lurus")
        given = [*arguments, "--json", "--data-dir", str(self.mesh.data_dir)]
        done = subprocess.run(
            [program, *given], capture_output=True, text=True, timeout=SECONDS, env=self.mesh.environment
        )
        return done.returncode, json.loads(done.stdout) if done.stdout else {"error": done.stderr}

    def until(self, outcome: str) -> dict[str, Any]:
        """Waits until the books come to something."""

        def comes_to() -> dict[str, Any] | None:
            _, found = self.reconcile()
            return found if found.get("outcome") == f"RECONCILE_OUTCOME_{outcome}" else None

        return eventually(comes_to, SECONDS)  # type: ignore[return-value]  # it is true by then


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with Mesh(tmp_path_factory.mktemp("reconcile")) as mesh:
        yield Shop(mesh)


def counts(found: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Requests and cost of each book."""
    return {
        row["book"].removeprefix("BOOK_").lower(): (
            int(row.get("request_count", 0)),
            int(row.get("cost_nano_usd", 0)),
        )
        for row in found["books"]
    }


def test_books_are_compared_found_to_differ_repaired_and_green_again(shop: Shop) -> None:
    found = shop.until("GREEN")
    assert shop.reconcile()[0] == 0
    said = counts(found)
    assert said["bus"] == said["log"] == (COUNT + 1, COUNT * COST)
    assert said["ledger"] == (COUNT, COUNT * COST)
    lost = [event.request_id for event in shop.events[:3]]
    names = ", ".join(f"'{name}'" for name in lost)
    shop.clickhouse(f"ALTER TABLE usage_events DELETE WHERE request_id IN ({names})")
    code, drifting = shop.reconcile()
    assert code == 1 and drifting["outcome"] == "RECONCILE_OUTCOME_DRIFT"
    assert sorted(row["request_id"] for row in drifting["drifts"]) == sorted(lost)
    assert {tuple(row["missing"]) for row in drifting["drifts"]} == {("BOOK_LOG",)}
    assert int(drifting.get("drift_nano_usd", 0)) == 0, "the ledger has them"
    code, repaired = shop.reconcile("--repair")
    assert code == 1 and int(repaired["repaired_count"]) == len(lost)
    assert counts(shop.until("GREEN")) == said, "nothing is booked twice"


def test_what_is_only_on_the_bus_is_named_and_what_is_parked_said_to_be(shop: Shop) -> None:
    shop.until("GREEN")
    # No row of the ledger can hold it; the log can.
    bad = event_of("acct_reconcile", key_id="a\0b", cost_nano_usd=7)
    asyncio.run(shop.publish([bad]))

    def is_parked() -> bool:
        drifts = shop.reconcile()[1].get("drifts", [])
        return any(row["request_id"] == bad.request_id and row.get("is_parked") for row in drifts)

    eventually(is_parked, SECONDS)
    [row] = [row for row in shop.reconcile()[1]["drifts"] if row["request_id"] == bad.request_id]
    assert "BOOK_LEDGER" in row["missing"]


@pytest.mark.anyio
async def test_outboxes_are_read_beside_their_writers(tmp_path: Any) -> None:
    now = datetime.now(UTC)
    async with Outbox(tmp_path, "a", 100) as first, Outbox(tmp_path, "b", 100) as second:
        events = [event_of("acct_a", minutes_ago) for minutes_ago in (1, 10, 20)]
        for event, outbox in zip(events, (first, second, first), strict=True):
            await outbox.record(event)
        await second.mark_sent([events[1].request_id])
        start, end = ((now - timedelta(minutes=minutes)).timestamp() for minutes in (15, 0))
        found = list(read_outboxes(tmp_path, int(start * 1e9), int(end * 1e9)))
    unsent = [event.request_id for some in found for event in some.unsent_events]
    sent = [event.request_id for some in found for event in some.sent_events]
    assert (unsent, sent) == ([events[0].request_id], [events[1].request_id])


def test_a_providers_bill_is_compared_with_what_was_metered(shop: Shop, tmp_path: Any) -> None:
    attempt = usage_pb2.Attempt(
        provider_id="vendor",
        upstream_model="m-20260101",
        tokens=usage_pb2.Tokens(input=7, cache_read=2, output=5),
        token_source=usage_pb2.TOKEN_SOURCE_PROVIDER,
        cost_nano_usd=COST,
        price_id="price_1",
    )
    day = datetime.now(UTC) - timedelta(days=3)
    minutes = (datetime.now(UTC) - day.replace(hour=12)).total_seconds() / 60
    events = [event_of(shop.account_id, minutes, attempts=[attempt]) for _ in range(10)]
    asyncio.run(shop.publish(events))
    result = {"uncached_input_tokens": 70, "cache_read_input_tokens": 20, "output_tokens": 50, "model": "m"}
    report = {"data": [{"starting_at": f"{day.date()}T00:00:00Z", "results": [result]}], "has_more": False}
    path = tmp_path / "usage.json"
    path.write_text(json.dumps(report))

    def bill(provider_id: str) -> tuple[int, dict[str, Any]]:
        days = ("--since", str(day.date()), "--until", str(day.date()))
        return shop.run("bill", str(path), "--provider", provider_id, *days)

    def agrees() -> bool:
        return bill("vendor")[0] == 0

    eventually(agrees, SECONDS)
    only_a_day, found = shop.run("bill", str(path), "--provider", "vendor")
    assert only_a_day == 3 and found["verdict"] == "incomplete", "a day is no month"
    result["output_tokens"] = 51
    path.write_text(json.dumps(report))
    code, found = bill("vendor")
    [row] = found["differences"]
    assert code == 1 and (row["kind"], row["billed"], row["metered"]) == ("output", 51, 50)
    assert bill("nobody")[1]["verdict"] == "differs"
