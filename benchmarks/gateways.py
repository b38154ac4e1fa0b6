"""What a call costs in our gateway, and in those that users would pick instead.

    python -m benchmarks.gateways [--targets ours,nginx,litellm] [--tests pace64] [--rounds 3]

All targets are started, then measured in turns, so that a busy moment of the
machine hits all alike. What counts is the processor time of the gateway's own
processes for each answer, and its ratio to the others of the same round;
requests a second and times are context on a machine that provider, load and
gateway share. `others` are the stores and services behind our gateway.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from tests.support.mesh import free_ports

from benchmarks.targets import NAMES, NotHere, Target, started

MIB = 1024 * 1024
DEFAULT_TARGETS = "direct,nginx,envoy,ours,wire,portkey,litellm,ccr"
DEFAULT_TESTS = "ns16,pace64,msg64"
LOAD_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Test:
    """A load, and what it stands for."""

    says: str
    model: str
    streams: int
    dialect: str = "openai_chat"
    is_streaming: bool = True
    warmup_seconds: float = 1.5
    ramp_seconds: float = 0.3
    prompt_bytes: int = 2000
    # The provider speaks OpenAI Chat only.
    is_translated: bool = False


TESTS = {
    "ns1": Test("plain chat, one client", "fake-n50", 1, is_streaming=False),
    "ns16": Test("plain chat, 2 KB in, 1.5 KB out, 16 clients", "fake-n50", 16, is_streaming=False),
    "ns16big": Test(
        "plain chat, 100 KB in, 16 clients", "fake-n50", 16, is_streaming=False, prompt_bytes=100_000
    ),
    "burst16": Test("50 chunks at once, 16 clients", "fake-n50", 16),
    "pace64": Test("64 streams of 50 chunks, one every 5 ms", "fake-n50-d5", 64),
    "msg64": Test("the same in Anthropic Messages", "fake-n50-d5", 64, dialect="anthropic"),
    "conv64": Test(
        "Anthropic Messages, of a provider of OpenAI Chat",
        "fake-n50-d5",
        64,
        dialect="anthropic",
        is_translated=True,
    ),
    "rsp64": Test("the same in OpenAI Responses", "fake-n50-d5", 64, dialect="openai_responses"),
    "first1": Test("one stream at a time, for its first byte", "fake-n5-d20", 1),
    "open1000": Test(
        "1,000 streams at 20 chunks a second", "fake-n200-d50", 1000, warmup_seconds=8, ramp_seconds=5
    ),
}


@dataclass(slots=True)
class Used:
    """Processor seconds and memory of some processes at a moment."""

    seconds: float
    rss_bytes: int


def main() -> int:
    """Measures, prints a table and keeps the figures; returns the exit code."""
    given = _arguments()
    console = Console(stderr=True)
    tests = given.tests.split(",")
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lurus-bench-")))
        targets = _start_all(stack, given.targets.split(","), tests, folder, console)
        for number in range(given.rounds):
            for test in tests:
                for target in targets:
                    if not _is_for(target, TESTS[test]):
                        continue
                    row = {"round": number, "test": test, **measure(target, TESTS[test], given.seconds)}
                    rows.append(row)
                    console.print(_line(row), highlight=False)
    _keep(given.out, rows)
    _print(rows, tests, given.as_json)
    return int(any(row["errors"] for row in rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--targets", default=DEFAULT_TARGETS, help=f"of {', '.join(NAMES)}")
    tests = "\n".join(f"{name:<9} {test.says}" for name, test in TESTS.items())
    parser.add_argument("--tests", default=DEFAULT_TESTS, help=f"of these:\n{tests}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--out", type=Path, help="keep the figures in this file, as JSON")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print the medians as JSON")
    return parser.parse_args()


def _start_all(
    stack: ExitStack, names: Sequence[str], tests: Sequence[str], folder: Path, console: Console
) -> list[Target]:
    upstream, *ports = free_ports(len(names) + 1)
    provider = subprocess.Popen([sys.executable, "-m", "benchmarks.fake_provider", "--port", str(upstream)])
    stack.callback(provider.wait, 10)
    stack.callback(provider.terminate)
    models = sorted({TESTS[test].model for test in tests})
    targets = []
    for name, port in zip(names, ports, strict=True):
        console.print(f"starting {name} ...")
        try:
            targets.append(stack.enter_context(started(name, port, upstream, models, folder / name)))
        except NotHere as missing:
            console.print(f"{name} is left out: {missing} is not installed (make bench-peers)")
    return targets


def _is_for(target: Target, test: Test) -> bool:
    if test.is_translated and target.translating is None:
        return False
    return test.dialect in target.dialects


def measure(target: Target, test: Test, seconds: float) -> dict[str, Any]:
    """Runs a load and returns its figures, with what the target's processes took meanwhile."""
    model = (target.translating or "") + test.model if test.is_translated else test.model
    command = [
        *(sys.executable, "-m", "benchmarks.load", "--port", str(target.port), "--key", target.key),
        *("--dialect", test.dialect, "--model", model, "--streams", str(test.streams)),
        *("--prompt-bytes", str(test.prompt_bytes), "--seconds", str(seconds)),
        *("--warmup-seconds", str(test.warmup_seconds), "--ramp-seconds", str(test.ramp_seconds)),
        *(["--stream"] if test.is_streaming else []),
        *target.arguments.get(test.dialect, ()),
    ]
    load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    used: list[tuple[Used, Used]] = []
    foreign: list[float] = []
    result: dict[str, Any] = {}
    began = time.monotonic()
    assert load.stdout is not None
    for line in load.stdout:
        said = json.loads(line)
        if "window" in said:
            used.append((_used(target.processes), _used(target.others)))
            foreign.append(foreign_seconds())
        else:
            result = said
    load.wait(max(1.0, LOAD_SECONDS - (time.monotonic() - began)))
    foreign_cores = round((foreign[1] - foreign[0]) / result["seconds"], 3)
    return {"target": target.name, **result, **_costs(used, result), "foreign_cores": foreign_cores}


def _costs(used: Sequence[tuple[Used, Used]], result: dict[str, Any]) -> dict[str, Any]:
    (before, others_before), (after, others_after) = used
    done = result["done"]
    own, others = after.seconds - before.seconds, others_after.seconds - others_before.seconds
    return {
        "cpu_ms": round(own * 1000 / done, 4) if done else None,
        "others_cpu_ms": round(others * 1000 / done, 4) if done else None,
        "cores": round(own / result["seconds"], 3),
        "rss_mib": round(after.rss_bytes / MIB, 1),
    }


def _used(processes: Sequence[psutil.Process]) -> Used:
    seconds, rss = 0.0, 0
    for process in processes:
        try:
            with process.oneshot():
                times = process.cpu_times()
                seconds += times.user + times.system
                rss += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return Used(seconds, rss)


def foreign_seconds() -> float:
    """Processor seconds of everything on this machine that the benchmark has not started."""
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
    own = psutil.Process()
    return busy - _used([own, *own.children(recursive=True)]).seconds


def _line(row: dict[str, Any]) -> str:
    first = (row["first_byte_ms"] or {}).get("p50")
    samples = f"  {row['error_samples']}" if row["errors"] else ""
    return (
        f"{row['test']:<9}{row['target']:<9}{row['per_second']:>9} a second  cpu {row['cpu_ms']} ms"
        f"  others {row['others_cpu_ms']} ms  first byte {first} ms  {row['rss_mib']} MiB"
        f"  errors {row['errors']}{samples}  foreign {row['foreign_cores']}"
    )


def medians(rows: Sequence[dict[str, Any]], test: str) -> list[dict[str, Any]]:
    """Returns what the rounds of a test say of each target."""
    found = []
    for target in dict.fromkeys(row["target"] for row in rows if row["test"] == test):
        ours = [row for row in rows if row["test"] == test and row["target"] == target]
        costs = [row["cpu_ms"] for row in ours if row["cpu_ms"] is not None]
        late = [row["chunk_late_ms"]["p50"] for row in ours if row["chunk_late_ms"]]
        first = [row["first_byte_ms"]["p50"] for row in ours if row["first_byte_ms"]]
        found.append(
            {
                "test": test,
                "target": target,
                "cpu_ms": statistics.median(costs) if costs else None,
                "cpu_ms_range": [min(costs), max(costs)] if costs else None,
                "others_cpu_ms": statistics.median(row["others_cpu_ms"] or 0 for row in ours),
                "first_byte_ms": statistics.median(first) if first else None,
                "late_ms": statistics.median(late) if late else None,
                "per_second": statistics.median(row["per_second"] for row in ours),
                "rss_mib": max(row["rss_mib"] for row in ours),
                "errors": sum(row["errors"] for row in ours),
                "ratio_of_ours": _ratio(rows, test, target),
            }
        )
    return found


def _ratio(rows: Sequence[dict[str, Any]], test: str, target: str) -> float | None:
    """The median over the rounds of our cost by the target's in the same round."""
    costs = {(row["round"], row["target"]): row["cpu_ms"] for row in rows if row["test"] == test}
    ratios = [
        ours / costs[number, target]
        for (number, name), ours in costs.items()
        if name == "ours" and ours and costs.get((number, target))
    ]
    return round(statistics.median(ratios), 3) if ratios else None


def _print(rows: Sequence[dict[str, Any]], tests: Sequence[str], as_json: bool) -> None:
    if as_json:
        for test in tests:
            for median in medians(rows, test):
                print(json.dumps(median))
        return
    for test in tests:
        table = Table(title=f"{test}: {TESTS[test].says}", title_justify="left")
        names = (
            "target",
            "cpu ms",
            "range",
            "ours/it",
            "others ms",
            "1st byte ms",
            "late ms",
            "a second",
            "MiB",
        )
        for name in (*names, "errors"):
            table.add_column(name, justify="left" if name == "target" else "right")
        for row in medians(rows, test):
            table.add_row(*map(_shown, _cells(row)))
        Console(width=120).print(table)


def _cells(row: dict[str, Any]) -> list[Any]:
    low, high = row["cpu_ms_range"] or (None, None)
    spread = f"{low:.3f}-{high:.3f}" if low is not None else "-"
    times = (row["first_byte_ms"], row["late_ms"], row["per_second"], row["rss_mib"], row["errors"])
    return [row["target"], row["cpu_ms"], spread, row["ratio_of_ours"], row["others_cpu_ms"], *times]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _keep(out: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    if out is not None:
        out.write_text(json.dumps({"measured": datetime.now(UTC).isoformat(), "rows": rows}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
