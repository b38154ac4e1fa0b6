"""`lurus provider`: upstream accounts."""

from typing import Annotated

import typer

from lurus.provider.v1 import provider_pb2 as pb
from lurus.usage.v1 import usage_pb2
from lurus_switch.commands import fields, options
from lurus_switch.commands.options import AsJson, DataDir, Dialect, Yes
from lurus_switch.commands.provider_fields import Fields
from lurus_switch.failures import FAILED, UNREACHABLE
from lurus_switch.mesh import Mesh, run, whole_list
from lurus_switch.output import (
    Column,
    enum_word,
    local_time,
    print_fields,
    print_json,
    print_table,
    short_duration,
)

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True)

DEFAULT_CREDENTIAL = "default"
_PPM = 1_000_000

Id = Annotated[str, typer.Argument(metavar="PROVIDER", help="Its id, a slug such as `anthropic`.")]
SecretStdin = Annotated[bool, typer.Option("--secret-stdin", help="Read the secret from standard input.")]
SecretEnv = Annotated[
    str | None, typer.Option(metavar="NAME", help="Read the secret from this environment variable.")
]
CredentialId = Annotated[str, typer.Option("--credential", metavar="ID", help="Which credential it is.")]


@app.callback()
def provider() -> None:
    """Upstream accounts: who answers, for which models, with which credentials.

    \b
    Examples:
        lurus provider create anthropic --base-url https://api.anthropic.com \\
            --dialect anthropic --model 'claude-*' --secret-env ANTHROPIC_API_KEY
        lurus provider create local --base-url http://127.0.0.1:11434 \\
            --dialect openai_chat --map 'gpt-*=llama3' --level 5
        lurus provider check anthropic
        lurus provider match claude-sonnet-5
    """


@app.command("list")
def list_providers(
    tag: Annotated[str, typer.Option(help="Only those with this tag.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Lists providers by level, then id."""

    async def command(mesh: Mesh) -> None:
        request = pb.ListProvidersRequest(tag=tag)
        found = await whole_list(mesh.provider.ListProviders, request, pb.ListProvidersResponse())
        if as_json:
            return print_json(found)
        return print_table(_COLUMNS, found.providers, "no providers; add one with `lurus provider create`")

    run(command, data_dir)


@app.command()
def show(provider_id: Id, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Shows one provider, without its secrets."""

    async def command(mesh: Mesh) -> None:
        found = await mesh.provider.GetProvider(pb.GetProviderRequest(provider_id=provider_id))
        _show(found.provider, as_json)

    run(command, data_dir)


@app.command()
@fields.flattened
def create(
    provider_id: Id,
    given: Fields,
    credential: CredentialId = DEFAULT_CREDENTIAL,
    secret_stdin: SecretStdin = False,
    secret_env: SecretEnv = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Adds a provider.

    Without --model and --map it serves every model. The secret is asked for
    unless --secret-env or --secret-stdin tells where it is; it is sealed and never shown again. For a
    server that needs none, give any word.
    """
    message = pb.Provider(provider_id=provider_id)
    paths = fields.fill(message, given)
    if not {"base_url", "dialects"} <= set(paths):
        raise typer.BadParameter("--base-url and --dialect are needed")
    secret = options.read_secret(f"Secret of {provider_id}", secret_stdin, secret_env)
    message.credentials.add(credential_id=credential, secret=secret)

    async def command(mesh: Mesh) -> None:
        created = await mesh.provider.CreateProvider(pb.CreateProviderRequest(provider=message))
        _show(created.provider, as_json)

    run(command, data_dir)


@app.command()
@fields.flattened
def update(
    provider_id: Id,
    given: Fields,
    credential: CredentialId = DEFAULT_CREDENTIAL,
    secret_stdin: SecretStdin = False,
    secret_env: SecretEnv = None,
    drop_credential: Annotated[str, typer.Option(metavar="ID", help="Remove this credential.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Changes what is given, and nothing else.

    A list (--model, --map, --dialect, --tag, --drop-param, --set-param) replaces the whole list; one empty
    value empties it. A secret goes to the credential that --credential names, which is added if there
    is none of that name. Another origin of --base-url needs the secret again.

    \b
    Examples:
        lurus provider update anthropic --level 2
        lurus provider update anthropic --secret-env NEW_KEY
        lurus provider update anthropic --credential second --secret-stdin < key.txt
    """
    change = pb.Provider(provider_id=provider_id)
    paths = fields.fill(change, given)
    secret = options.read_secret("Secret", secret_stdin, secret_env, is_needed=False)

    async def command(mesh: Mesh) -> None:
        if secret or drop_credential:
            found = await mesh.provider.GetProvider(pb.GetProviderRequest(provider_id=provider_id))
            change.credentials.extend(
                changed_credentials(found.provider, credential, secret, drop_credential)
            )
            paths.append("credentials")
        request = fields.masked(pb.UpdateProviderRequest(provider=change), paths)
        updated = await mesh.provider.UpdateProvider(request)
        _show(updated.provider, as_json)

    run(command, data_dir)


def changed_credentials(found: pb.Provider, name: str, secret: str, dropped: str) -> list[pb.Credential]:
    """Returns a provider's credentials with one more or another secret, and without the dropped one.

    Those left alone have no secret here, which keeps the stored one.
    """
    kept = {
        row.credential_id: pb.Credential(credential_id=row.credential_id, is_disabled=row.is_disabled)
        for row in found.credentials
    }
    if dropped and kept.pop(dropped, None) is None:
        raise typer.BadParameter(f"{found.provider_id} has no credential {dropped!r}")
    if secret:
        kept.setdefault(name, pb.Credential(credential_id=name)).secret = secret
    return list(kept.values())


@app.command()
def delete(provider_id: Id, yes: Yes = False, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Deletes a provider and its credentials."""
    options.confirm(f"Delete the provider {provider_id} and its credentials?", yes)

    async def command(mesh: Mesh) -> None:
        deleted = await mesh.provider.DeleteProvider(pb.DeleteProviderRequest(provider_id=provider_id))
        return print_json(deleted) if as_json else print(f"{provider_id} is deleted")

    run(command, data_dir)


@app.command()
def check(provider_id: Id, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Asks a provider whether it answers and takes each credential, without using tokens.

    Ends with 1 if it takes none of them.
    """

    async def command(mesh: Mesh) -> None:
        request = pb.CheckHealthRequest(provider_id=provider_id)
        found = await mesh.provider.CheckHealth(request, timeout=60)
        if as_json:
            print_json(found)
        else:
            print_table(_HEALTH_COLUMNS, found.credentials, "it has no credential that is enabled")
        if not found.is_healthy:
            is_silent = all(not row.http_status for row in found.credentials)
            raise typer.Exit(UNREACHABLE if is_silent else FAILED)

    run(command, data_dir)


@app.command()
def match(
    model: Annotated[str, typer.Argument(help="As a client would ask for it.")],
    dialect: Dialect = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Lists who serves a model, and under which name; `lurus explain` also knows who is benched."""

    async def command(mesh: Mesh) -> None:
        wanted = usage_pb2.Dialect.ValueType(dialect or 0)
        found = await mesh.provider.MatchModel(pb.MatchModelRequest(model=model, dialect=wanted))
        if as_json:
            return print_json(found)
        return print_table(_MATCH_COLUMNS, found.matches, f"nobody serves {model}")

    run(command, data_dir)


def _show(message: pb.Provider, as_json: bool) -> None:
    if as_json:
        return print_json(message)
    credentials = [
        row.credential_id
        + (f" (…{row.last_four})" if row.last_four else "")
        + (" (disabled)" if row.is_disabled else "")
        for row in message.credentials
    ]
    limits, factor = message.limits, message.cost_multiplier_ppm
    return print_fields(
        [
            ("id", message.provider_id),
            ("name", message.display_name),
            ("base URL", message.base_url),
            ("dialects", _dialects(message)),
            ("models", _models(message)),
            ("level", str(message.level or 1)),
            ("weight", str(message.weight or 100)),
            ("multiplier", f"{factor / _PPM:g}" if factor not in (0, _PPM) else ""),
            ("credentials", ", ".join(credentials)),
            ("tags", ", ".join(message.tags)),
            ("connect timeout", short_duration(limits, "connect_timeout")),
            ("first event timeout", short_duration(limits, "first_event_timeout")),
            ("thinking timeout", short_duration(limits, "thinking_timeout")),
            ("idle timeout", short_duration(limits, "idle_timeout")),
            ("stream timeout", short_duration(limits, "stream_total_timeout")),
            ("plain timeout", short_duration(limits, "unary_total_timeout")),
            ("probes", "no" if limits.no_probes else ""),
            ("concurrency", str(limits.max_concurrency or "")),
            ("quirks", _quirks(message.quirks)),
            ("when a client leaves", "drain" if message.on_disconnect == pb.ON_DISCONNECT_DRAIN else ""),
            ("left out", ", ".join(message.quirks.dropped_params)),
            ("written in", ", ".join(f"{row.name}={row.json}" for row in message.quirks.set_params)),
            ("enabled", "no" if message.is_disabled else "yes"),
            ("changed", local_time(message, "update_time")),
        ]
    )


def _quirks(quirks: pb.ProviderQuirks) -> str:
    words = [
        "no stream_options" if quirks.no_stream_options else "",
        "streams only" if quirks.wants_streams else "",
    ]
    return ", ".join(filter(None, words))


def _dialects(message: pb.Provider) -> str:
    return ", ".join(enum_word(usage_pb2.Dialect.DESCRIPTOR, number) for number in message.dialects)


def _models(message: pb.Provider) -> str:
    mapped = [f"{row.model} → {row.upstream_model}" for row in message.model_mappings]
    return ", ".join([*message.supported_models, *mapped]) or "every model"


_COLUMNS: list[Column[pb.Provider]] = [
    ("ID", lambda row: row.provider_id),
    ("LEVEL", lambda row: str(row.level or 1)),
    ("DIALECTS", _dialects),
    ("MODELS", _models),
    ("BASE URL", lambda row: row.base_url),
    ("CREDENTIALS", lambda row: str(len(row.credentials))),
    ("ENABLED", lambda row: "no" if row.is_disabled else "yes"),
]
_HEALTH_COLUMNS: list[Column[pb.CredentialHealth]] = [
    ("CREDENTIAL", lambda row: row.credential_id),
    ("HEALTHY", lambda row: "yes" if row.is_healthy else "no"),
    ("STATUS", lambda row: str(row.http_status or "")),
    ("LATENCY", lambda row: short_duration(row, "latency_duration")),
    ("DETAIL", lambda row: row.detail),
]
_MATCH_COLUMNS: list[Column[pb.MatchedProvider]] = [
    ("PROVIDER", lambda row: row.provider.provider_id),
    ("LEVEL", lambda row: str(row.provider.level or 1)),
    ("DIALECTS", lambda row: _dialects(row.provider)),
    ("ASKED FOR", lambda row: row.upstream_model),
    ("RULE", lambda row: row.rule or "every model"),
]
