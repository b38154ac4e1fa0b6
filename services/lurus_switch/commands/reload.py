"""`lurus reload`."""

import os
import signal
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from lurus_switch.commands.options import AsJson, DataDir
from lurus_switch.failures import UNREACHABLE, CommandFailed
from lurus_switch.places import ReloadRow, ReloadStep, RunFile, default_data_dir, read_run_file

POLL_SECONDS = 0.1
WAIT_SECONDS = 3600.0
MAX_WAIT_SECONDS = 86_400.0

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def reload(
    as_json: AsJson = False,
    data_dir: DataDir = None,
    wait: Annotated[
        float,
        typer.Option(min=0, max=MAX_WAIT_SECONDS, metavar="SECONDS", help="How long to wait for its end."),
    ] = WAIT_SECONDS,
) -> None:
    """Restarts the gateway's workers one after the other: nobody who calls meanwhile notices.

    A new worker serves before the old one stops taking connections. The old one ends
    when its streams have ended, at the latest after LURUS_DRAIN_SECONDS. Use it to
    run a version that has just been installed. SIGHUP to `lurus up` does the same,
    and nobody is told how it went.

    \b
    Examples:
        lurus reload
        lurus reload --json --wait 120
    """
    path = data_dir or default_data_dir(os.environ)
    before = _alive(path)
    number = before.reload.number if before.reload else 0
    os.kill(before.pid, signal.SIGHUP)
    row = _follow(path, number, wait, is_shown=not as_json)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(row), indent=2).decode())
    if row.problem:
        raise CommandFailed(
            f"the reload stopped: {row.problem}",
            remedy="The workers that were not replaced go on serving; `lurus status` shows them.",
        )


def _alive(path: Path) -> RunFile:
    run = read_run_file(path)
    if run is None or not run.is_alive:
        raise CommandFailed(
            f"no mesh of `lurus up` runs in {path}",
            remedy="Start one with `lurus up`, or name its directory with --data-dir.",
            exit_code=UNREACHABLE,
        )
    return run


def _follow(path: Path, number: int, seconds: float, *, is_shown: bool) -> ReloadRow:
    """Waits for the end of the first reload after `number`, and returns it; prints what happens meanwhile."""
    deadline = time.monotonic() + seconds
    shown: dict[str, str] = {}
    while True:
        row = _alive(path).reload
        if row is not None and row.number > number:
            for step in row.steps if is_shown else ():
                if shown.get(step.process) != step.state:
                    shown[step.process] = step.state
                    _print(step)
            if row.end_time is not None:
                return row
        if time.monotonic() > deadline:
            raise CommandFailed(
                f"the reload has not ended after {seconds:g} s; it goes on",
                remedy="`lurus status` shows the workers.",
            )
        time.sleep(POLL_SECONDS)


def _print(step: ReloadStep) -> None:
    match step.state:
        case "starting":
            print(f"{step.process}: starting beside process {step.old_pid}", flush=True)
        case "draining":
            print(
                f"{step.process}: process {step.new_pid} serves after {step.ready_seconds or 0:.1f} s, "
                f"{step.old_pid} finishes its streams",
                flush=True,
            )
        case "done":
            print(f"{step.process}: done after {step.drained_seconds or 0:.1f} s", flush=True)
        case "failed":
            print(f"{step.process}: failed", flush=True)
