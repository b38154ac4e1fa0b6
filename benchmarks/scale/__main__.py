"""Measures what is asked for and keeps it, or writes the page of what was kept."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.scale import gateway, stores
from benchmarks.scale.gateway import Row, Say
from benchmarks.scale.page import write
from lurus_common.listening import raise_descriptor_limit

KINDS: dict[str, Callable[[Path, Say], None]] = {
    "streams": gateway.streams,
    "bodies": gateway.bodies,
    "keys": gateway.keys,
    "providers": gateway.providers,
    "memory": gateway.memory,
    "logs": stores.logs,
    "day": stores.day,
}
FOLDER = Path("docs/performance")


def main() -> int:
    """Measures, or writes the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--what", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--out", type=Path, help="a file for all; else docs/performance/scale-WHAT.json each")
    parser.add_argument("--page", action="store_true", help="measure nothing, write docs/scale.md")
    given = parser.parse_args()
    if given.page:
        write(FOLDER)
        return 0
    raise_descriptor_limit()
    every: list[Row] = []
    for what in given.what.split(","):
        rows: list[Row] = []

        def say(row: Row, rows: list[Row] = rows) -> None:
            rows.append(row)
            print(json.dumps(row), flush=True)

        with tempfile.TemporaryDirectory(prefix="lurus-scale-", ignore_cleanup_errors=True) as folder:
            KINDS[what](Path(folder) / "mesh", say)
        every += rows
        if given.out is None:
            _keep(FOLDER / f"scale-{what}.json", rows)
    if given.out is not None:
        _keep(given.out, every)
    return int(any(row["errors"] for row in every))


def _keep(path: Path, rows: list[Row]) -> None:
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{{"measured": "{datetime.now(UTC).isoformat()}", "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    sys.exit(main())
