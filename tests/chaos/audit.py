"""One audit: starts a mesh, loads it, kills parts of it, waits until it is quiet, compares the ledgers."""

import asyncio
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import nats.errors
import nats.js.errors
import psutil
from clickhouse_connect.driver.exceptions import ClickHouseError

from lurus.usage.v1.usage_pb2 import Terminal, TokenSource
from tests.chaos import ledgers
from tests.chaos.invariants import LOST_SECONDS, MAX_SHOWN, PRICE, Finding, examine
from tests.chaos.killer import Killer
from tests.chaos.ledgers import Books
from tests.chaos.load import PAUSES_MS, WORDS, Callers, model_name
from tests.faults.provider import FaultyProvider
from tests.faults.threads import FaultLoop
from tests.support.fake_lago import API_KEY, METRIC_CODE, FakeLago
from tests.support.mesh import Mesh, eventually

WORKERS = 2
CALLERS = 12
MEAN_PAUSE_SECONDS = 2.0
# Before the first kill, so that keys and providers are known to both workers.
WARM_SECONDS = 1.0
WAIT_SECONDS = 30.0
# Events of a consumer that died come again after so long, which is when the audit can end.
ACK_WAIT_SECONDS = 4.0
QUIET_SECONDS = 120.0
LOOK_SECONDS = 0.5
LEASE_SECONDS = 60.0
MONEY_NANO_USD = 1_000 * 10**9
ACCOUNTS = ("acct_chaos_a", "acct_chaos_b")
_AWAY = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    ClickHouseError,
    nats.errors.Error,
    nats.js.errors.Error,
    TimeoutError,
    psutil.Error,
    KeyError,
    IndexError,
    TypeError,
)


@dataclass(slots=True)
class Report:
    """What an audit found."""

    seed: int
    load_seconds: float
    quiet_seconds: float = 0.0
    kills: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    problem: str = ""
    data_dir: str = ""

    @property
    def is_clean(self) -> bool:
        """Whether no invariant is broken."""
        return bool(self.findings) and not self.problem and not any(found.broken for found in self.findings)

    def as_json(self) -> str:
        """Returns all of it."""
        return json.dumps({**asdict(self), "is_clean": self.is_clean})

    def as_text(self) -> str:
        """Returns it as a table, with what breaks an invariant below its line."""
        lines = [
            f"chaos audit, seed {self.seed}: {self.load_seconds:.0f} s of load, "
            f"quiet after {self.quiet_seconds:.0f} s",
            f"kills  {sum(self.kills.values())}: {_listed(self.kills)}",
            f"calls  {sum(self.calls.values())}: {_listed(self.calls)}",
            f"rows   {sum(self.rows.values())}: {_listed(self.rows)}",
        ]
        for found in self.findings:
            verdict = f"{len(found.broken)} of {found.checked}"
            mark = "FAIL" if found.broken else "ok"
            note = f" ({found.note})" if found.note else ""
            lines.append(f"  {found.name:4}{mark:5}{found.about:56}{verdict}{note}")
            lines += [f"           {broken}" for broken in found.broken[:MAX_SHOWN]]
            if len(found.broken) > MAX_SHOWN:
                lines.append(f"           and {len(found.broken) - MAX_SHOWN} more")
        lines.append(self.problem or ("no invariant is broken" if self.is_clean else "INVARIANTS ARE BROKEN"))
        if self.data_dir:
            lines.append(f"everything is kept in {self.data_dir}")
        return "\n".join(lines)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


class Audit:
    """A mesh with a provider and a Lago that are never killed, and two accounts."""

    def __init__(self, mesh: Mesh, provider: FaultyProvider, lago: FakeLago) -> None:
        self.mesh = mesh
        self.provider = provider
        self.lago = lago
        self._urls: dict[str, str] = {}
        self.keys: dict[str, str] = {}

    def prepare(self, money_nano_usd: int = MONEY_NANO_USD) -> None:
        """Makes accounts, prices and the provider, and waits until both workers serve them."""
        mesh = self.mesh
        for name in ("billing", "log"):
            found = psutil.Process(mesh.pid(name)).environ()
            self._urls |= {key: value for key, value in found.items() if key.endswith("_URL")}
        for account_id in ACCOUNTS:
            self.keys[account_id] = self.make_account(account_id, money_nano_usd)
        rates = {f"{name}_nano_usd": str(rate) for name, rate in PRICE.items()}
        prices = [{"model": model_name(words, ms)[6:], **rates} for words in WORDS for ms in PAUSES_MS]
        mesh.rest("POST", "prices:import", json={"prices": prices})
        dialects = ["DIALECT_ANTHROPIC", "DIALECT_OPENAI_CHAT", "DIALECT_OPENAI_RESPONSES"]
        fields = {
            "provider_id": "chaos",
            "dialects": dialects,
            "base_url": self.provider.url,
            "credentials": [{"secret": "secret-of-the-provider"}],
            "model_mappings": [{"model": "chaos-*", "upstream_model": "*"}],
        }
        mesh.rest("POST", "providers", json=fields)
        for account_id in ACCOUNTS:
            eventually(lambda account_id=account_id: self._serves(account_id), WAIT_SECONDS)  # type: ignore[misc]

    def make_account(self, account_id: str, money_nano_usd: int) -> str:
        """Makes an account with money; returns a key."""
        mesh = self.mesh
        mesh.rest("POST", "accounts", json={"account_id": account_id, "display_name": account_id})
        top_up = {
            "transaction_id": f"tx_{account_id}",
            "account_id": account_id,
            "kind": "TRANSACTION_KIND_TOP_UP",
            "amount_nano_usd": str(money_nano_usd),
        }
        mesh.rest("POST", "transactions", json=top_up)
        secret: str = mesh.rest("POST", "keys", json={"account_id": account_id})["secret"]
        return secret

    def _serves(self, account_id: str) -> bool:
        headers = {"authorization": f"Bearer {self.keys[account_id]}"}
        models = self.mesh.http.get("/v1/models", headers=headers)
        return models.status_code == 200

    def url(self, name: str) -> str:
        """Returns the URL of a store, with its credentials."""
        return self._urls[f"LURUS_{name}_URL"]

    async def read(self, callers: Callers) -> Books:
        """Reads all ledgers."""
        books = Books(ledgers.served_of(list(self.provider.calls)), callers.seen)
        books.exported = ledgers.exported_of(self.lago)
        books.pending = await ledgers.pending_events(self.url("NATS"))
        ledgers.read_outboxes(self.mesh.data_dir / "outbox", books)
        await ledgers.read_ledger(self.url("DATABASE"), LEASE_SECONDS, books)
        await asyncio.to_thread(ledgers.read_log, self.url("CLICKHOUSE"), books)
        return books

    async def settle(
        self, callers: Callers, lost_seconds: float, seconds: float
    ) -> tuple[Books, list[Finding]]:
        """Waits until everything is booked and nobody has an event left; then whatever is wrong is wrong.

        Raises:
            TimeoutError: a ledger could not be read.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                books = await self.read(callers)
            except _AWAY as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"a ledger cannot be read: {type(error).__name__}: {error}") from error
            else:
                findings = examine(books, lost_seconds)
                is_clean = not any(found.broken for found in findings)
                is_quiet = not books.pending and all(call.ended for call in self.provider.calls)
                if (is_clean and is_quiet) or time.monotonic() > deadline:
                    return books, findings
            await asyncio.sleep(LOOK_SECONDS)


@contextmanager
def running_audit(data_dir: Path, **settings: str) -> Iterator[Audit]:
    """Starts provider, Lago and mesh."""
    loop, provider, lago = FaultLoop(), FaultyProvider(), FakeLago()
    loop.run(provider.start())
    loop.run(lago.start())
    try:
        told = {"lago_url": lago.url, "lago_api_key": API_KEY, "lago_metric_code": METRIC_CODE}
        settings = {"ack_wait_seconds": str(ACK_WAIT_SECONDS), **told, **settings}
        with Mesh(data_dir, "--workers", str(WORKERS), **settings) as mesh:
            yield Audit(mesh, provider, lago)
    finally:
        loop.run(lago.stop())
        loop.run(provider.stop())
        loop.close()


async def under_load(audit: Audit, report: Report, kill_pause_seconds: float) -> Callers:
    """Loads the mesh and kills parts of it meanwhile."""
    callers = Callers([audit.mesh.base_url], audit.keys, report.seed)
    killer = Killer(audit.mesh, report.seed, kill_pause_seconds)
    end = time.monotonic() + WARM_SECONDS + report.load_seconds

    def is_over() -> bool:
        return time.monotonic() > end

    async def kill() -> None:
        await asyncio.sleep(WARM_SECONDS)
        await killer.run(is_over)

    await asyncio.gather(callers.run(CALLERS, is_over), kill())
    report.kills = dict(killer.kills)
    return callers


def run(
    seed: int,
    load_seconds: float,
    *,
    data_dir: Path | None = None,
    kill_pause_seconds: float = MEAN_PAUSE_SECONDS,
    lost_seconds: float = LOST_SECONDS,
    quiet_seconds: float = QUIET_SECONDS,
) -> Report:
    """Makes one audit. Its directory is kept if something is wrong, else it is removed.

    Args:
        seed: of the calls and of the kills.
        load_seconds: how long there is load, with kills in it.
        data_dir: empty or missing; one in the temporary directory if None.
    """
    place = data_dir or Path(tempfile.mkdtemp(prefix="lurus-chaos-"))
    report = Report(seed, load_seconds)
    try:
        with running_audit(place) as audit:
            audit.prepare()
            callers = asyncio.run(under_load(audit, report, kill_pause_seconds))
            begin = time.monotonic()
            books, report.findings = asyncio.run(audit.settle(callers, lost_seconds, quiet_seconds))
            report.quiet_seconds = time.monotonic() - begin
            describe(report, callers, books)
    except (AssertionError, TimeoutError, httpx.HTTPError) as error:
        report.problem = f"the audit could not be made: {type(error).__name__}: {error}"
    if report.is_clean:
        shutil.rmtree(place, ignore_errors=True)
    else:
        report.data_dir = str(place)
    return report


def describe(report: Report, callers: Callers, books: Books) -> None:
    """Fills in what was called and what was booked."""
    report.calls = dict(Counter(_outcome(seen) for seen in callers.seen))
    terminals: dict[str, Any] = {
        request_id: Terminal.Name(event.terminal).removeprefix("TERMINAL_").lower()
        for request_id, event in books.events.items()
    }
    report.rows = dict(
        Counter(
            f"{terminals.get(row.request_id, 'unknown')} "
            f"{TokenSource.Name(row.token_source).removeprefix('TOKEN_SOURCE_').lower()}"
            for row in books.booked
        )
    )


def _outcome(seen: Any) -> str:
    return f"refused {seen.status} '{seen.reason}'" if seen.outcome == "refused" else seen.outcome
