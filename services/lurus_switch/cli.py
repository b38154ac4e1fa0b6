"""The command `lurus`.

Only the module of the command that is run is imported, so that `lurus --help`
and shell completion answer at once.
"""

import importlib
import sys
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from lurus_switch.failures import EXIT_CODES, CommandFailed

COMMANDS = "lurus_switch.commands"


@dataclass(frozen=True, slots=True)
class Entry:
    """A command: its module, and whether the whole module is a group of that name."""

    module: str
    help: str
    panel: str
    is_group: bool = False


_RUN, _SET_UP, _USE, _WATCH = "Run", "Set up", "Use", "Watch"
ENTRIES = {
    "up": Entry("up", "Starts the whole mesh here, stores included, and prints how to use it.", _RUN),
    "serve": Entry("serve", "Starts one service, for deployments.", _RUN),
    "reload": Entry("reload", "Restarts the gateway's workers one after the other, without a gap.", _RUN),
    "status": Entry("status", "Shows processes, services, stores, queues and breakers.", _RUN),
    "doctor": Entry("doctor", "Looks for what is wrong, and says what to do about it.", _RUN),
    "version": Entry("version", "Prints the version.", _RUN),
    "provider": Entry("provider", "Upstream accounts: who answers.", _SET_UP, True),
    "model": Entry("model", "The catalogue of models that clients see.", _SET_UP, True),
    "price": Entry("price", "What tokens cost, by date.", _SET_UP, True),
    "account": Entry("account", "Who pays.", _SET_UP, True),
    "key": Entry("key", "API keys of accounts.", _SET_UP, True),
    "connect": Entry("connect", "Prints how to point a client at this gateway.", _USE),
    "ask": Entry("ask", "Sends one prompt and streams the answer to the terminal.", _USE),
    "models": Entry("routes", "Lists the models that a key can use.", _USE),
    "explain": Entry("routes", "Tells where a request would go now, and why not elsewhere.", _WATCH),
    "routes": Entry("routes", "The state of every route: breakers, benches, latencies; live.", _WATCH),
    "logs": Entry("logs", "The request log: what was asked, who answered, what it cost.", _WATCH, True),
    "stats": Entry("stats", "Requests, errors, tokens, cost and latency, grouped.", _WATCH),
    "top": Entry("top", "An account's money and its requests, live.", _WATCH),
    "balance": Entry("money", "What an account has.", _WATCH),
    "quota": Entry("money", "Shows an account's caps, or sets them.", _WATCH),
    "transactions": Entry("money", "The ledger of an account, newest first.", _WATCH),
    "receipt": Entry("receipt", "What one request cost, and why.", _WATCH),
    "reconcile": Entry("reconcile", "Compares outboxes, bus, ledger and request log, and repairs.", _WATCH),
    "bill": Entry("bill", "Compares a provider's own report with what was metered.", _WATCH),
    "deadletter": Entry("deadletter", "Events that the ledger has set aside for a person.", _WATCH, True),
}


class LazyGroup(TyperGroup):
    """Knows its commands by name and help, and imports one when it is run."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns the names in the order of the help."""
        return list(ENTRIES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Returns what the help shows of a command."""
        entry = ENTRIES.get(cmd_name)
        return entry and TyperCommand(cmd_name, help=entry.help)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands under the titles of their panels."""
        for panel in dict.fromkeys(entry.panel for entry in ENTRIES.values()):
            rows = [(name, entry.help) for name, entry in ENTRIES.items() if entry.panel == panel]
            with formatter.section(panel):
                formatter.write_dl(rows, col_max=12)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the real command; a name that does not exist is a usage error with a suggestion."""
        self.commands = dict.fromkeys(ENTRIES)  # type: ignore[assignment]  # only the names are looked at
        name, command, rest = super().resolve_command(ctx, args)
        return (name, _load(name), rest) if name else (name, command, rest)


def _load(name: str) -> Any:
    entry = ENTRIES[name]
    group = typer.main.get_command(importlib.import_module(f"{COMMANDS}.{entry.module}").app)
    command = group if entry.is_group or not isinstance(group, TyperGroup) else group.commands[name]
    command.name = name
    return command


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)


@app.callback()
def lurus() -> None:
    """Lurus Switch: an LLM gateway for Claude Code, Codex and every OpenAI-compatible client.

    Begin with `lurus up`: it starts everything on this machine and prints a
    key and lines to copy. Then:

    \b
        lurus ask "say hello"                one prompt, streamed
        lurus logs                           that request, its tokens and its cost
        lurus connect claude-code            what to set in your client

    Commands find a running mesh by its data directory: --data-dir, else
    $LURUS_DATA_DIR, else ./.lurus, else ~/.lurus. A mesh elsewhere is named by
    LURUS_*_ADDRESS and LURUS_ADMIN_TOKEN. `--json` prints protobuf JSON.
    """


def main() -> int:
    """Runs the command line; returns the exit code."""
    try:
        app(prog_name="lurus")
    except CommandFailed as failed:
        print("\n".join(failed.lines()), file=sys.stderr)
        return failed.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return 0
