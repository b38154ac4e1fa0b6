"""Writes kept figures into `docs/performance.md`: the targets, the tables, a plot.

    make bench BENCH="--out round.json"
    python -m benchmarks.report --name 2026-11-24 round.json [more.json ...]

The files are those of `benchmarks.gateways --out` and the lines of `benchmarks.many_streams`. They are kept,
put together, as `docs/performance/NAME.json`; the page shows the newest that it was given.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.gateways import TESTS, medians

PAGE = Path("docs/performance.md")
FOLDER = Path("docs/performance")
FLAMES = ("flame-before.svg", "flame-after.svg")
BEGIN, END = "<!-- figures: python -m benchmarks.report -->", "<!-- end of figures -->"
# What others took of the two cores; a row that is above is left out.
MAX_FOREIGN_CORES = 0.3
_BAR, _GAP, _LEFT, _WIDTH = 16, 6, 150, 760
_COLOURS = {"ours": "#0b7285", "wire": "#66b2c0"}
_OTHERS = "#adb5bd"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that was promised: a ratio of processor time unless `unit` says otherwise."""

    says: str
    measured: Callable[["Kept"], list[float]]
    must: float
    aim: float
    unit: str = ""


class Kept:
    """Figures of one report."""

    def __init__(self, rows: Sequence[Row], streams: Sequence[Row]) -> None:
        self.rows = rows
        self.streams = streams

    def ratios(self, test: str, rival: str) -> list[float]:
        """Returns our cost by a rival's, round by round."""
        costs = {(row["round"], row["target"]): row["cpu_ms"] for row in self.rows if row["test"] == test}
        pairs = [
            (cost, costs.get((number, rival))) for (number, name), cost in costs.items() if name == "ours"
        ]
        return [ours / theirs for ours, theirs in pairs if ours and theirs]

    def added_first_byte(self) -> list[float]:
        """Returns what we add to the first byte of a quiet gateway, in milliseconds, round by round."""
        firsts = {
            (row["round"], row["target"]): row["first_byte_ms"]["p50"]
            for row in self.rows
            if row["test"] == "first1" and row["first_byte_ms"]
        }
        found = [
            (first, firsts.get((number, "direct")))
            for (number, name), first in firsts.items()
            if name == "ours"
        ]
        return [ours - direct for ours, direct in found if direct is not None]

    def cores(self) -> list[float]:
        """Returns the cores that 1,000 open streams take."""
        return [row["cores"] for row in self.rows if row["test"] == "open1000" and row["target"] == "ours"]

    def memory(self, kind: str, is_wire: bool) -> list[float]:
        """Returns what a stream of a kind of `benchmarks.many_streams` takes of a worker's memory, in KiB."""
        return [
            row["kib_per_stream"]
            for row in self.streams
            if kind in row and bool(row.get("is_wire")) is is_wire
        ]


def _ratio(test: str, rival: str) -> Callable[[Kept], list[float]]:
    return lambda kept: kept.ratios(test, rival)


def _memory(kind: str, *, is_wire: bool = False) -> Callable[[Kept], list[float]]:
    return lambda kept: kept.memory(kind, is_wire)


TARGETS = (
    Target("ns16 by LiteLLM", _ratio("ns16", "litellm"), 1 / 35, 1 / 60),
    Target("ns16 by Portkey", _ratio("ns16", "portkey"), 1 / 4, 1 / 8),
    Target("pace64 by LiteLLM", _ratio("pace64", "litellm"), 1 / 30, 1 / 45),
    Target("pace64 by Portkey", _ratio("pace64", "portkey"), 1 / 1.3, 1 / 2),
    Target("pace64 by Envoy", _ratio("pace64", "envoy"), 2.5, 1.5),
    Target("msg64 by LiteLLM", _ratio("msg64", "litellm"), 1 / 12, 1 / 20),
    Target("conv64 by claude-code-router", _ratio("conv64", "ccr"), 1 / 1.5, 1 / 2.5),
    Target("added time to first byte, quiet, p50", Kept.added_first_byte, 2.0, 0.8, "ms"),
    Target("open1000, cores", Kept.cores, 0.9, 0.6, "cores"),
    Target("memory of an idle stream", _memory("idle_streams"), 60, 20, "KiB"),
    Target("memory of a stream that nobody reads", _memory("unread_streams"), 256, 256, "KiB"),
    Target("the same on the wire", _memory("unread_streams", is_wire=True), 256, 256, "KiB"),
)


def main() -> int:
    """Keeps the figures and rewrites the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--name", required=True, help="of the report, such as its day")
    given = parser.parse_args()
    kept = _read(given.files)
    FOLDER.mkdir(exist_ok=True)
    whole = {"rows": kept.rows, "streams": kept.streams}
    (FOLDER / f"{given.name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    (FOLDER / f"{given.name}.svg").write_text("\n".join(_plot(kept)) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    text = "\n".join(_page(kept, given.name))
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    return 0


def _read(files: Sequence[Path]) -> Kept:
    rows: list[Row] = []
    streams: list[Row] = []
    for path in files:
        text = path.read_text()
        if text.startswith(('{"idle_streams"', '{"unread_streams"')):
            streams += [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        else:
            rows += [row for row in json.loads(text)["rows"] if row["foreign_cores"] <= MAX_FOREIGN_CORES]
    return Kept(rows, streams)


def _page(kept: Kept, name: str) -> Iterator[str]:
    yield f"Kept as [performance/{name}.json](performance/{name}.json)."
    yield ""
    yield "| target | must | aim | measured: median (range) | rounds | |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for target in TARGETS:
        found = target.measured(kept)
        if found:
            yield f"| {target.says} | {_cells(target, found)} |"
    yield ""
    yield f"![Processor time of each gateway]({FOLDER.name}/{name}.svg)"
    if (FOLDER / FLAMES[1]).exists():
        before, after = (f"{FOLDER.name}/{flame}" for flame in FLAMES)
        yield f"\nWhere a worker's time goes under pace64: [before]({before}) and [after]({after})"
        yield "what is listed below (`python -m benchmarks.flame`; wide is dear, click to look closer)."
    for test in dict.fromkeys(row["test"] for row in kept.rows):
        yield f"\n**{test}**: {TESTS[test].says}\n"
        yield "| gateway | CPU ms: median (range) | ours by it | others ms | first byte ms | late ms |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for row in medians(kept.rows, test):
            if row["target"] != "direct":
                yield _line(row)


def _cells(target: Target, found: Sequence[float]) -> str:
    must, aim, median = (
        _shown(target, value) for value in (target.must, target.aim, statistics.median(found))
    )
    spread = f"{median} ({_shown(target, min(found))} to {_shown(target, max(found))})"
    return f"{must} | {aim} | {spread} | {len(found)} | {_verdict(target, found)}"


def _verdict(target: Target, found: Sequence[float]) -> str:
    median, worst = statistics.median(found), max(found)
    if median > target.must:
        return "**missed**"
    if worst > target.must:
        return "reached in the middle, **not in every round**"
    return "aim reached" if median <= target.aim else "reached"


def _shown(target: Target, value: float) -> str:
    if target.unit:
        return f"{value:.2f} {target.unit}"
    return f"1/{1 / value:.1f}" if value < 1 else f"{value:.2f}"


def _line(row: Row) -> str:
    low, high = row["cpu_ms_range"] or (0, 0)
    cells = [row["target"], f"{row['cpu_ms']:.2f} ({low:.2f} to {high:.2f})" if row["cpu_ms"] else "-"]
    for name in ("ratio_of_ours", "others_cpu_ms", "first_byte_ms", "late_ms"):
        cells.append("-" if row[name] is None else f"{row[name]:.2f}")
    return f"| {' | '.join(cells)} |"


def _plot(kept: Kept) -> Iterator[str]:
    """Gives an SVG: for each test a bar per gateway, by its processor time, on a scale of its own."""
    bars: list[tuple[str, str, float, float]] = []
    for test in dict.fromkeys(row["test"] for row in kept.rows):
        found = [row for row in medians(kept.rows, test) if row["cpu_ms"]]
        most = max((row["cpu_ms"] for row in found), default=1.0)
        bars += [(test, row["target"], row["cpu_ms"], row["cpu_ms"] / most) for row in found]
    height = (_BAR + _GAP) * (len(bars) + 1)
    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
    yield ' font-family="sans-serif" font-size="12">'
    yield f'<rect width="{_WIDTH}" height="{height}" fill="white"/>'
    for number, (test, name, cost, share) in enumerate(bars):
        top = _GAP + number * (_BAR + _GAP)
        width = share * (_WIDTH - _LEFT - 90)
        yield f'<text x="{_LEFT - 8}" y="{top + 12}" text-anchor="end">{escape(f"{test}  {name}")}</text>'
        fill = _COLOURS.get(name, _OTHERS)
        yield f'<rect x="{_LEFT}" y="{top}" width="{width:.1f}" height="{_BAR}" fill="{fill}"/>'
        yield f'<text x="{_LEFT + width + 6:.1f}" y="{top + 12}">{cost:.2f} ms</text>'
    yield "</svg>"


if __name__ == "__main__":
    sys.exit(main())
