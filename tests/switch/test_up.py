"""`lurus up` as a newcomer meets it: started, used, watched, broken, stopped; on one mesh, in order."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lurus_common.secrets import is_api_key

LURUS = [sys.executable, "-c", "import sys; from lurus_switch.cli import main; sys.exit(main())"]
START_SECONDS = 90.0
BOOK_SECONDS = 30.0

pytestmark = pytest.mark.timeout(240)


class Mesh:
    """A mesh in a directory, and its terminal."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self._environment = {name: value for name, value in environment.items() if "LURUS_" not in name}
        self._output = directory.with_name(directory.name + ".out")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it has printed how to use it."""
        with self._output.open("wb") as file:
            arguments = [*LURUS, "up", "--data-dir", str(self.directory), "--port", "auto"]
            self.process = subprocess.Popen(
                arguments, stdout=file, stderr=subprocess.STDOUT, env=self._environment, cwd="/"
            )
        self.wait_for("Ctrl-C stops everything.")

    def wait_for(self, text: str, seconds: float = START_SECONDS) -> None:
        """Waits until the terminal shows `text`."""
        deadline = time.monotonic() + seconds
        while text not in self.shown():
            assert self.process is not None and self.process.poll() is None, self.shown()
            assert time.monotonic() < deadline, self.shown()
            time.sleep(0.05)

    def shown(self) -> str:
        return self._output.read_text()

    def stop(self) -> int:
        """Presses Ctrl-C; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def lurus(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Runs another command against it."""
        environment = {**self._environment, "LURUS_DATA_DIR": str(self.directory)}
        return subprocess.run(
            [*LURUS, *arguments], env=environment, cwd="/", capture_output=True, text=True, timeout=60
        )

    def json(self, *arguments: str) -> Any:
        """Runs another command and returns what it prints as JSON."""
        done = self.lurus(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def pids(self) -> list[int]:
        """The supervisor and everything below it."""
        assert self.process is not None
        supervisor = psutil.Process(self.process.pid)
        return [self.process.pid, *(child.pid for child in supervisor.children(recursive=True))]


@pytest.fixture(scope="module")
def mesh(module_directory: Path) -> Iterator[Mesh]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    started = Mesh(module_directory / "data", environment)
    started.start()
    yield started
    assert started.process is not None
    if started.process.poll() is None:
        started.stop()


def first_key(mesh: Mesh) -> str:
    return (mesh.directory / "first-key").read_text().strip()


def eventually(look: Callable[[], Any], seconds: float = BOOK_SECONDS) -> Any:
    """Returns what `look` returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)
    return found


def test_the_copied_line_streams_an_answer_that_is_in_the_books(mesh: Mesh) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    line = re.search(r"^curl .*?\]}'$", mesh.shown(), re.DOTALL | re.MULTILINE)
    assert line is not None
    done = subprocess.run(["sh", "-c", line[0]], capture_output=True, text=True, timeout=30)
    assert "data: [DONE]" in done.stdout
    logs = eventually(lambda: mesh.json("logs")["events"])
    assert (logs[0]["model"], logs[0]["http_status"]) == ("sandbox-text", 200)
    booked = eventually(lambda: mesh.json("transactions", "--kind", "usage")["transactions"])
    assert booked[0]["transaction_id"] == logs[0]["request_id"]
    assert booked[0]["amount_nano_usd"] == f"-{logs[0]['cost_nano_usd']}"
    balance = int(mesh.json("balance")["balance_nano_usd"])
    assert balance == 100_000_000_000 - int(logs[0]["cost_nano_usd"])


def test_a_prompt_is_answered_in_every_dialect(mesh: Mesh) -> None:
    for dialect in ("anthropic", "openai_chat", "openai_responses"):
        done = mesh.lurus("ask", f"say {dialect}", "--dialect", dialect)
        assert done.returncode == 0, done.stderr
        assert f"You said: say {dialect}" in done.stdout
        assert "sandbox (sandbox-text) · complete" in done.stderr


def test_the_key_and_what_others_need_are_private(mesh: Mesh) -> None:
    assert is_api_key(first_key(mesh))
    assert first_key(mesh) in mesh.shown()
    for name in ("first-key", "run.json", "secrets/admin-token"):
        assert (mesh.directory / name).stat().st_mode & 0o777 == 0o600
    secrets = [path.read_text().strip() for path in (mesh.directory / "secrets").iterdir()]
    texts = [path.read_text(errors="replace") for path in (mesh.directory / "logs").iterdir()]
    texts += [(mesh.directory / "run.json").read_text(), mesh.shown()]
    assert not [secret for secret in secrets for text in texts if secret and secret in text]


def test_status_finds_every_process_service_and_store_well(mesh: Mesh) -> None:
    tree = mesh.json("status")
    assert {row["state"] for row in tree["processes"]} == {"ready"}
    assert len(tree["processes"]) == 9
    assert [row for row in tree["probes"] if row["problem"]] == []
    assert {row["metric"] for row in tree["queues"]} >= {
        "lurus_consumer_lag_events",
        "lurus_outbox_unsent_events",
    }
    assert {row["provider_id"] for row in tree["routes"]} == {"sandbox"}
    on = {(row["process"], row["name"]): row["mode"] for row in tree["dependencies"]}
    assert set(on.values()) == {"MODE_ONLINE"}
    assert {(process, name) for process, name in on if not process.startswith("gateway")} == {
        ("provider", "postgresql"),
        ("provider", "redis"),
        ("billing", "postgresql"),
        ("billing", "nats"),
        ("log", "clickhouse"),
        ("log", "nats"),
    }
    assert {"provider", "snapshot", "billing", "keys", "nats", "outbox", "redis"} <= {name for _, name in on}
    assert mesh.lurus("doctor").returncode == 0


def test_the_same_directory_is_not_started_twice(mesh: Mesh) -> None:
    done = mesh.lurus("up", "--data-dir", str(mesh.directory))
    assert done.returncode == 1
    assert "already running as process" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_provider_of_ones_own_is_checked_and_used(mesh: Mesh) -> None:
    address = mesh.json("status")["probes"]
    sandbox = next(row["address"] for row in address if row["name"] == "sandbox")
    created = mesh.lurus(
        *("provider", "create", "house", "--base-url", f"http://{sandbox}", "--dialect", "chat"),
        *("--map", "house-*=sandbox-*", "--secret-env", "HOME"),
    )
    assert created.returncode == 0, created.stderr
    assert mesh.lurus("provider", "check", "house").returncode == 0
    eventually(lambda: "You said: hi" in mesh.lurus("ask", "hi", "--model", "house-text").stdout)
    assert mesh.lurus("provider", "delete", "house", "--yes").returncode == 0


def test_a_process_that_dies_is_started_again_and_shown(mesh: Mesh) -> None:
    pid = next(row["pid"] for row in mesh.json("status")["processes"] if row["name"] == "gateway")
    os.kill(pid, signal.SIGKILL)
    mesh.wait_for("+ gateway     up again")
    assert "! gateway     ended with killed by SIGKILL; next start in" in mesh.shown()
    eventually(lambda: mesh.lurus("ask", "hello").returncode == 0)
    row = next(row for row in mesh.json("status")["processes"] if row["name"] == "gateway")
    assert row["restarts"] == 1


def test_it_stops_whole_starts_again_with_the_same_key_and_dies_whole(
    mesh: Mesh, wait_until_gone: Callable[[list[int]], None]
) -> None:
    pids, key = mesh.pids(), first_key(mesh)
    assert mesh.stop() == 0
    wait_until_gone(pids)
    assert not (mesh.directory / "run.json").exists()
    order = re.findall(r"^  - (\w+)", mesh.shown(), re.MULTILINE)
    assert order[0] == "gateway"
    assert set(order[-4:]) == {"postgres", "nats", "valkey", "clickhouse"}
    assert mesh.lurus("balance").returncode == 3

    mesh.start()
    assert key in mesh.shown()
    assert len(mesh.json("key", "list")["keys"]) == 1
    assert len(mesh.json("transactions", "--kind", "top_up")["transactions"]) == 1
    pids = mesh.pids()
    os.kill(pids[0], signal.SIGKILL)
    wait_until_gone(pids[1:])
    assert mesh.process is not None
    mesh.process.wait(10)
    assert "has ended" in mesh.lurus("status").stdout
