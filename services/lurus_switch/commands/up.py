"""`lurus up`."""

from typing import Annotated

import typer

from lurus_switch.commands.options import DataDir
from lurus_switch.mesh_plan import AUTO, MAX_WORKERS
from lurus_switch.places import default_data_dir

HIGHEST_BASE_PORT = 64000

app = typer.Typer(rich_markup_mode=None, add_completion=False)


def _port(text: str) -> str:
    if text != AUTO and not (text.isdecimal() and 0 < int(text) <= HIGHEST_BASE_PORT):
        raise typer.BadParameter(f"write a number up to {HIGHEST_BASE_PORT}, or {AUTO}")
    return text


@app.command()
def up(
    data_dir: DataDir = None,
    port: Annotated[
        str | None,
        typer.Option(
            callback=lambda text: text and _port(text),
            metavar="PORT",
            help="Of the edge; the others follow it. `auto`: any that are free.",
            show_default="18100",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=MAX_WORKERS, help="Gateway processes; each uses one core.")
    ] = 1,
) -> None:
    """Starts the whole mesh on this machine and supervises it until Ctrl-C.

    PostgreSQL, NATS, Valkey and ClickHouse run as child processes in the data
    directory, each unless the settings name another one (LURUS_DATABASE_URL,
    LURUS_NATS_URL, LURUS_REDIS_URL, LURUS_CLICKHOUSE_URL). Prints the base URL, an API
    key and lines to copy. A process that dies is started again.

    \b
    Examples:
        lurus up
        lurus up --data-dir .lurus --workers 2
        lurus up --port 18200                  ports 18200 to 18205
        LURUS_DATABASE_URL=postgresql://me:secret@db/lurus lurus up
    """
    import os

    from lurus_switch.up import up as run_mesh

    raise typer.Exit(run_mesh(data_dir or default_data_dir(os.environ), port, workers))
