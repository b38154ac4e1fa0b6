"""What can be said of a provider on the command line."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from lurus.provider.v1 import provider_pb2 as pb
from lurus_switch.commands import fields, options


def _mapping(text: str) -> pb.ModelMapping:
    model, equals, upstream = text.partition("=")
    if not (model and equals and upstream):
        raise ValueError(f"{text!r} is not MODEL=UPSTREAM")
    return pb.ModelMapping(model=model, upstream_model=upstream)


def _on_disconnect(text: str) -> int:
    words = {"cancel": pb.ON_DISCONNECT_CANCEL, "drain": pb.ON_DISCONNECT_DRAIN}
    if text not in words:
        raise ValueError(f"{text!r} is neither cancel nor drain")
    return words[text]


def _endpoint(text: str) -> int:
    words = {"completions": pb.EXTRA_ENDPOINT_COMPLETIONS, "embeddings": pb.EXTRA_ENDPOINT_EMBEDDINGS}
    if text not in words:
        raise ValueError(f"{text!r} is neither completions nor embeddings")
    return words[text]


def _set_param(text: str) -> pb.SetParam | str:
    name, equals, value = text.partition("=")
    if text and not (name and equals and value):
        raise ValueError(f"{text!r} is not FIELD=JSON")
    return pb.SetParam(name=name, json=value) if text else ""


def _seconds(name: str, what: str) -> Any:
    return typer.Option(name, parser=options.parser(fields.seconds), metavar="SECONDS", help=what)


@dataclass
class Fields:
    """What can be said of a provider."""

    base_url: Annotated[
        str | None,
        typer.Option("--base-url", metavar="URL", help="Without /v1, e.g. https://api.anthropic.com."),
    ] = None
    dialects: Annotated[
        list[Any] | None,
        typer.Option(
            "--dialect",
            parser=options.dialect_parser,
            metavar="DIALECT",
            help="anthropic, openai_chat, openai_responses; repeat for several.",
        ),
    ] = None
    supported_models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="PATTERN", help="Serves this model: a name, or with one *. Repeat."),
    ] = None
    model_mappings: Annotated[
        list[Any] | None,
        typer.Option(
            "--map",
            parser=options.parser(_mapping),
            metavar="MODEL=UPSTREAM",
            help="Serves MODEL under the provider's own name. Repeat.",
        ),
    ] = None
    level: Annotated[
        int | None, typer.Option("--level", min=1, max=10, help="Lower is tried first; 1 if not said.")
    ] = None
    weight: Annotated[int | None, typer.Option("--weight", help="Share within a level; 100 if not said.")] = (
        None
    )
    cost_multiplier_ppm: Annotated[
        Any,
        typer.Option(
            "--multiplier", parser=options.ppm_parser, metavar="FACTOR", help="On the price, e.g. 1.25."
        ),
    ] = None
    tags: Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="Repeat for several.")] = None
    display_name: Annotated[str | None, typer.Option("--name", help="For people.")] = None
    limits__connect_timeout: Annotated[
        Any, _seconds("--connect-timeout", "For the connection; 5 if not said.")
    ] = None
    limits__first_event_timeout: Annotated[
        Any, _seconds("--first-event-timeout", "From the call to the first byte; 60 if not said.")
    ] = None
    limits__idle_timeout: Annotated[
        Any, _seconds("--idle-timeout", "Between two bytes; 120 if not said.")
    ] = None
    limits__thinking_timeout: Annotated[
        Any,
        _seconds("--thinking-timeout", "To the first byte of a model that thinks first; 300 if not said."),
    ] = None
    limits__stream_total_timeout: Annotated[
        Any, _seconds("--stream-timeout", "For a whole stream; 3600 if not said.")
    ] = None
    limits__unary_total_timeout: Annotated[
        Any, _seconds("--plain-timeout", "For a whole answer that is no stream; 600 if not said.")
    ] = None
    limits__no_probes: Annotated[
        bool | None,
        typer.Option("--no-probes/--probes", help="Whether it is asked for its models while it rests."),
    ] = None
    limits__max_concurrency: Annotated[
        int | None, typer.Option("--max-concurrency", help="Calls at once; 0 means no limit.")
    ] = None
    quirks__no_stream_options: Annotated[
        bool | None,
        typer.Option("--no-stream-options/--stream-options", help="Whether it rejects `stream_options`."),
    ] = None
    on_disconnect: Annotated[
        Any,
        typer.Option(
            "--on-disconnect",
            parser=options.parser(_on_disconnect),
            metavar="cancel|drain",
            help="When a client leaves: cancel its stream, or read it on for 30 s so that usage is exact.",
        ),
    ] = None
    quirks__dropped_params: Annotated[
        list[str] | None,
        typer.Option(
            "--drop-param",
            metavar="FIELD",
            help="Leave this field out of requests, e.g. temperature. Repeat.",
        ),
    ] = None
    quirks__set_params: Annotated[
        list[Any] | None,
        typer.Option(
            "--set-param",
            parser=options.parser(_set_param),
            metavar="FIELD=JSON",
            help="Write this field into requests, e.g. service_tier='\"flex\"'. Repeat.",
        ),
    ] = None
    quirks__wants_streams: Annotated[
        bool | None,
        typer.Option(
            "--streams-only/--streams-or-plain",
            help="Whether it is asked for a stream even for a plain answer, which is put together of it.",
        ),
    ] = None
    extra_endpoints: Annotated[
        list[Any] | None,
        typer.Option(
            "--endpoint",
            parser=options.parser(_endpoint),
            metavar="completions|embeddings",
            help="Serves this endpoint of OpenAI's too. Repeat.",
        ),
    ] = None
    batch_account_ids: Annotated[
        list[str] | None,
        typer.Option(
            "--batch-account",
            metavar="ACCOUNT",
            help="May use its Message Batches, of which nothing is metered or charged. Repeat.",
        ),
    ] = None
    is_disabled: Annotated[
        bool | None, typer.Option("--disable/--enable", help="A disabled provider is never called.")
    ] = None
