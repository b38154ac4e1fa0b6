"""What one gateway worker takes as streams, bodies, keys and providers grow, and after many requests."""

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from tests.support.mesh import Mesh, free_ports

from benchmarks.gateways import Test, foreign_seconds, measure
from benchmarks.targets import Target, provided, target_of

Row = dict[str, Any]
Say = Callable[[Row], None]
MIB = 1024 * 1024
PLAIN = Test("plain chat, 2 KB in, 1.5 KB out, 16 clients", "fake-n50", 16, is_streaming=False)
SECONDS = 5.0
STREAM_COUNTS = (10, 100, 1000, 2500, 5000)
# One chunk a second, for half a minute: what an agent's long answer is like, and few begin at once.
STREAM = Test("a chunk a second", "fake-n30-d1000", 1)
OPENED_IN_A_SECOND = 250
STREAM_WARM_SECONDS, STREAM_SECONDS = 12.0, 10.0
DRAIN_SECONDS = 120
BODY_BYTES = (1_000, 10_000, 100_000, 1_000_000, 4_000_000, 10_000_000, 30_000_000)
KEY_COUNTS = (1, 10, 100, 1_000, 10_000)
# The most that there can be is a thousand, with the sandbox.
PROVIDER_COUNTS = (1, 10, 100, 300, 999)
# Keys and providers are made by so many at once, and for no longer than this.
MAKERS = 8
MAKE_SECONDS = 240.0
UPDATES = 20
UPDATE_PAUSE_SECONDS = 0.25
# Served by one provider of all, by all.
OF_ONE, OF_ALL = "fake-n50", "fake-n49"
REQUEST_COUNTS = (10_000, 100_000)
MEMORY_SECONDS = 900.0
MEMORY_TURN_SECONDS = 20.0
IDLE_SECONDS = 15.0


@contextmanager
def started(folder: Path, models: Sequence[str], **settings: str) -> Iterator[tuple[Mesh, Target, int]]:
    """Starts the cheap provider and a mesh that asks it; gives the port of the provider, too."""
    (upstream,) = free_ports(1)
    provider = subprocess.Popen([sys.executable, "-m", "benchmarks.fake_provider", "--port", str(upstream)])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Mesh(folder, **settings) as mesh:
            provided(mesh, upstream, models)
            yield mesh, target_of(mesh, "ours", mesh.ports["EDGE"], [mesh.pid("gateway")]), upstream
    finally:
        provider.terminate()
        provider.wait(10)


def streams(folder: Path, say: Say) -> None:
    """More and more open streams."""
    # They are all held, however late: what counts is where it bends.
    settings = {"max_live_requests": "6000", "max_loop_late_seconds": "0"}
    with started(folder, [STREAM.model], **settings) as (_, target, _):
        target.arguments = {STREAM.dialect: ("--drain-seconds", str(DRAIN_SECONDS))}
        for count in STREAM_COUNTS:
            ramp = max(1.0, count / OPENED_IN_A_SECOND)
            # Those that began first end in the window, whatever their number.
            warm = 30 - ramp + 2 if ramp < STREAM_WARM_SECONDS else STREAM_WARM_SECONDS
            test = replace(STREAM, streams=count, ramp_seconds=ramp, warmup_seconds=warm)
            row = measure(target, test, STREAM_SECONDS)
            say({"what": "streams", "x": count, "cores_per_1000": row["cores"] / count * 1000, **row})


def bodies(folder: Path, say: Say) -> None:
    """Larger and larger request bodies, relayed and translated."""
    with started(folder, [PLAIN.model]) as (_, target, _):
        for size, line in itertools.product(BODY_BYTES, ("relayed", "translated")):
            test = replace(PLAIN, streams=16 if size < 100_000 else 2, prompt_bytes=size, ramp_seconds=0.5)
            if line == "translated":
                test = replace(test, dialect="anthropic", is_translated=True)
            row = measure(target, test, SECONDS)
            say({"what": "bodies", "line": line, "x": size, **row})


def keys(folder: Path, say: Say) -> None:
    """More and more keys, which take turns."""
    made: list[str] = []
    key_file = folder / "keys"
    with started(folder, [PLAIN.model]) as (mesh, target, _):
        target.arguments = {PLAIN.dialect: ("--key-file", str(key_file))}
        for count in KEY_COUNTS:
            begin = time.monotonic()
            missing = count - len(made)
            made += _made(missing, lambda _: mesh.rest("POST", "keys", json={"account_id": "acct_default"}))
            took = time.monotonic() - begin
            key_file.write_text("\n".join(made))
            _until_answered(mesh, made[-1])
            row = measure(target, PLAIN, SECONDS)
            per_second = round(missing / took, 1)
            say({"what": "keys", "x": len(made), "made_per_second": per_second, **row})
            if len(made) < count:
                break


def _made(count: int, make: Callable[[int], Any]) -> list[str]:
    """Makes so many, or as many as there is time for; returns their secrets."""
    end = time.monotonic() + MAKE_SECONDS
    with ThreadPoolExecutor(MAKERS) as makers:
        found = makers.map(lambda number: make(number) if time.monotonic() < end else None, range(count))
        return [one.get("secret", "") for one in found if one]


def _until_answered(mesh: Mesh, key: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        answer = mesh.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
        if answer.status_code == 200:
            return
        time.sleep(0.1)
    raise RuntimeError(f"the last key is not known: {answer.status_code}")


def providers(folder: Path, say: Say) -> None:
    """More and more providers: calls that one of them serves, calls that all serve, and changes."""
    with started(folder, [OF_ONE, OF_ALL]) as (mesh, target, upstream):
        mesh.rest("DELETE", "providers/bench")
        mesh.rest("DELETE", "providers/chat")
        count = 0
        for wanted in PROVIDER_COUNTS:
            missing, first = wanted - count, count
            _made(missing, lambda number: _provider(mesh, first + number, upstream))  # noqa: B023  # used at once
            count = wanted
            time.sleep(2)
            for line, model in (("of one", OF_ONE), ("of all", OF_ALL)):
                row = measure(target, replace(PLAIN, model=model), SECONDS)
                say({"what": "providers", "line": line, "x": count, **row})
            say({"what": "changes", "x": count, **_changes(mesh, target)})


def _provider(mesh: Mesh, number: int, upstream: int) -> Any:
    fields = {
        "provider_id": f"p{number:04}",
        "dialects": ["DIALECT_OPENAI_CHAT"],
        "supported_models": [OF_ALL, *([OF_ONE] if not number else [f"other-{number}"])],
        "base_url": f"http://127.0.0.1:{upstream}",
        "credentials": [{"secret": "any"}],
    }
    return mesh.rest("POST", "providers", json=fields)


def _changes(mesh: Mesh, target: Target) -> Row:
    """What a change of one provider costs the gateway, beyond what it takes when idle."""

    def used() -> tuple[float, float]:
        gateway = sum(sum(process.cpu_times()[:2]) for process in target.processes)
        return gateway, sum(psutil.Process(mesh.pid("provider")).cpu_times()[:2])

    seconds = UPDATES * UPDATE_PAUSE_SECONDS
    idle, foreign = used(), foreign_seconds()
    time.sleep(seconds)
    before = used()
    worst = 0.0
    for number in range(UPDATES):
        begin = time.monotonic()
        mesh.rest(
            "PATCH",
            "providers/p0000?update_mask=weight",
            json={"provider_id": "p0000", "weight": 50 + number},
        )
        mesh.http.get("/v1/models", headers=mesh.headers())
        worst = max(worst, time.monotonic() - begin)
        time.sleep(max(0.0, UPDATE_PAUSE_SECONDS - (time.monotonic() - begin)))
    after = used()
    gateway, service = ((after[i] - before[i] - (before[i] - idle[i])) * 1000 / UPDATES for i in (0, 1))
    return {
        "cpu_ms": round(gateway, 2),
        "others_cpu_ms": round(service, 2),
        "worst_ms": round(worst * 1000, 1),
        "errors": 0,
        "foreign_cores": round((foreign_seconds() - foreign) / (2 * seconds), 3),
    }


def memory(folder: Path, say: Say) -> None:
    """Memory of a worker that has done nothing yet, and after ten and a hundred thousand plain requests."""
    with started(folder, [PLAIN.model]) as (_, target, _):
        time.sleep(IDLE_SECONDS)
        (worker,) = target.processes
        say({"what": "memory", "x": 0, **_sizes(worker), "errors": 0, "foreign_cores": 0.0})
        end, done, wanted = time.monotonic() + MEMORY_SECONDS, 0, list(REQUEST_COUNTS)
        test = replace(PLAIN, warmup_seconds=0.1)
        while wanted and time.monotonic() < end:
            row = measure(target, test, MEMORY_TURN_SECONDS)
            done += row["done"]
            if done >= wanted[0] or time.monotonic() >= end:
                time.sleep(2)
                shown = {name: row[name] for name in ("errors", "foreign_cores", "cpu_ms", "per_second")}
                say({"what": "memory", "x": done, **shown, **_sizes(worker)})
                wanted.pop(0)


def _sizes(worker: psutil.Process) -> Row:
    found = worker.memory_full_info()
    return {"rss_mib": round(found.rss / MIB, 1), "uss_mib": round(found.uss / MIB, 1)}
