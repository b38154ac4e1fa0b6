"""Each process is killed with SIGKILL under a light load: it comes back, and no usage is lost or doubled."""

import contextlib
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import psutil
import pytest
from tests.support.mesh import Mesh, eventually

from lurus_common.secrets import new_api_key

# Longer than a query may take.
FROZEN_SECONDS = 4.0
CALLERS = 4
AFTER_SECONDS = 2.0
BACK_SECONDS = 40.0
QUIET_SECONDS = 60.0
PATHS = {
    "/v1/messages": {
        "model": "sandbox-text",
        "max_tokens": 300,
        "messages": [{"role": "user", "content": "a"}],
    },
    "/v1/chat/completions": {"model": "sandbox-text", "messages": [{"role": "user", "content": "b"}]},
    "/v1/responses": {"model": "sandbox-text", "input": "c"},
}
TERMINATORS = {
    "/v1/messages": "message_stop",
    "/v1/chat/completions": "[DONE]",
    "/v1/responses": "response.completed",
}


@dataclass
class Seen:
    """What clients saw: ids of requests that were answered to the end, and of those that began."""

    whole: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


class Load:
    """A few callers, streamed and plain, in all dialects, until stopped."""

    def __init__(self, mesh: Mesh) -> None:
        self.seen = Seen()
        self._mesh = mesh
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self, number: int) -> None:
        paths = list(PATHS)
        with httpx.Client(base_url=self._mesh.base_url, headers=self._mesh.headers(), timeout=30) as client:
            while not self._stop.is_set():
                number += 1
                path = paths[number % len(paths)]
                try:
                    self._once(client, path, is_streaming=number % 2 == 0)
                except httpx.HTTPError as error:
                    self.seen.failures[type(error).__name__] += 1
                    time.sleep(0.2)

    def _once(self, client: httpx.Client, path: str, is_streaming: bool) -> None:
        body = {**PATHS[path], "stream": is_streaming}
        with client.stream("POST", path, json=body) as answer:
            request_id = answer.headers.get("x-request-id", "")
            if answer.status_code != 200:
                self.seen.failures[str(answer.status_code)] += 1
                time.sleep(0.2)
                return
            self.seen.begun.append(request_id)
            text = answer.read().decode()
            if not is_streaming or TERMINATORS[path] in text[-4000:]:
                self.seen.whole.append(request_id)


def serves(mesh: Mesh) -> bool:
    """Whether a call succeeds now."""
    try:
        path = "/v1/chat/completions"
        return mesh.http.post(path, json=PATHS[path], headers=mesh.headers()).status_code == 200
    except httpx.TransportError:
        return False


def is_running(mesh: Mesh, name: str, old_pid: int) -> bool:
    """Whether a process is back under another pid and ready."""
    row = next(row for row in mesh.run()["processes"] if row["name"] == name)
    return row["state"] in ("ready", "running") and row["pid"] not in (None, old_pid)


def books(mesh: Mesh) -> dict[str, int]:
    """All usage in the ledger: request id to tokens booked. Fails on a double entry."""
    found: dict[str, int] = {}
    token = ""
    while True:
        query = "account_id=acct_default&page_size=1000&kind=TRANSACTION_KIND_USAGE"
        path = f"transactions?{query}&page_token={token}"
        page = mesh.rest("GET", path)
        for entry in page.get("transactions", []):
            assert entry["transaction_id"] not in found, "booked twice"
            found[entry["transaction_id"]] = -int(entry["amount_nano_usd"])
        token = page.get("next_page_token", "")
        if not token:
            return found


def log_rows(mesh: Mesh) -> dict[str, int]:
    """All requests in the log that an account pays for, refused ones left out: request id to cost."""
    found: dict[str, int] = {}
    token = ""
    while True:
        page = mesh.rest("GET", f"logs?page_size=1000&page_token={token}")
        for row in page.get("events", []):
            assert row["request_id"] not in found, "logged twice"
            if row["terminal"] != "TERMINAL_REFUSED":
                found[row["request_id"]] = int(row.get("cost_nano_usd", 0))
        token = page.get("next_page_token", "")
        if not token:
            return found


def agree(mesh: Mesh, seen: Seen) -> bool:
    """Whether ledger and log hold the same, and all that clients saw."""
    try:
        booked, logged = books(mesh), log_rows(mesh)
    except (AssertionError, httpx.HTTPError) as error:
        if "twice" in str(error):
            raise
        return False
    return booked == logged and set(seen.begun) <= set(booked)


@contextmanager
def frozen(mesh: Mesh, name: str) -> Iterator[None]:
    """Stops a process and all below it for a while; their sockets stay."""
    (top,) = [process for process in mesh.family() if process.pid == mesh.pid(name)]
    stopped = [top, *top.children(recursive=True)]
    signal_all(stopped, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_all(stopped, signal.SIGCONT)


def ask_unknown(mesh: Mesh) -> httpx.Response:
    """Makes a call with a key that nobody has issued."""
    path = "/v1/messages"
    return mesh.http.post(path, json=PATHS[path], headers={"x-api-key": new_api_key()})


def signal_all(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Sends a signal to those that still are."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@pytest.mark.row("F29")
def test_a_frozen_postgresql_costs_known_keys_nothing(own_mesh: Mesh) -> None:
    mesh = own_mesh
    with Load(mesh) as load:
        eventually(lambda: len(load.seen.whole) > 5, BACK_SECONDS)
        with frozen(mesh, "postgres"):
            time.sleep(FROZEN_SECONDS)
            count = len(load.seen.whole)
            eventually(lambda: len(load.seen.whole) > count + 5, BACK_SECONDS)
            stranger = ask_unknown(mesh)
        assert stranger.status_code == 503, stranger.text
        eventually(lambda: ask_unknown(mesh).status_code == 401, BACK_SECONDS)
    assert not load.seen.failures
    eventually(lambda: agree(mesh, load.seen), QUIET_SECONDS)


@pytest.mark.row("F12", "F20", "F25", "F28", "F30", "F34", "F36")
def test_every_process_is_killed_in_turn_and_the_books_stay_right(own_mesh: Mesh) -> None:
    mesh = own_mesh
    names = mesh.names()
    assert {"postgres", "nats", "valkey", "clickhouse", "provider", "billing", "log"} <= set(names)
    with Load(mesh) as load:
        eventually(lambda: len(load.seen.whole) > 5, BACK_SECONDS)
        for name in names:
            pid = mesh.kill(name)
            eventually(lambda name=name, pid=pid: is_running(mesh, name, pid), BACK_SECONDS)  # type: ignore[misc]
            eventually(lambda: serves(mesh), BACK_SECONDS)
            time.sleep(AFTER_SECONDS)
    seen = load.seen
    print(json.dumps({"whole": len(seen.whole), "begun": len(seen.begun), "failures": dict(seen.failures)}))
    eventually(lambda: agree(mesh, seen), QUIET_SECONDS)
    booked = books(mesh)
    assert all(booked[request_id] > 0 for request_id in seen.whole), (
        "an answer that a client has whole costs nothing"
    )
    balance = mesh.rest("GET", "balance?account_id=acct_default")
    assert int(balance["balance_nano_usd"]) == 100 * 10**9 - sum(booked.values())
