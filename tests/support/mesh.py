"""Starts `lurus up` as a child process and talks to it from outside, as users do."""

import copy
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import psutil

from lurus_switch.embedded import free_port
from tests.support import ports

START_SECONDS = 90.0
STOP_SECONDS = 40.0
# From the end of a request to its row in ledger and log.
SETTLE_SECONDS = 20.0
PORT_SETTINGS = ("EDGE", "PROVIDER", "LOG", "BILLING", "ROUTING", "SANDBOX")
# What `lurus up` chooses for itself in an empty directory.
# What an edge of its own takes from its mesh.
EDGE_SETTINGS = ("LURUS_MAX_LOOP_LATE_SECONDS",)
STORE_PORTS = ("postgres", "nats", "nats_http", "valkey", "clickhouse")
GATEWAY_PORTS = ("ops-gateway-b", "ops-gateway-0-b", "ops-gateway-1", "ops-gateway-1-b")
OPS_DISTANCE = ports.OPS_DISTANCE

Result = TypeVar("Result")


class Mesh:
    """A running mesh. As a context manager it starts, and stops with an ordinary Ctrl-C."""

    def __init__(self, data_dir: Path, *arguments: str, **settings: str) -> None:
        self.data_dir = data_dir
        self.ports = dict(zip(PORT_SETTINGS, free_ports(len(PORT_SETTINGS)), strict=True))
        self._arguments = arguments
        names = {f"LURUS_{name}_PORT": str(port) for name, port in self.ports.items()}
        names |= {f"LURUS_{name.upper()}": value for name, value in settings.items()}
        own = {name: value for name, value in os.environ.items() if not name.startswith("LURUS_")}
        self.environment = {**own, **names}
        self.output = data_dir / "up.out"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts `lurus up` and waits until it has printed the first key."""
        self._choose_ports()
        command = [str(Path(sys.executable).with_name("lurus")), "up", "--data-dir", str(self.data_dir)]
        with self.output.open("ab") as output:
            self._read = output.tell()
            self.process = subprocess.Popen(
                [*command, *self._arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.base_url = f"http://127.0.0.1:{self.ports['EDGE']}"
        self.http = httpx.Client(base_url=self.base_url, timeout=30)
        eventually(self._is_up, START_SECONDS)
        self.key = (self.data_dir / "first-key").read_text().strip()
        self.admin_token = (self.data_dir / "secrets" / "admin-token").read_text().strip()

    def _choose_ports(self) -> None:
        """Chooses the other ports, unless there was a start before: two meshes never choose alike."""
        chosen = self.data_dir / "ports.json"
        if chosen.exists():
            return
        found: dict[str, int] = {}
        for name in STORE_PORTS + GATEWAY_PORTS:
            found[name] = free_port(frozenset(found.values()))
        self.data_dir.mkdir(parents=True, exist_ok=True)
        chosen.write_text(json.dumps(found))

    def _is_up(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise AssertionError(f"lurus up has ended:\n{self.output.read_text()[-4000:]}")
        return "Ready after" in self.output.read_text()[self._read :]

    def stop(self) -> None:
        """Ends it as Ctrl-C does, and everything it started."""
        if self.process is None or self.process.poll() is not None:
            return
        self.http.close()
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    @contextmanager
    def on_the_wire(self) -> Iterator[Self]:
        """The same mesh through an edge of its own process, with gRPC between edge and routing."""
        (port, ops_port) = free_ports(2)
        areas = ("ROUTING", "PROVIDER", "LOG", "BILLING")
        addresses = {f"LURUS_{area}_ADDRESS": f"127.0.0.1:{self.ports[area]}" for area in areas}
        own = {name: value for name, value in self.environment.items() if not name.startswith("LURUS_")}
        shared = {name: value for name, value in self.environment.items() if name in EDGE_SETTINGS}
        named = {"LURUS_EDGE_PORT": str(port), "LURUS_OPS_PORT": str(ops_port), "LURUS_DRAIN_SECONDS": "2"}
        command = [sys.executable, "-m", "lurus_switch.targets", "edge"]
        with (self.data_dir / "edge.out").open("ab") as output:
            edge = subprocess.Popen(
                command,
                env={**own, **shared, **addresses, **named},
                stdin=subprocess.DEVNULL,
                stderr=output,
                stdout=output,
            )
        there = copy.copy(self)
        there.base_url = f"http://127.0.0.1:{port}"
        try:
            with httpx.Client(base_url=there.base_url, timeout=30) as there.http:
                eventually(there.answers, START_SECONDS)
                yield there
        finally:
            edge.terminate()
            edge.wait(STOP_SECONDS)

    def answers(self) -> bool:
        """Whether the edge is ready."""
        try:
            return self.http.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def run(self) -> dict[str, Any]:
        """What `lurus up` says of itself in run.json."""
        try:
            found: dict[str, Any] = json.loads((self.data_dir / "run.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def pid(self, name: str) -> int:
        """The pid of a process by its name in run.json."""
        rows = [row for row in self.run()["processes"] if row["name"] == name and row["pid"]]
        return int(rows[0]["pid"])

    def names(self) -> list[str]:
        """Names of all processes."""
        return [row["name"] for row in self.run()["processes"]]

    def kill(self, name: str) -> int:
        """Kills a process with SIGKILL, after a look that the pid is really ours; returns the pid."""
        pid = self.pid(name)
        assert self.process is not None
        ancestors = [parent.pid for parent in psutil.Process(pid).parents()]
        assert self.process.pid in ancestors, f"{name} ({pid}) is not a child of this mesh"
        os.kill(pid, signal.SIGKILL)
        return pid

    def family(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        assert self.process is not None
        supervisor = psutil.Process(self.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def rest(self, method: str, path: str, **arguments: Any) -> Any:
        """Calls the REST API as the operator and returns the JSON; fails on an error."""
        headers = {"authorization": f"Bearer {self.admin_token}"}
        response = self.http.request(method, f"/api/v1/{path}", headers=headers, **arguments)
        assert response.status_code == 200, f"{response.status_code}: {response.text}"
        return response.json()

    def log_row(self, request_id: str) -> dict[str, Any]:
        """Waits for the request's row in the request log."""
        return eventually(lambda: self._found(f"logs/{request_id}"), SETTLE_SECONDS)

    def transaction(self, request_id: str, account_id: str = "acct_default") -> dict[str, Any]:
        """Waits for the request's entry in the ledger."""
        path = f"transactions?account_id={account_id}&transaction_id={request_id}"
        return eventually(lambda: next(iter(self.rest("GET", path)["transactions"]), None), SETTLE_SECONDS)

    def _found(self, path: str) -> Any:
        headers = {"authorization": f"Bearer {self.admin_token}"}
        response = self.http.get(f"/api/v1/{path}", headers=headers)
        return response.json() if response.status_code == 200 else None

    def headers(self) -> dict[str, str]:
        """What a client presents."""
        return {"authorization": f"Bearer {self.key}"}


def eventually(check: Callable[[], Result | None], seconds: float) -> Result:
    """Returns the first true result of `check`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        if result := check():
            return result
        assert time.monotonic() < deadline, f"not within {seconds} s: {getattr(check, '__name__', check)}"
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, nor on those 1000 above, which are the ops ports of a mesh."""
    found: list[int] = []
    while len(found) < count:
        candidate = secrets.choice(ports.of_meshes())
        distances = {abs(candidate - port) for port in found}
        if not distances & {0, OPS_DISTANCE} and all(map(is_free, (candidate, candidate + OPS_DISTANCE))):
            found.append(candidate)
    return found


def is_free(port: int) -> bool:
    """Whether nobody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
