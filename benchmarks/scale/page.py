"""Writes kept figures into `docs/scale.md`: tables, a plot, and what became of the soak."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plots import Points, plots

PAGE = Path("docs/scale.md")
BEGIN, END = "<!-- figures: python -m benchmarks.scale --page -->", "<!-- end of figures -->"
PLOT, SOAK, SOAK_PLOT = "scale.svg", "soak.json", "soak.svg"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """How rows of a kind are shown: columns by their titles, and what is drawn against `x`."""

    title: str
    axis: str
    columns: dict[str, str]
    drawn: str
    drawn_title: str
    # Tells the lines of a plot apart; what has too many is not drawn.
    line: str = "line"


_LOAD = {"CPU ms a request": "cpu_ms", "others ms": "others_cpu_ms", "a second": "per_second"}
_END = {"errors": "errors", "foreign cores": "foreign_cores"}
KINDS = {
    "streams": Kind(
        "Open streams, a chunk a second each",
        "streams",
        {
            "cores": "cores",
            "cores by 1,000": "cores_per_1000",
            "MiB": "rss_mib",
            "first byte ms": "first_byte_ms.p50",
            "late ms p50": "chunk_late_ms.p50",
            "p99": "chunk_late_ms.p99",
            **_END,
        },
        "cores",
        "cores of the worker by open streams",
    ),
    "bodies": Kind(
        "Request bodies",
        "bytes",
        {"": "line", **_LOAD, "first byte ms": "first_byte_ms.p50", "MiB": "rss_mib", **_END},
        "cpu_ms",
        "CPU ms a request by bytes of its body",
    ),
    "keys": Kind(
        "Keys that take turns",
        "keys",
        {**_LOAD, "made a second": "made_per_second", "MiB": "rss_mib", **_END},
        "cpu_ms",
        "CPU ms a request by keys",
    ),
    "providers": Kind(
        "Providers: a model of one of them, a model of all",
        "providers",
        {"": "line", **_LOAD, "first byte ms": "first_byte_ms.p50", "MiB": "rss_mib", **_END},
        "cpu_ms",
        "CPU ms a request by providers",
    ),
    "changes": Kind(
        "A change of one provider among them",
        "providers",
        {
            "CPU ms of the worker": "cpu_ms",
            "of the service": "others_cpu_ms",
            "worst ms of change and call": "worst_ms",
            "foreign cores": "foreign_cores",
        },
        "cpu_ms",
        "CPU ms of the worker for a change, by providers",
    ),
    "memory": Kind(
        "Memory of a worker by plain requests",
        "requests",
        {"RSS MiB": "rss_mib", "own MiB": "uss_mib", "CPU ms a request": "cpu_ms", **_END},
        "rss_mib",
        "",
    ),
    "logs": Kind(
        "Rows of the request log: what is asked of it",
        "rows",
        {"question": "line", "p50 ms": "p50_ms", "p95 ms": "p95_ms", "foreign cores": "foreign_cores"},
        "p95_ms",
        "",
    ),
    "day": Kind(
        "A part of a day at 50 requests a second (4,320,000 events), as fast as it goes",
        "events",
        {
            "published a second": "published_per_second",
            "billing a second": "billing_per_second",
            "log a second": "log_per_second",
            "hours for a day": "hours_of_a_day",
            "cores at 50 a second": "cores_at_50",
            **_END,
        },
        "cores_at_50",
        "",
    ),
}


def write(folder: Path) -> None:
    """Rewrites the page with all `scale-*.json` and the soak of a folder."""
    rows = [
        row for path in sorted(folder.glob("scale-*.json")) for row in json.loads(path.read_text())["rows"]
    ]
    charts = [
        (kind.drawn_title, kind.axis, _lines(_of(rows, name), kind), True)
        for name, kind in KINDS.items()
        if kind.drawn_title and _of(rows, name)
    ]
    (folder / PLOT).write_text(plots(charts))
    parts = list(_tables(rows, folder))
    if (folder / SOAK).exists():
        parts += _soak(json.loads((folder / SOAK).read_text()), folder)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    text = "\n".join(parts)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def _of(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["what"] == name]


def _lines(rows: Sequence[Row], kind: Kind) -> dict[str, Points]:
    names = dict.fromkeys(row.get(kind.line, "") for row in rows)
    return {
        name: [
            (row["x"], row[kind.drawn]) for row in rows if row.get(kind.line, "") == name and row[kind.drawn]
        ]
        for name in names
    }


def _tables(rows: Sequence[Row], folder: Path) -> Iterator[str]:
    yield f"![Costs as things grow]({folder.name}/{PLOT})"
    for name, kind in KINDS.items():
        found = _of(rows, name)
        if not found:
            continue
        yield f"\n**{kind.title}**\n"
        yield f"| {' | '.join([kind.axis, *kind.columns])} |"
        yield f"|{' --- |' * (len(kind.columns) + 1)}"
        for row in found:
            cells = [_shown(row["x"]), *(_shown(_field(row, place)) for place in kind.columns.values())]
            yield f"| {' | '.join(cells)} |"


def _field(row: Row, place: str) -> Any:
    found: Any = row
    for name in place.split("."):
        found = (found or {}).get(name)
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def _soak(found: Row, folder: Path) -> Iterator[str]:
    load = f"{found['seconds']:.0f} s at {found['rate']:g} clients a second, seed {found['seed']}"
    yield f"\n**The soak**: {load}\n"
    verdict = "everything came back" if found["is_clean"] else "**not clean**"
    settled = found["settled_seconds"]
    yield (
        f"{sum(found['outcomes'].values()):,} clients, {sum(found['faults'].values())} faults "
        f"({', '.join(f'{name} {count}' for name, count in sorted(found['faults'].items()))}), "
        f"{found['booked']:,} requests in the ledger, "
        f"{'not settled' if settled is None else f'all settled {settled} s after the last one'}; "
        f"the gateway took {found['cores']} cores, others here {found['foreign_cores']}: {verdict}.\n"
    )
    titles = (
        "process",
        "figure",
        "rest before",
        "most",
        "rest after",
        "allowed",
        "growth, last half",
        "allowed",
    )
    yield f"| {' | '.join(titles)} | |"
    yield f"|{' --- |' * 9}"
    for line in found["lines"]:
        figures = [line[name] for name in ("base", "most", "end", "allowed", "growth", "growth_allowed")]
        shown = ("-" if value is None else f"{value:.1f}" for value in figures)
        verdict = "ok" if line["is_ok"] else "**kept**"
        yield f"| {line['process']} | {line['figure']} | {' | '.join(shown)} | {verdict} |"
    yield f"\n![What the processes had over time]({folder.name}/{SOAK_PLOT})"
