"""One soak: warm-up, rest, load with faults, rest; then what was kept, and whether all usage is settled."""

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from tests.chaos import audit, ledgers
from tests.chaos.invariants import Finding, examine
from tests.chaos.ledgers import Books
from tests.faults.provider import FaultyProvider
from tests.faults.threads import FaultLoop
from tests.support.mesh import Mesh, eventually, free_ports

from benchmarks.gateways import foreign_seconds
from benchmarks.soak import churn
from benchmarks.soak.churn import Churn
from benchmarks.soak.faults import Faults
from benchmarks.soak.samples import FIGURES, GATEWAY, Sample, Sampler
from benchmarks.soak.verdict import BASE, LOAD, REST, Line, judge

WARM_SHARE, MAX_WARM_SECONDS = 0.2, 60.0
# At rest before the load: connections that nobody uses any more are closed meanwhile.
BASE_SECONDS = 12.0
REST_SECONDS = 120.0
# Faults end so long before the load does.
CALM_SHARE, MAX_CALM_SECONDS = 0.2, 30.0
SETTLE_SECONDS = 120.0
LOOK_SECONDS = 1.0
MIN_PHASE_SAMPLES = 3
PROGRESS_SECONDS = 30.0
# What can be compared without the provider's own book, which the cheap one does not keep.
EXAMINED = ("I4", "I5", "I6", "I7", "I8", "I9", "I10")


@dataclass(slots=True)
class Report:
    """What a soak found."""

    seconds: float
    rate: float
    seed: int
    lines: list[Line] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    booked: int = 0
    settled_seconds: float | None = None
    cores: float = 0.0
    foreign_cores: float = 0.0
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether everything came back and everything is settled."""
        broken = any(found.broken for found in self.findings) or not self.findings
        watched = {line.figure for line in self.lines if line.process == GATEWAY}
        is_back = watched == set(FIGURES) and all(line.is_ok for line in self.lines)
        return not self.problems and not broken and is_back

    def as_dict(self) -> dict[str, Any]:
        """Returns all of it."""
        lines = [{**asdict(line), "is_ok": line.is_ok} for line in self.lines]
        return {**asdict(self), "lines": lines, "is_clean": self.is_clean}


class Soak:
    """A mesh with one worker, a cheap provider and a faulty one."""

    def __init__(
        self, mesh: Mesh, faulty: FaultyProvider, key: str, report: Report, console: Console
    ) -> None:
        self._mesh, self._faulty, self._report, self._console = mesh, faulty, report, console
        self._churn = Churn(mesh, key, report.seed)
        self.sampler = Sampler(mesh)
        found = [psutil.Process(mesh.pid(name)).environ() for name in ("billing", "log")]
        self._urls = {key: value for one in found for key, value in one.items() if key.endswith("_URL")}

    async def run(self, sample_seconds: float) -> None:
        """Does all of it."""
        report, phase = self._report, "warm"
        warm = min(report.seconds * WARM_SHARE, MAX_WARM_SECONDS)
        calm = min(report.seconds * CALM_SHARE, MAX_CALM_SECONDS)
        faults = Faults(self._mesh, report.seed, max(3.0, min(15.0, report.seconds / 20)))
        sampling = asyncio.create_task(self._sample(sample_seconds, lambda: phase))
        try:
            self._say(f"warming up for {warm:.0f} s")
            await self._churn.run(report.rate, _after(warm))
            await self._until_quiet()
            phase = BASE
            await asyncio.sleep(BASE_SECONDS)
            await self._until_seen(BASE)
            phase = LOAD
            self._say(f"load and faults for {report.seconds:.0f} s")
            begin, used = (time.monotonic(), foreign_seconds()), self._cpu_seconds()
            is_over, is_calm = _after(report.seconds), _after(report.seconds - calm)
            await asyncio.gather(
                self._churn.run(report.rate, is_over),
                faults.run(is_calm, _after(report.seconds / 2)),
            )
            passed = time.monotonic() - begin[0]
            report.foreign_cores = round((foreign_seconds() - begin[1]) / passed, 2)
            report.cores = round((self._cpu_seconds() - used) / passed, 3)
            phase = REST
            await self._settle()
            await self._until_back(sample_seconds)
        finally:
            sampling.cancel()
            with suppress(asyncio.CancelledError):
                await sampling
        report.lines = judge(self.sampler.samples)
        report.samples = [asdict(sample) for sample in self.sampler.samples]
        report.faults, report.outcomes = dict(faults.done), dict(self._churn.outcomes)
        report.problems += self._churn.problems

    def _cpu_seconds(self) -> float:
        times = psutil.Process(self._mesh.pid(GATEWAY)).cpu_times()
        return times.user + times.system

    async def _sample(self, pause_seconds: float, phase: Callable[[], str]) -> None:
        said = 0.0
        while True:
            sample = await asyncio.to_thread(self.sampler.take, phase(), self._churn.live)
            del self._faulty.calls[: -churn.KEPT_CALLS]
            if sample.seconds - said >= PROGRESS_SECONDS:
                said = sample.seconds
                own = sample.processes.get(GATEWAY, {})
                figures = "  ".join(
                    f"{name} {own.get(name, 0):g}" for name in ("rss_mib", "descriptors", "tasks")
                )
                self._say(
                    f"{sample.phase:<5} {figures}  live {sample.live_requests:g}  outbox {sample.outbox_rows}"
                    f" ({sample.outbox_unsent} unsent)  calls {self._churn.outcomes.total()}"
                )
            await asyncio.sleep(pause_seconds)

    def _say(self, text: str) -> None:
        seconds = self.sampler.samples[-1].seconds if self.sampler.samples else 0
        self._console.print(f"{seconds:6.0f} s  {text}", highlight=False)

    async def _until_quiet(self) -> None:
        end = time.monotonic() + REST_SECONDS
        while time.monotonic() < end:
            samples = self.sampler.samples
            last = samples[-1] if samples else Sample(0, BASE)
            if (
                last.phase == "warm"
                and not last.live_requests
                and not last.outbox_unsent
                and not last.clients
            ):
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _until_back(self, sample_seconds: float) -> None:
        """Waits until every count has come back, for a time; then three samples more."""
        end = time.monotonic() + REST_SECONDS
        while time.monotonic() < end and not all(line.is_ok for line in judge(self.sampler.samples)):
            await asyncio.sleep(LOOK_SECONDS)
        await asyncio.sleep(3 * sample_seconds)
        await self._until_seen(REST)

    async def _until_seen(self, phase: str) -> None:
        """Waits until there are samples of a phase: on a busy machine a look takes long."""
        end = time.monotonic() + REST_SECONDS
        while time.monotonic() < end:
            if sum(sample.phase == phase for sample in self.sampler.samples) >= MIN_PHASE_SAMPLES:
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _settle(self) -> None:
        """Waits until all books agree; what disagrees at the end is a finding."""
        begin = time.monotonic()
        while True:
            passed = time.monotonic() - begin
            try:
                books = await self._read()
            except audit._AWAY as error:
                if passed > SETTLE_SECONDS:
                    self._report.problems.append(f"a ledger cannot be read: {type(error).__name__}: {error}")
                    return
            else:
                found = [finding for finding in examine(books) if finding.name in EXAMINED]
                is_done = not any(finding.broken for finding in found) and not books.pending
                if is_done or passed > SETTLE_SECONDS:
                    self._report.findings, self._report.booked = found, len(books.booked)
                    self._report.settled_seconds = round(passed, 1) if is_done else None
                    if not is_done and books.pending:
                        self._report.problems.append(f"{books.pending} events were not taken from the bus")
                    return
            await asyncio.sleep(LOOK_SECONDS)

    async def _read(self) -> Books:
        books = Books([], self._churn.seen)
        books.pending = await ledgers.pending_events(self._urls["LURUS_NATS_URL"])
        ledgers.read_outboxes(self._mesh.data_dir / "outbox", books)
        await ledgers.read_ledger(self._urls["LURUS_DATABASE_URL"], audit.LEASE_SECONDS, books)
        await asyncio.to_thread(ledgers.read_log, self._urls["LURUS_CLICKHOUSE_URL"], books)
        return books


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


@contextmanager
def started(folder: Path) -> Iterator[tuple[Mesh, FaultyProvider, str]]:
    """Starts both providers and a mesh of one worker; gives a key that is answered."""
    (upstream,) = free_ports(1)
    provider = subprocess.Popen([sys.executable, "-m", "benchmarks.fake_provider", "--port", str(upstream)])
    loop, faulty = FaultLoop(), FaultyProvider()
    loop.run(faulty.start())
    try:
        with Mesh(folder, ack_wait_seconds="4") as mesh:
            key = churn.prepare(mesh, upstream, faulty)
            headers = {"authorization": f"Bearer {key}"}
            body = {"model": churn.QUICK, "messages": [{"role": "user", "content": "hi"}]}
            eventually(
                lambda: mesh.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200,
                30.0,
            )
            yield mesh, faulty, key
    finally:
        loop.run(faulty.stop())
        loop.close()
        provider.terminate()
        provider.wait(10)


def soak(folder: Path, report: Report, sample_seconds: float, console: Console) -> None:
    """Makes a soak and fills in its report."""
    with started(folder) as (mesh, faulty, key):
        asyncio.run(Soak(mesh, faulty, key, report, console).run(sample_seconds))


def listed(counts: dict[str, int] | Counter[str]) -> str:
    """Returns counts in words."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
