"""`lurus connect`."""

from typing import Annotated

import typer

from lurus_switch import connect as texts
from lurus_switch.commands.options import DataDir
from lurus_switch.places import Place

app = typer.Typer(rich_markup_mode=None, add_completion=False)

NAMES = " | ".join(texts.CLIENTS)


def _client(name: str) -> str:
    if name not in texts.CLIENTS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(texts.CLIENTS)}")
    return name


@app.command()
def connect(
    client: Annotated[str, typer.Argument(callback=_client, metavar="CLIENT", help=NAMES)],
    model: Annotated[str, typer.Option(help="That it should ask for.")] = texts.DEFAULT_MODEL,
    shell: Annotated[bool, typer.Option("--shell", help="Lines for `eval`, not to read.")] = False,
    key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Take the API key from this variable.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Prints how to point a client at this gateway: exactly what to set.

    With the first key of the mesh, or the one in LURUS_API_KEY; LURUS_BASE_URL
    replaces the address.

    \b
    Examples:
        lurus connect codex --model gpt-5.2
        eval "$(lurus connect claude-code --shell --model claude-sonnet-5)"; claude
        eval "$(lurus connect curl --shell)"; curl $LURUS_BASE_URL/v1/models -H "x-api-key: $LURUS_API_KEY"
    """
    from lurus_switch.commands.options import read_secret

    place = Place.here(data_dir)
    key = read_secret("", False, key_env) if key_env else place.api_key()
    text = texts.shell(client, place.base_url(), key, model) if shell else ""
    print(text or texts.CLIENTS[client](place.base_url(), key, model))
