"""`lurus ask`: one prompt, over gRPC, streamed to the terminal."""

import json
import sys
from typing import Annotated

import typer

from lurus.routing.v1 import routing_pb2 as pb
from lurus.usage.v1 import usage_pb2
from lurus_switch.amounts import usd
from lurus_switch.asking import Answer, read_answer, request_of
from lurus_switch.commands.options import AsJson, DataDir, Dialect
from lurus_switch.connect import DEFAULT_MODEL
from lurus_switch.failures import FAILED, CommandFailed
from lurus_switch.mesh import Mesh, run
from lurus_switch.output import all_input, enum_word, to_json

app = typer.Typer(rich_markup_mode=None, add_completion=False)

MAX_PROMPT_CHARACTERS = 1_000_000
DEADLINE_SECONDS = 3600.0


@app.command()
def ask(
    prompt: Annotated[str, typer.Argument(help="What to say; `-` reads it from standard input.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Whom to ask.")] = DEFAULT_MODEL,
    dialect: Dialect = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Output tokens at most.")] = 4096,
    key: Annotated[
        str | None,
        typer.Option(
            envvar="LURUS_API_KEY", show_envvar=True, help="API key; the mesh's first one if not said."
        ),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Sends one prompt and streams the answer; what it used is told on standard error.

    Goes over gRPC the way every request goes: key, plan, lease, provider,
    ledger. Without --dialect it uses one that a provider of the model speaks.

    \b
    Examples:
        lurus ask "say hello"
        git diff | lurus ask - --model claude-sonnet-5
        lurus ask "2 + 2?" --json | jq .text
    """
    text = sys.stdin.read(MAX_PROMPT_CHARACTERS) if prompt == "-" else prompt
    if not text.strip():
        raise typer.BadParameter("the prompt is empty")

    async def command(mesh: Mesh) -> None:
        api_key = mesh.place.api_key(key)
        routing = mesh.routing_for(api_key)
        wanted = usage_pb2.Dialect.ValueType(dialect or 0)
        if not wanted:
            served = await routing.ListModels(pb.ListModelsRequest())
            wanted = choose_dialect(model, served)
        request = request_of(wanted, model, text, max_tokens, api_key)
        parts = routing.Relay(request, timeout=DEADLINE_SECONDS)
        answer = await read_answer(wanted, parts, _write_nothing if as_json else _write)
        _finish(answer, as_json)

    run(command, data_dir)


def choose_dialect(model: str, served: pb.ListModelsResponse) -> usage_pb2.Dialect.ValueType:
    """Returns a dialect in which somebody serves the model; a likely one if it is not in the list."""
    spoken = next((row.dialects for row in served.models if row.model_id == model), None)
    if spoken:
        return spoken[0]
    is_claude = model.startswith("claude")
    return usage_pb2.DIALECT_ANTHROPIC if is_claude else usage_pb2.DIALECT_OPENAI_CHAT


def _write(text: str) -> None:
    shown = text
    if sys.stdout.isatty():
        # A model may have been talked into writing what a terminal obeys.
        shown = "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)
    sys.stdout.write(shown)
    sys.stdout.flush()


def _write_nothing(text: str) -> None:
    return None


def _finish(answer: Answer, as_json: bool) -> None:
    if as_json:
        end = json.loads(to_json(answer.end)) if answer.end else None
        shown = {
            "request_id": answer.request_id,
            "status": answer.status,
            "text": answer.text,
            "error": answer.error,
            "end": end,
        }
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    elif answer.text:
        print()
    if answer.end is not None and not as_json:
        print(_usage_line(answer), file=sys.stderr)
    if answer.error or answer.end is None:
        error = answer.error or "the answer was cut"
        raise CommandFailed(f"{error} [HTTP {answer.status}, {answer.request_id}]", exit_code=FAILED)


def _usage_line(answer: Answer) -> str:
    end = answer.end
    assert end is not None
    pieces = [
        f"{all_input(end.tokens)} in, {end.tokens.output} out",
        usd(end.cost_nano_usd),
        f"{end.provider_id or 'nobody'} ({end.upstream_model})" if end.provider_id else "no provider",
        enum_word(usage_pb2.Terminal.DESCRIPTOR, end.terminal),
        f"{answer.first_text_seconds * 1000:.0f} ms to the first word" if answer.first_text_seconds else "",
        answer.request_id,
    ]
    return " · ".join(filter(None, pieces))
