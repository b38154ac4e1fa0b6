"""What the stores take: a million rows in the request log, and a day's usage through the bus."""

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlencode

import psutil
from google.protobuf.timestamp_pb2 import Timestamp
from tests.support.drained import is_drained
from tests.support.mesh import Mesh
from ulid import ULID

from benchmarks.gateways import foreign_seconds
from benchmarks.scale.gateway import Row, Say
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common import bus
from lurus_log.store import LogStore

DAY_SECONDS = 86_400
LOG_ROWS = (10_000, 100_000, 1_000_000)
BATCH_ROWS = 5_000
# The rows are of a week.
LOG_DAYS = 7
FILL_SECONDS = 900.0
ASKED = 30
PER_SECOND = 50
DAY_EVENTS = PER_SECOND * DAY_SECONDS
DAY_PART = 40
AT_ONCE = 500
CONSUME_SECONDS = 300.0
ACCOUNTS, KEYS, SESSIONS = 50, 200, 5_000
MODELS = ("claude-opus-5", "claude-haiku-5", "gpt-6", "gpt-6-mini", "gemini-4")
STATUSES = (200,) * 18 + (429, 500)
ACCOUNT = "acct_scale"


def events(count: int, seconds: float, account: str = "") -> Iterator[UsageEvent]:
    """Yields usage as agents make it, spread evenly over the last so many seconds, the oldest first."""
    begin = time.time() - seconds
    for number in range(count):
        ended = begin + seconds * number / count
        status = STATUSES[number % len(STATUSES)]
        event = UsageEvent(
            request_id=f"req_{ULID.from_timestamp(ended - 2)}",
            account_id=account or f"acct_{number % ACCOUNTS}",
            key_id=f"key_{number % KEYS}",
            event_time=Timestamp(seconds=int(ended), nanos=int(ended % 1 * 1e6) * 1000),
            start_time=Timestamp(seconds=int(ended - 2)),
            dialect=1 + number % 3,
            path="/v1/messages",
            is_streaming=True,
            model=MODELS[number % len(MODELS)],
            upstream_model=MODELS[number % len(MODELS)],
            provider_id=f"provider-{number % 8}",
            credential_id="cred_1",
            token_source=1,
            terminal=1 if status == 200 else 3,
            http_status=status,
            cost_nano_usd=1_000_003 + number % 977,
            price_id="price_1",
            session_id=f"session-{number % SESSIONS}",
            user_agent="claude-cli/3.0",
            worker_id="worker-0",
            request_bytes=20_000,
            response_bytes=4_000,
            raw_usage=b'{"input_tokens": 1200, "output_tokens": 400, "cache_read_input_tokens": 18000}',
        )
        event.tokens.input, event.tokens.cache_read, event.tokens.output = 1200, 18_000, 400
        event.first_event_duration.FromMicroseconds(50_000 + number * 7919 % 1_000_003)
        event.total_duration.FromMicroseconds(900_000 + number * 104_729 % 10_000_019)
        yield event


def logs(folder: Path, say: Say) -> None:
    """More and more rows of the request log, and what is asked of it: by REST, as `lurus logs` asks."""
    folder.mkdir(parents=True, exist_ok=True)
    with Mesh(folder) as mesh:
        url = psutil.Process(mesh.pid("log")).environ()["LURUS_CLICKHOUSE_URL"]
        source = events(LOG_ROWS[-1], LOG_DAYS * DAY_SECONDS)
        rows, end = 0, time.monotonic() + FILL_SECONDS
        for wanted in LOG_ROWS:
            begin, before = time.monotonic(), rows
            rows += asyncio.run(_filled(url, source, wanted - rows, end))
            per_second = (rows - before) / (time.monotonic() - begin)
            for name, path in _questions().items():
                say(
                    {
                        "what": "logs",
                        "line": name,
                        "x": rows,
                        **_asked(mesh, path),
                        "filled_per_second": per_second,
                    }
                )
            if rows < wanted:
                break


async def _filled(url: str, source: Iterator[UsageEvent], count: int, end: float) -> int:
    store = LogStore(url)
    await store.start()
    done = 0
    try:
        while done < count and time.monotonic() < end:
            batch = list(itertools.islice(source, min(BATCH_ROWS, count - done)))
            await store.insert(batch)
            done += len(batch)
    finally:
        await store.close()
    return done


def _questions() -> dict[str, str]:
    """What people ask, by name, as paths of the REST API."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - LOG_DAYS * DAY_SECONDS))
    week = {"filter.start_time": since}

    def path(base: str, **fields: object) -> str:
        return f"{base}?{urlencode({name: value for name, value in fields.items() if value}, doseq=True)}"

    return {
        "newest 50": path("logs"),
        "of an account": path("logs", **{"filter.account_id": "acct_7"}),
        "of a key": path("logs", **{"filter.key_id": "key_7"}),
        "of a session": path("logs", **{"filter.session_id": "session-77", **week}),
        "errors": path("logs", **{"filter.min_http_status": 400}),
        "of a model": path("logs", **{"filter.model": "claude-opus*"}),
        "1,000 of a page": path("logs", page_size=1000),
        "none found": path("logs", **{"filter.session_id": "nobody", **week}),
        "stats of a day": path("stats", group_by=["STATS_GROUP_MODEL"]),
        "stats of a week by day": path("stats", group_by=["STATS_GROUP_DAY"], **week),
        "stats of an account": path("stats", **{"filter.account_id": "acct_7", **week}),
        "stats by provider, model": path(
            "stats", group_by=["STATS_GROUP_PROVIDER", "STATS_GROUP_MODEL"], **week
        ),
    }


def _asked(mesh: Mesh, path: str) -> Row:
    took: list[float] = []
    foreign, begin = foreign_seconds(), time.monotonic()
    for _ in range(ASKED):
        before = time.monotonic()
        mesh.rest("GET", path)
        took.append((time.monotonic() - before) * 1000)
    took.sort()
    passed = time.monotonic() - begin
    return {
        "p50_ms": round(took[len(took) // 2], 1),
        "p95_ms": round(took[int(len(took) * 0.95)], 1),
        "errors": 0,
        "foreign_cores": round((foreign_seconds() - foreign) / passed, 2),
    }


def day(folder: Path, say: Say) -> None:
    """A part of a day's usage, as fast as the bus takes it and as billing and log book it."""
    folder.mkdir(parents=True, exist_ok=True)
    with Mesh(folder) as mesh:
        mesh.rest("POST", "accounts", json={"account_id": ACCOUNT, "display_name": ACCOUNT})
        say(asyncio.run(_day(mesh)))


async def _day(mesh: Mesh) -> Row:
    url = psutil.Process(mesh.pid("log")).environ()["LURUS_NATS_URL"]
    wanted = DAY_EVENTS // DAY_PART
    client = await bus.connect(url, "scale")
    jetstream = client.jetstream()
    names = ("billing", "log", "postgres", "clickhouse", "nats")
    try:
        used, disk = _used(mesh, names), _disk(mesh)
        foreign, begin = foreign_seconds(), time.monotonic()
        published, booked = 0, dict.fromkeys(("billing", "log"), 0.0)
        source = events(wanted, DAY_SECONDS / DAY_PART, ACCOUNT)
        while batch := list(itertools.islice(source, AT_ONCE)):
            if time.monotonic() - begin > CONSUME_SECONDS / 2:
                break
            await asyncio.gather(
                *(
                    bus.publish(jetstream, event.request_id, bus.subject_of(event), event.SerializeToString())
                    for event in batch
                )
            )
            published += len(batch)
        sent = time.monotonic() - begin
        while not all(booked.values()) and time.monotonic() - begin < CONSUME_SECONDS:
            for name, passed in booked.items():
                if not passed and await is_drained(jetstream, name):
                    booked[name] = time.monotonic() - begin
            await asyncio.sleep(0.2)
        passed = time.monotonic() - begin
        foreign_cores = (foreign_seconds() - foreign) / passed
        left = {name: await _left(jetstream, name) for name in booked}
    finally:
        await client.close()
    after, grown = _used(mesh, names), _disk(mesh)
    rates = {
        f"{name}_per_second": round((published - left[name]) / (booked[name] or passed), 1) for name in booked
    }
    costs = {f"{name}_cpu_ms": round((after[name] - used[name]) * 1000 / published, 3) for name in names}
    sizes = {f"{name}_bytes": round((grown[name] - disk[name]) / published) for name in grown}
    slowest = min(rates.values())
    return {
        "what": "day",
        "x": published,
        "published_per_second": round(published / sent, 1),
        **rates,
        **costs,
        **sizes,
        "hours_of_a_day": round(DAY_EVENTS / slowest / 3600, 2),
        "cores_at_50": round(sum(costs.values()) * PER_SECOND / 1000, 3),
        "errors": sum(left.values()),
        "foreign_cores": round(foreign_cores, 2),
    }


async def _left(jetstream: object, name: str) -> int:
    info = await jetstream.consumer_info(bus.STREAM_NAME, name)  # type: ignore[attr-defined]
    return (info.num_pending or 0) + (info.num_ack_pending or 0)


def _used(mesh: Mesh, names: Sequence[str]) -> dict[str, float]:
    found = {}
    for name in names:
        leader = psutil.Process(mesh.pid(name))
        family = [leader, *leader.children(recursive=True)]
        found[name] = sum(sum(process.cpu_times()[:2]) for process in family)
    return found


def _disk(mesh: Mesh) -> dict[str, int]:
    """Bytes of each store's directory."""
    found = {}
    for name in ("postgres", "nats", "clickhouse"):
        place = next((path for path in mesh.data_dir.iterdir() if path.is_dir() and path.name == name), None)
        files = (path for path in place.rglob("*") if path.is_file()) if place else ()
        found[name] = sum(_size(path) for path in files)
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
