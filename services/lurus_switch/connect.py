"""How to point clients at the gateway: text to copy, for each client.

Source: `wire-contract.md` D1 to D3 of the design notes, measured with Claude
Code 2.1.330, Codex 0.169.0 and the SDKs.
"""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

from lurus_switch.places import default_data_dir

DEFAULT_MODEL = "sandbox-text"
ENV_KEY = "LURUS_API_KEY"


def curl(base_url: str, key: str, model: str) -> str:
    """A streamed chat completion."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    return (
        f"curl -N {base_url}/v1/chat/completions \\\n"
        f"  -H 'authorization: Bearer {key}' -H 'content-type: application/json' \\\n"
        f"  -d {shlex.quote(json.dumps(body))}"
    )


def openai(base_url: str, key: str, model: str) -> str:
    """The OpenAI SDK, Responses API."""
    return "\n".join(
        [
            "from openai import OpenAI",
            f'client = OpenAI(base_url="{base_url}/v1", api_key="{key}")',
            f'for event in client.responses.create(model="{model}", input="Hello", stream=True):',
            '    if event.type == "response.output_text.delta":',
            '        print(event.delta, end="", flush=True)',
        ]
    )


def anthropic(base_url: str, key: str, model: str) -> str:
    """The Anthropic SDK."""
    return "\n".join(
        [
            "from anthropic import Anthropic",
            f'client = Anthropic(base_url="{base_url}", api_key="{key}")',
            'messages = [{"role": "user", "content": "Hello"}]',
            f'with client.messages.stream(model="{model}", max_tokens=1024, messages=messages) as stream:',
            "    for text in stream.text_stream:",
            '        print(text, end="", flush=True)',
        ]
    )


def claude_code(base_url: str, key: str, model: str) -> str:
    """Claude Code, in its settings file."""
    settings = {"env": _claude_code_environment(base_url, key, model)}
    return (
        "# ~/.claude/settings.json (for every project) or .claude/settings.local.json (for one):\n"
        f"{json.dumps(settings, indent=2)}\n\n"
        '# or for one shell: eval "$(lurus connect claude-code --shell)"; claude'
    )


def codex(base_url: str, key: str, model: str) -> str:
    """Codex, as a provider of its own: the built-in one would try websockets first."""
    return "\n".join(
        [
            "# ~/.codex/config.toml:",
            f'model = "{model}"',
            'model_provider = "lurus"',
            "",
            "[model_providers.lurus]",
            'name = "Lurus Switch"',
            f'base_url = "{base_url}/v1"',
            f'env_key = "{ENV_KEY}"',
            'wire_api = "responses"',
            "",
            "# and in the shell:",
            f"export {ENV_KEY}={key}",
        ]
    )


CLIENTS: dict[str, Callable[[str, str, str], str]] = {
    "claude-code": claude_code,
    "codex": codex,
    "openai": openai,
    "anthropic": anthropic,
    "curl": curl,
}


def shell(client: str, base_url: str, key: str, model: str) -> str:
    """Returns lines for `eval "$(lurus connect CLIENT --shell)"`."""
    environments = {
        "claude-code": _claude_code_environment(base_url, key, model),
        "codex": {ENV_KEY: key},
        "openai": {"OPENAI_BASE_URL": f"{base_url}/v1", "OPENAI_API_KEY": key},
        "anthropic": {"ANTHROPIC_BASE_URL": base_url, "ANTHROPIC_API_KEY": key},
        "curl": {"LURUS_BASE_URL": base_url, ENV_KEY: key},
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environments[client].items()]
    if client == "codex":
        lines.append(f'codex() {{ command codex {_codex_options(base_url, model)} "$@"; }}')
    return "\n".join(lines)


def _claude_code_environment(base_url: str, key: str, model: str) -> dict[str, str]:
    """The token, not the API key, so that Claude Code asks for no login; one model for all of its roles."""
    return {
        "ANTHROPIC_BASE_URL": base_url,
        "ANTHROPIC_AUTH_TOKEN": key,
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
    }


def _codex_options(base_url: str, model: str) -> str:
    provider = f'{{name="Lurus Switch",base_url="{base_url}/v1",env_key="{ENV_KEY}",wire_api="responses"}}'
    options = [f'model="{model}"', 'model_provider="lurus"', f"model_providers.lurus={provider}"]
    return " ".join(f"-c {shlex.quote(option)}" for option in options)


def one_line(client: str, base_url: str, key: str, model: str) -> str:
    """Returns one line that starts Claude Code or Codex with this gateway."""
    if client == "codex":
        return f"{ENV_KEY}={key} codex {_codex_options(base_url, model)}"
    words = _claude_code_environment(base_url, key, model).items()
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in words), "claude"])


def welcome(base_url: str, key: str, data_dir: Path, command: str) -> str:
    """Returns what `lurus up` prints when all is ready: where, with which key, and lines to copy.

    `command` is what to type for `lurus` here.
    """
    sections = [
        ("curl", curl(base_url, key, DEFAULT_MODEL)),
        ("OpenAI SDK", openai(base_url, key, DEFAULT_MODEL)),
        ("Anthropic SDK", anthropic(base_url, key, DEFAULT_MODEL)),
        ("Codex", one_line("codex", base_url, key, DEFAULT_MODEL)),
        ("Claude Code", one_line("claude-code", base_url, key, DEFAULT_MODEL)),
    ]
    copied = "\n\n".join(f"# {title}\n{text}" for title, text in sections)
    return f"""
Base URL   {base_url}      Anthropic SDK, Claude Code
           {base_url}/v1   OpenAI SDK, Codex
API key    {key}
           also in {data_dir / "first-key"}

Copy into another terminal:

{copied}

{NOTE.format(lurus=command, where=_data_dir_option(data_dir))}"""


NOTE = """\
The sandbox answers: fixed words in every dialect, for trying things out. It is not a model.
A real one, in one command (the key is read from the variable, sealed, and never shown):

  {lurus} provider create anthropic --base-url https://api.anthropic.com --dialect anthropic \\
    --model 'claude-*' --secret-env ANTHROPIC_API_KEY{where}

What was used: {lurus} logs{where}
What is left:  {lurus} balance{where}
How it runs:   {lurus} status{where}
Ctrl-C stops everything."""


def _data_dir_option(data_dir: Path) -> str:
    """How other commands find this directory: by themselves where it is the nearest one."""
    is_nearest = default_data_dir({}) == data_dir
    return "" if is_nearest else f" --data-dir {shlex.quote(str(data_dir))}"
