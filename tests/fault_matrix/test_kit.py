"""The fault kit itself: what it says it does to connections and answers, it does, and its ledger is right."""

import asyncio
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tests.faults import answers
from tests.faults.behaviours import BEHAVIOURS
from tests.faults.provider import FaultyProvider
from tests.faults.proxy import FaultProxy, Faults
from tests.faults.threads import ProxyHandle

pytest_plugins = ["tests.faults.plugin"]

PATHS = dict(zip(answers.DIALECTS, ("/v1/messages", "/v1/chat/completions", "/v1/responses"), strict=True))
EACH_DIALECT = pytest.mark.parametrize("dialect", PATHS)
MakeProxy = Callable[..., ProxyHandle]
# One for all, since each makes a TLS context; it keeps no connection.
CLIENT = httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
# Enough for what comes; what never comes is given up after it.
READ_SECONDS = 0.4
# Numbers that make the slow and large ones quick.
QUICK = {"late": "-10", "drip": "-1", "gzip-bomb": "-4", "huge": "-100000", "large-header": "-100000"}
# What a client cannot read to its end, streamed and plain.
BROKEN = {
    "reset", "hang-up", "cut", "cut-head", "silent", "silent-head", "length-long", "bad-chunks",
    "stuck-chunks", "no-http"
}  # fmt: skip


def call(url: str, dialect: str, model: str, is_streaming: bool = True) -> httpx.Response:
    """Calls a provider and reads all of its answer."""
    body = {"model": model, "stream": is_streaming, "stream_options": {"include_usage": True}}
    timeout = httpx.Timeout(20, read=READ_SECONDS if "silent" in model else 20)
    return CLIENT.post(url + PATHS[dialect], json=body, timeout=timeout)


@EACH_DIALECT
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_every_behaviour_does_what_its_name_says(
    faulty_provider: FaultyProvider, dialect: str, name: str
) -> None:
    model = f"fault-{name}{QUICK.get(name, '')}"
    for is_streaming in (True, False):
        is_broken = name in BROKEN
        try:
            answer = call(faulty_provider.url, dialect, model, is_streaming)
        except httpx.TransportError:
            assert is_broken or (name == "large-header"), f"{model} broke the connection"
        else:
            assert not is_broken, f"{model} did not break the connection"
            entry = faulty_provider.calls[-1]
            assert (entry.dialect, entry.model, entry.status) == (dialect, model, answer.status_code)
    assert [entry.behaviour for entry in faulty_provider.calls] == [name, name]


@EACH_DIALECT
def test_the_ledger_has_what_was_sent(faulty_provider: FaultyProvider, dialect: str) -> None:
    whole = call(faulty_provider.url, dialect, "fault-ok-7").text
    with pytest.raises(httpx.TransportError):
        call(faulty_provider.url, dialect, "fault-cut-3")
    first, second = faulty_provider.calls
    assert until(lambda: first.ended is not None and second.ended is not None)
    assert first.sent_text == "".join(f"w{number} " for number in range(7)) and first.is_complete
    assert first.sent_usage == answers.usage_of(dialect, 7) and first.is_terminal_sent
    assert faulty_provider.of_answer(f"x-{first.answer_id}") is first and first.answer_id in whole
    assert second.sent_text == "w0 w1 w2 " and not second.is_complete and not second.is_terminal_sent
    stated = second.sent_usage and second.sent_usage["output_tokens"]
    assert stated == (1 if dialect == answers.ANTHROPIC else None)
    told = CLIENT.get(f"{faulty_provider.url}/ledger").json()["calls"]
    assert [row["sent_text"] for row in told] == [first.sent_text, second.sent_text]
    CLIENT.delete(f"{faulty_provider.url}/ledger")
    assert faulty_provider.calls == []


def test_a_silent_stream_ends_when_its_client_leaves(faulty_provider: FaultyProvider) -> None:
    with pytest.raises(httpx.ReadTimeout):
        call(faulty_provider.url, answers.CHAT, "fault-silent-2")
    entry = faulty_provider.calls[0]
    assert until(lambda: entry.ended is not None) and entry.is_peer_gone and entry.sent_text == "w0 w1 "


def test_names_that_are_no_behaviour_are_refused_and_others_answered(faulty_provider: FaultyProvider) -> None:
    for model in ("fault-wizard", "fault-cut-1-2-3", "fault-", "fault-cut-x"):
        assert call(faulty_provider.url, answers.CHAT, model).status_code == 400
    assert faulty_provider.calls == []
    assert "w4 " in call(faulty_provider.url, answers.CHAT, "gpt-x", is_streaming=False).text
    assert "w0 " in call(faulty_provider.url, answers.CHAT, "vendor/fault-ok-1", is_streaming=False).text
    known = CLIENT.get(faulty_provider.url).json()
    assert known["fault-status"]["numbers"] == {"status": 500, "seconds": -1}


def test_failures_have_their_status_and_their_wait(faulty_provider: FaultyProvider) -> None:
    answer = call(faulty_provider.url, answers.ANTHROPIC, "fault-status-429-30")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
    assert "retry-after" not in call(faulty_provider.url, answers.ANTHROPIC, "fault-status-429").headers
    found = [call(faulty_provider.url, answers.CHAT, "fault-flaky-3").status_code for _ in range(6)]
    assert found == [200, 200, 500] * 2
    assert call(faulty_provider.url, answers.CHAT, "fault-redirect").status_code == 302
    with pytest.raises(httpx.ConnectError):
        CLIENT.get(faulty_provider.refused_url)


@pytest.mark.parametrize("how", answers.USAGES[1:])
@EACH_DIALECT
def test_usage_is_wrong_as_named(faulty_provider: FaultyProvider, dialect: str, how: str) -> None:
    text = call(faulty_provider.url, dialect, f"fault-usage-{how}").text
    name = "completion_tokens" if dialect == answers.CHAT else "output_tokens"
    marks = {
        "absent": "", "null": '"usage": null', "negative": f'"{name}": -5', "float": f'"{name}": 5.5',
        "huge": str(2**63), "decreasing": f'"{name}": 50',
    }  # fmt: skip
    assert marks[how] in text and (how != "absent" or f'"{name}"' not in text)


# The proxy.


def until(check: Callable[[], object], seconds: float = 20.0) -> bool:
    """Waits until `check` is true."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)
    return True


def ask(proxy: ProxyHandle, seconds: float = 20.0) -> httpx.Response:
    """Asks for an answer of 5 words through the proxy, on a connection of its own."""
    body = {"model": "x", "stream": False}
    return CLIENT.post(f"{proxy.url}/v1/chat/completions", json=body, timeout=seconds)


@pytest.fixture
def proxy(faulty_provider: FaultyProvider, fault_proxy: MakeProxy) -> ProxyHandle:
    """A proxy in front of the provider."""
    return fault_proxy(f"127.0.0.1:{faulty_provider.port}")


def test_without_a_fault_everything_passes_and_is_counted(proxy: ProxyHandle) -> None:
    assert ask(proxy).status_code == 200
    found = proxy.proxy.state()
    assert found["connection_count"] == 1 and found["bytes_up"] > 50 and found["bytes_down"] > 200
    assert until(lambda: proxy.proxy.open_count == 0)


def test_latency_jitter_and_bandwidth_take_their_time(proxy: ProxyHandle) -> None:
    proxy.change(down={"latency_seconds": 0.2, "jitter_seconds": 0.01})
    started = time.monotonic()
    assert ask(proxy).status_code == 200
    assert time.monotonic() - started >= 0.2
    proxy.change(down={"latency_seconds": 0.0, "bytes_per_second": 1000.0, "slice_bytes": 50})
    started, before = time.monotonic(), proxy.proxy.bytes_down
    ask(proxy)
    assert time.monotonic() - started >= (proxy.proxy.bytes_down - before) / 1000 * 0.9


def test_modes_of_new_connections(proxy: ProxyHandle) -> None:
    proxy.change(mode="refuse")
    with pytest.raises(httpx.ConnectError):
        ask(proxy)
    proxy.change(mode="reset")
    with pytest.raises(httpx.TransportError):
        ask(proxy)
    proxy.change(mode="black_hole")
    with pytest.raises(httpx.ReadTimeout):
        ask(proxy, READ_SECONDS)
    proxy.heal()
    assert ask(proxy).status_code == 200


@pytest.mark.parametrize("how", ["reset", "close", "half_close"])
def test_a_connection_ends_after_so_many_bytes(proxy: ProxyHandle, how: str) -> None:
    proxy.change(down={f"{how}_after_bytes": 100})
    with pytest.raises(httpx.ReadError if how == "reset" else httpx.RemoteProtocolError):
        ask(proxy)
    assert proxy.proxy.bytes_down == 100
    proxy.change(down={f"{how}_after_bytes": None})
    assert ask(proxy).status_code == 200


def test_slices_and_a_corrupted_byte(proxy: ProxyHandle) -> None:
    honest = ask(proxy)
    proxy.change(down={"slice_bytes": 1, "slice_pause_seconds": 0.0})
    assert len(ask(proxy).content) == len(honest.content)
    head = len(b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\n")
    proxy.change(down={"corrupt_at": head + 5})
    with pytest.raises((httpx.TransportError, AssertionError)):
        assert "content-length" in ask(proxy).headers


def test_a_change_holds_for_open_connections(proxy: ProxyHandle) -> None:
    with httpx.Client(base_url=proxy.url, timeout=20) as client:
        assert client.get("/v1/models").status_code == 200
        proxy.change(mode="black_hole")
        with pytest.raises(httpx.ReadTimeout):
            client.get("/v1/models", timeout=READ_SECONDS)
        proxy.heal()
        assert client.get("/v1/models").status_code == 200
        assert proxy.proxy.open_count >= 1
        proxy.cut()
        assert until(lambda: proxy.proxy.open_count == 0)
    with pytest.raises(ValueError, match="no such fault: wizard"):
        proxy.change(down={"wizard": 1})
    with pytest.raises(ValueError, match="no such mode"):
        proxy.change(mode="wizard")


@pytest.mark.anyio
async def test_in_an_event_loop_of_ones_own_with_json_control() -> None:
    async with (
        FaultyProvider() as provider,
        FaultProxy(f"127.0.0.1:{provider.port}", control_port=0) as proxy,
        httpx.AsyncClient(timeout=20) as client,
    ):
        said = (await client.post(proxy.control_url, json={"mode": "reset", "up": {"is_held": True}})).json()
        assert (said["mode"], said["up"]["is_held"]) == ("reset", True)
        with pytest.raises(httpx.TransportError):
            await client.get(proxy.url)
        assert (await client.post(proxy.control_url, json={"mode": "wizard"})).status_code == 400
        assert (await client.delete(proxy.control_url)).json()["mode"] == "pass"
        assert (await client.get(proxy.url)).status_code == 200
        assert not await asyncio.to_thread(provider.failures.copy)


def test_the_page_has_every_behaviour_and_every_fault() -> None:
    page = (Path(__file__).parents[2] / "docs" / "faults.md").read_text()
    for name, behaviour in BEHAVIOURS.items():
        numbers = "".join(f"[-{number}]" for number, _ in behaviour.numbers)
        assert f"| `fault-{name}{numbers}` | {behaviour.about} |" in page
    assert all(f"`{known.name}`" in page for known in dataclasses.fields(Faults))


USERS_TEST = """
import urllib.request, json
def test_of_a_user(faulty_provider, fault_proxy):
    proxy = fault_proxy(faulty_provider.url.removeprefix("http://"))
    body = json.dumps({"model": "fault-ok-2"}).encode()
    with urllib.request.urlopen(proxy.url + "/v1/messages", body) as answer:
        assert json.load(answer)["content"][0]["text"] == "w0 w1 "
    assert faulty_provider.calls[0].is_complete
"""


def test_elsewhere_it_needs_pytest_and_nothing_of_this_repository(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "faults"
    shutil.copytree(source, tmp_path / "lurus_faults", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["lurus_faults.plugin"]\n')
    (tmp_path / "test_user.py").write_text(USERS_TEST)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_runs_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "tests.faults", "provider"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            assert "fault-cut" in CLIENT.get(url).json()
        finally:
            process.terminate()
