"""A rolling restart under load: nobody who calls meanwhile notices, and the ledger is exact."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.conformance.rig import PRICES, UPSTREAM_MODEL, Gateway
from tests.conformance.streams import FRESH, OUTPUT, READ, WRITTEN
from tests.support.mesh import Mesh
from tests.support.steady_load import SteadyLoad, booked, until_booked

pytestmark = pytest.mark.anyio

CALLERS = 12
# A stream takes some four seconds: it outlives the start of a worker.
PAUSE_SECONDS = 0.35
RELOAD_SECONDS = 120.0
BOOKED_SECONDS = 30.0
COST = (FRESH * 10**9 + READ * 10**8 + WRITTEN * 125 * 10**7 + OUTPUT * 5 * 10**9) // 10**6


@pytest.fixture(scope="module")
def rolled_mesh(tmp_path_factory: pytest.TempPathFactory) -> Any:
    data_dir = tmp_path_factory.mktemp("rolled-mesh")
    with Mesh(data_dir, "--workers", "2", drain_seconds="60") as mesh:
        price = {"price_id": "price_rolled", "model": UPSTREAM_MODEL}
        mesh.rest("POST", "prices", json={**price, **{name: str(value) for name, value in PRICES.items()}})
        yield mesh


@pytest.fixture
async def gateway(rolled_mesh: Mesh) -> AsyncIterator[Gateway]:
    async with Gateway(rolled_mesh) as found:
        yield found


def lurus(mesh: Mesh, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command against a mesh."""
    command = [str(Path(sys.executable).with_name("lurus")), *arguments, "--data-dir", str(mesh.data_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=RELOAD_SECONDS, check=False)


def gateway_pids(mesh: Mesh) -> list[int]:
    return [row["pid"] for row in mesh.run()["processes"] if row["name"].startswith("gateway")]


def workers_of(gateway: Gateway, load: SteadyLoad) -> set[str]:
    """Which workers have served what callers have whole."""
    whole = {*load.seen.whole}
    return {event.worker_id for event in gateway.all_finals() if event.request_id in whole}


async def newly_booked(gateway: Gateway, earlier: Mapping[str, int], count: int) -> dict[str, int]:
    """Waits for so many rows of usage beside earlier ones, and returns all that are new."""
    rows = await until_booked(gateway, len(earlier) + count, BOOKED_SECONDS)
    return {request_id: cost for request_id, cost in rows.items() if request_id not in earlier}


@pytest.mark.row("F18")
async def test_a_rolling_restart_under_load_cuts_and_refuses_nobody(gateway: Gateway) -> None:
    mesh = gateway.mesh
    before, earlier = gateway_pids(mesh), await booked(gateway)
    async with SteadyLoad.running(gateway, CALLERS, PAUSE_SECONDS) as load:
        await gateway.eventually(lambda: load.seen.whole, 30)
        done = await asyncio.to_thread(lurus, mesh, "reload", "--json")
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)["steps"]
    assert [step["state"] for step in steps] == ["done"] * len(before)
    assert [step["old_pid"] for step in steps] == before
    assert [step["new_pid"] for step in steps] == gateway_pids(mesh)
    # Each old one had streams to finish after the new one was ready.
    assert all(step["drained_seconds"] > step["ready_seconds"] for step in steps)
    assert not any(psutil.pid_exists(pid) for pid in before)
    seen = load.seen
    assert seen.failures == {}
    charged = await newly_booked(gateway, earlier, len(seen.whole))
    print(f"{len(seen.whole)} streams whole, {len(charged)} booked, steps {steps}")
    assert charged == dict.fromkeys(seen.whole, COST)
    left = list((mesh.data_dir / "outbox").glob("outbox-*.db"))
    assert len(left) == len(before) or await gateway.eventually(
        lambda: len(list((mesh.data_dir / "outbox").glob("outbox-*.db"))) == len(before), BOOKED_SECONDS
    )


@pytest.mark.row("F18", "F31")
async def test_a_rolling_restart_without_billing_refuses_no_known_key(gateway: Gateway) -> None:
    mesh = gateway.mesh
    before, earlier = gateway_pids(mesh), await booked(gateway)
    billing = psutil.Process(mesh.pid("billing"))
    async with SteadyLoad.running(gateway, CALLERS, PAUSE_SECONDS / 5) as load:
        # Each worker was lent to.
        await gateway.eventually(lambda: len(workers_of(gateway, load)) == len(before), 30)
        billing.suspend()
        try:
            done = await asyncio.to_thread(lurus, mesh, "reload", "--json")
            assert done.returncode == 0, done.stderr
            served = len(load.seen.whole)
            await gateway.eventually(lambda: len(load.seen.whole) > served + CALLERS, 30)
        finally:
            billing.resume()
    assert not {*before} & {*gateway_pids(mesh)}
    assert load.seen.failures == {}
    charged = await newly_booked(gateway, earlier, len(load.seen.whole))
    assert charged == dict.fromkeys(load.seen.whole, COST)


def test_a_reload_without_a_mesh_says_so(tmp_path: Path) -> None:
    done = lurus(Mesh(tmp_path), "reload")
    assert (done.returncode, "no mesh of `lurus up` runs" in done.stderr) == (3, True)
