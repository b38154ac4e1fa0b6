"""Options that many commands have, and how their values are read."""

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from google.protobuf.descriptor import EnumDescriptor

from lurus.usage.v1 import usage_pb2
from lurus_switch import amounts
from lurus_switch.output import enum_number

Value = TypeVar("Value")

_DIALECT_SHORTS = {"chat": "openai_chat", "responses": "openai_responses", "openai": "openai_chat"}
MAX_SECRET_CHARACTERS = 8192


def parser(read: Callable[[str], Value]) -> Callable[[Any], Any]:
    """Returns `read` as typer wants it: what it cannot read is a usage error."""

    def parse(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        try:
            return read(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    parse.__name__ = read.__name__
    return parse


def enum_parser(descriptor: EnumDescriptor) -> Callable[[Any], Any]:
    """Returns a parser of an enum's words: `anthropic` for DIALECT_ANTHROPIC."""
    return parser(lambda text: enum_number(descriptor, text))


def _dialect(text: str) -> int:
    return enum_number(usage_pb2.Dialect.DESCRIPTOR, _DIALECT_SHORTS.get(text, text))


def _earlier(text: str) -> datetime:
    return amounts.moment(text, datetime.now(UTC))


def _later(text: str) -> datetime:
    return amounts.later_moment(text, datetime.now(UTC))


dialect_parser = parser(_dialect)
nano_usd_parser = parser(amounts.nano_usd)
positive_nano_usd_parser = parser(amounts.positive_nano_usd)
ppm_parser = parser(amounts.parts_per_million)
earlier_parser = parser(_earlier)
later_parser = parser(_later)

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Directory of the mesh.", file_okay=False, show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print protobuf JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=0, max=100_000, help="Rows at most; 0 means all.")]
Dialect = Annotated[
    int | None,
    typer.Option(
        "--dialect",
        parser=dialect_parser,
        metavar="DIALECT",
        help="anthropic, openai_chat or openai_responses.",
    ),
]
MoneyOption = Annotated[int | None, typer.Option(parser=positive_nano_usd_parser, metavar="USD")]


def confirm(question: str, yes: bool) -> None:
    """Asks before something is gone for good.

    Raises:
        typer.Abort: the answer is no.
        typer.BadParameter: nobody can be asked, and `--yes` is missing.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("say --yes: nobody can be asked here")
    typer.confirm(question, abort=True)


def read_secret(what: str, from_stdin: bool, env_name: str | None, *, is_needed: bool = True) -> str:
    """Returns a secret from standard input, an environment variable, or a prompt that shows nothing.

    Returns an empty string if none of them is chosen and none is needed.
    """
    if env_name:
        secret = os.environ.get(env_name, "")
        if not secret:
            raise typer.BadParameter(f"the environment variable {env_name} is empty or not set")
    elif from_stdin:
        secret = sys.stdin.read(MAX_SECRET_CHARACTERS + 1)
    elif not is_needed:
        return ""
    elif sys.stdin.isatty():
        secret = typer.prompt(what, hide_input=True, err=True)
    else:
        raise typer.BadParameter("give the secret with --secret-stdin or --secret-env NAME")
    if not secret.strip() or len(secret) > MAX_SECRET_CHARACTERS:
        raise typer.BadParameter("the secret is empty or too long")
    return str(secret.strip())
