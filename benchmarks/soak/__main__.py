"""Makes a soak and prints what it found; ends with 1 if something did not come back or is not settled."""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.plots import Points, plots
from benchmarks.soak.run import Report, listed, soak
from benchmarks.soak.samples import OURS

MAX_SEED = 10**6
MAX_SHOWN = 5


def main() -> int:
    """Makes the soak."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200.0, help="of load, with faults in it")
    parser.add_argument("--rate", type=float, default=15.0, help="clients that come in a second")
    parser.add_argument("--seed", type=int, help="of clients and faults; a random one if it is not given")
    parser.add_argument("--sample-seconds", type=float, default=5.0, help="between two looks")
    parser.add_argument("--out", type=Path, help="keep the figures in this file, as JSON")
    parser.add_argument("--plot", type=Path, help="draw the figures into this file, as SVG")
    parser.add_argument("--json", dest="as_json", action="store_true", help="instead of the table")
    given = parser.parse_args()
    seed = random.randrange(MAX_SEED) if given.seed is None else given.seed
    report = Report(given.seconds, given.rate, seed)
    with tempfile.TemporaryDirectory(prefix="lurus-soak-", ignore_cleanup_errors=True) as folder:
        soak(Path(folder), report, given.sample_seconds, Console(stderr=True))
    found = report.as_dict()
    if given.plot:
        given.plot.write_text(drawn(found))
    del found["samples"]
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    if given.as_json:
        print(json.dumps(found))
    else:
        show(report)
    return 0 if report.is_clean else 1


def show(report: Report) -> None:
    """Prints the report as a table."""
    console = Console(width=120)
    table = Table(
        title=f"soak, seed {report.seed}: {report.seconds:.0f} s at {report.rate:g} clients a second"
    )
    for name in ("process", "figure", "base", "most", "end", "allowed", "growth", "allowed", ""):
        table.add_column(name, justify="left" if name in ("process", "figure", "") else "right")
    for line in report.lines:
        figures = (line.base, line.most, line.end, line.allowed, line.growth, line.growth_allowed)
        shown = ("-" if value is None else f"{value:.1f}" for value in figures)
        table.add_row(line.process, line.figure, *shown, "ok" if line.is_ok else "LEAKS")
    console.print(table)
    console.print(f"clients {sum(report.outcomes.values())}: {listed(report.outcomes)}", highlight=False)
    console.print(f"faults {sum(report.faults.values())}: {listed(report.faults)}", highlight=False)
    settled = "not settled" if report.settled_seconds is None else f"settled in {report.settled_seconds} s"
    console.print(
        f"{report.booked} requests in the ledger, {settled}; gateway {report.cores} cores, "
        f"others on this machine {report.foreign_cores}",
        highlight=False,
    )
    for finding in report.findings:
        verdict = "FAIL" if finding.broken else "ok"
        console.print(f"  {finding.name:4}{verdict:5}{finding.about} ({finding.checked})", highlight=False)
        for broken in finding.broken[:MAX_SHOWN]:
            console.print(f"       {broken}", highlight=False)
    for problem in report.problems[:MAX_SHOWN]:
        console.print(f"  {problem}", highlight=False)
    console.print("everything came back" if report.is_clean else "NOT CLEAN", highlight=False)


def drawn(found: Mapping[str, Any]) -> str:
    """Returns the figures of all our processes over time, as SVG."""
    charts = []
    titles = {
        "rss_mib": "memory, MiB",
        "descriptors": "open descriptors",
        "connections": "TCP connections",
        "tasks": "tasks",
        "threads": "threads",
    }
    for figure, title in titles.items():
        lines: dict[str, Points] = {
            name: [
                (sample["seconds"], sample["processes"][name][figure])
                for sample in found["samples"]
                if figure in sample["processes"].get(name, {})
            ]
            for name in OURS
        }
        charts.append((title, "seconds", lines, False))
    unsent = [(sample["seconds"], float(sample["outbox_unsent"])) for sample in found["samples"]]
    charts.append(("outbox rows that the bus does not have", "seconds", {"unsent": unsent}, False))
    return plots(charts)


if __name__ == "__main__":
    sys.exit(main())
