"""`lurus doctor`."""

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from lurus_switch.commands.options import AsJson, DataDir
from lurus_switch.examination import (
    Finding,
    Setting,
    Verdict,
    all_settings,
    local_findings,
    ok,
    problem,
)
from lurus_switch.failures import FAILED, OK
from lurus_switch.output import Column, clean, print_table
from lurus_switch.places import Place

if TYPE_CHECKING:
    from lurus_switch.mesh_health import Probe

app = typer.Typer(rich_markup_mode=None, add_completion=False)

REMEDIES = {
    "service": "`lurus status` shows whether its process runs; its log is in the data directory, logs/.",
    "ready": "It waits for what is named; `lurus up` starts it again if it dies.",
    "store": "If `lurus up` started it: see its log in the data directory, logs/. Else check its URL.",
    "http": "See logs/gateway.log and logs/sandbox.log in the data directory.",
}
_MARKS = {
    Verdict.OK: ("ok  ", "green"),
    Verdict.WARNING: ("warn", "yellow"),
    Verdict.PROBLEM: ("FAIL", "red"),
}


@app.command()
def doctor(
    settings: Annotated[
        bool, typer.Option("--settings", help="List all settings with their defaults.")
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Looks at Python, programs, settings, ports, disk and every service and store, and says what to do.

    Ends with 1 if something does not work.
    """
    if settings:
        return _print_settings(all_settings(os.environ), as_json)
    findings = list(local_findings(data_dir, os.environ))
    if all(finding.subject != "settings" or finding.verdict is Verdict.OK for finding in findings):
        findings += mesh_findings(Place.here(data_dir))
    if as_json:
        shown = [
            {"verdict": row.verdict, "subject": row.subject, "text": row.text, "remedy": row.remedy}
            for row in findings
        ]
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        _print(findings)
    has_failed = any(finding.verdict is Verdict.PROBLEM for finding in findings)
    raise typer.Exit(FAILED if has_failed else OK)


def mesh_findings(place: Place) -> list[Finding]:
    """Asks every service and store of a running mesh."""
    if place.run is None or not place.run.is_alive:
        return []
    # Only now: this needs gRPC.
    from lurus_switch.mesh import Mesh, run
    from lurus_switch.mesh_health import Health, mesh_health

    found: list[Health] = []

    async def command(mesh: Mesh) -> None:
        found.append(await mesh_health(mesh))

    run(command, place.data_dir)
    probes = map(_of_probe, found[0].probes)
    restarts = [
        problem(
            f"process {row.name}",
            f"was restarted {row.restarts} times; last: {row.last_exit}",
            f"See {row.log_path}",
        )
        for row in place.run.processes
        if row.restarts
    ]
    return [*probes, *restarts]


def _of_probe(row: "Probe") -> Finding:
    subject = f"{row.name} ({row.kind})"
    if row.problem:
        return problem(subject, f"{row.address}: {row.problem}", REMEDIES[row.kind])
    return ok(subject, f"{row.address} answers in {(row.latency_seconds or 0) * 1000:.1f} ms")


def _print(findings: Sequence[Finding]) -> None:
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark, colour = _MARKS[finding.verdict]
        typer.secho(mark, fg=colour, nl=False)
        print(f"  {finding.subject.ljust(width)}  {clean(finding.text)}", flush=True)
        if finding.remedy:
            print(f"      {' ' * width}  → {finding.remedy}")
    count = sum(finding.verdict is Verdict.PROBLEM for finding in findings)
    print(f"\n{count} problem{'s' if count != 1 else ''}", file=sys.stderr)


def _print_settings(settings: Sequence[Setting], as_json: bool) -> None:
    if not as_json:
        return print_table(_SETTING_COLUMNS, settings, "")
    rows = [
        {"name": row.name, "value": row.value, "default": row.default, "is_set": row.is_set}
        for row in settings
    ]
    return print(json.dumps(rows, indent=2))


_SETTING_COLUMNS: list[Column[Setting]] = [
    ("SETTING", lambda row: row.name),
    ("VALUE", lambda row: row.value),
    ("DEFAULT", lambda row: row.default),
    ("FROM", lambda row: "environment" if row.is_set else ""),
]
