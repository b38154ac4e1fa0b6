"""`lurus serve`."""

import os
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)

NAMES = ("gateway", "edge", "routing", "provider", "billing", "log", "sandbox")


def _target(name: str) -> str:
    if name not in NAMES:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(NAMES)}")
    return name


@app.command()
def serve(
    target: Annotated[str, typer.Argument(callback=_target, metavar="TARGET", help=" | ".join(NAMES))],
    routing: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="For the edge: where RoutingService listens.")
    ] = "",
) -> None:
    """Starts one service and drains it on SIGTERM; settings come from LURUS_* variables.

    `gateway` is edge and routing in one process, which is five times cheaper than
    the two of them apart. `lurus doctor --settings` lists all settings.

    \b
    Examples:
        lurus serve gateway
        lurus serve edge --routing routing.internal:18104
    """
    from lurus_switch import targets

    raise typer.Exit(targets.serve(target, os.environ, routing))
