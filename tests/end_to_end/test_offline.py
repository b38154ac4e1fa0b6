"""Everything behind the gateway is taken away, then the gateway is started anew: known keys go on."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import psutil
import pytest
from tests.end_to_end.test_kills import PATHS, books, log_rows
from tests.support.mesh import Mesh, eventually, free_ports

from lurus_common.secrets import new_api_key

SERVICES = ("provider", "billing", "log")
STORES = ("postgres", "nats", "valkey", "clickhouse")
WAIT_SECONDS = 60.0
# The sandbox takes its time for each answer.
CALLERS = 8
# Of three calls each, four times: `make offline` has more.
ROUNDS = int(os.environ.get("LURUS_OFFLINE_ROUNDS", "10"))
LEASE = 10 * 10**9
NEEDED = {
    "provider": {"postgresql", "redis"},
    "billing": {"postgresql", "nats"},
    "log": {"clickhouse", "nats"},
}


class Outage:
    """What clients see of a gateway, and the requests that were answered."""

    def __init__(self, mesh: Mesh, revoked: str) -> None:
        self.served: list[str] = []
        self._mesh = mesh
        self._revoked = revoked

    def show(self, base_url: str) -> None:
        """Calls with a known key in all dialects, with an unknown one and with a revoked one."""
        with httpx.Client(base_url=base_url, timeout=30) as client:
            asked = itertools.product(range(ROUNDS), PATHS)
            with ThreadPoolExecutor(CALLERS) as callers:
                self.served += callers.map(lambda call: self._served(client, *call), asked)
            for path, body in PATHS.items():
                assert self._status(client, path, body, new_api_key()) == 503
                assert self._status(client, path, body, self._revoked) == 401
            assert client.get("/ready").status_code == 200

    def _served(self, client: httpx.Client, number: int, path: str) -> str:
        sent = {**PATHS[path], "stream": number % 2 == 0}
        answer = client.post(path, json=sent, headers=self._mesh.headers())
        assert answer.status_code == 200, f"{path}: {answer.text}"
        return answer.headers["x-request-id"]

    @staticmethod
    def _status(client: httpx.Client, path: str, body: object, key: str) -> int:
        return client.post(path, json=body, headers={"authorization": f"Bearer {key}"}).status_code


@contextmanager
def gateway_again(environment: dict[str, str], mesh: Mesh) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Starts the gateway of a mesh whose supervisor is frozen: with its own state, on other ports."""
    edge, routing, ops = free_ports(3)
    ports = {"LURUS_EDGE_PORT": edge, "LURUS_ROUTING_PORT": routing, "LURUS_OPS_PORT": ops}
    own = {name: value for name, value in environment.items() if not name.startswith("LISTEN_")}
    given = {**own, **{name: str(port) for name, port in ports.items()}}
    base_url = f"http://127.0.0.1:{edge}"

    def is_up() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{ops}/ready").status_code == 200
        except httpx.TransportError:
            return False

    with (mesh.data_dir / "gateway-again.out").open("ab") as output:
        command = [sys.executable, "-m", "lurus_switch.targets", "gateway"]
        process = subprocess.Popen(command, env=given, stdout=output, stderr=output)
    try:
        eventually(is_up, WAIT_SECONDS)
        yield process, base_url
    finally:
        process.kill()
        process.wait()


def revoked_key(mesh: Mesh) -> str:
    """Makes a key, revokes it, and waits until the gateway knows."""
    made = mesh.rest("POST", "keys", json={"account_id": "acct_default"})
    key_id, secret = made["key"]["key_id"], made["secret"]
    mesh.rest("POST", f"keys/{key_id}:revoke", json={})

    def is_known() -> bool:
        headers = {"authorization": f"Bearer {secret}"}
        return mesh.http.get("/v1/models", headers=headers).status_code == 401

    eventually(is_known, WAIT_SECONDS)
    return str(secret)


def dependencies(mesh: Mesh, mode: str) -> dict[str, set[str]]:
    """What each process tells at `/status` to be in a mode."""
    found: dict[str, set[str]] = {}
    for process, address in mesh.run()["ops"].items():
        rows = httpx.get(f"http://{address}/status").json()["dependencies"]
        found[process] = {row["name"] for row in rows if row["mode"] == mode}
    return found


def is_said_to_be_away(mesh: Mesh) -> bool:
    """Whether each service tells that its stores are away."""
    away = dependencies(mesh, "MODE_OFFLINE")
    return all(away[process] == names for process, names in NEEDED.items())


def is_green(mesh: Mesh) -> bool:
    """Whether every process tells that all it depends on is well."""
    try:
        on, off, half = (dependencies(mesh, f"MODE_{name}") for name in ("ONLINE", "OFFLINE", "DEGRADED"))
    except httpx.HTTPError:
        return False
    return not any((*off.values(), *half.values())) and all(on.values())


def agree(mesh: Mesh, served: list[str]) -> bool:
    """Whether every request that was answered is booked once and logged once, and nothing else is."""
    try:
        booked = books(mesh)
        return set(served) == set(booked) and booked == log_rows(mesh) and min(booked.values()) > 0
    except (AssertionError, httpx.HTTPError) as error:
        if "twice" in str(error):
            raise
        return False


@pytest.fixture
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh whose gateway is lent enough for all calls: without billing it serves what a lease covers."""
    with Mesh(tmp_path_factory.mktemp("offline-mesh"), lease_nano_usd=str(LEASE)) as running:
        yield running


@pytest.mark.timeout(240 + 2 * ROUNDS)
@pytest.mark.row("F26", "F31", "F33")
def test_known_keys_work_while_everything_behind_the_gateway_is_gone(mesh: Mesh) -> None:
    assert mesh.process is not None
    keys = mesh.data_dir / "last-good" / "keys"
    first = mesh.http.post("/v1/messages", json=PATHS["/v1/messages"], headers=mesh.headers())
    eventually(lambda: keys.exists() and keys.with_name("providers").exists(), WAIT_SECONDS)
    gateway = psutil.Process(mesh.pid("gateway"))
    environment = gateway.environ()
    supervisor = psutil.Process(mesh.process.pid)
    supervisor.suspend()  # so that nothing comes back
    try:
        mesh.kill("nats")
        outage = Outage(mesh, revoked_key(mesh))  # which the gateway is told without the bus
        outage.served.append(first.headers["x-request-id"])
        for name in STORES:
            if name != "nats":
                mesh.kill(name)
        outage.show(mesh.base_url)
        eventually(lambda: is_said_to_be_away(mesh), WAIT_SECONDS)
        for name in SERVICES:
            mesh.kill(name)
        outage.show(mesh.base_url)
        mesh.kill("gateway")
        with gateway_again(environment, mesh) as (process, base_url):
            outage.show(base_url)
            process.terminate()
            assert process.wait(WAIT_SECONDS) == 0
        with gateway_again(environment, mesh) as (_, base_url):
            outage.show(base_url)
    finally:
        supervisor.resume()
    eventually(mesh.answers, WAIT_SECONDS)
    eventually(lambda: agree(mesh, outage.served), WAIT_SECONDS)
    eventually(lambda: is_green(mesh), WAIT_SECONDS)
