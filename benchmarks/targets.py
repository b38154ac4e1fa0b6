"""What can be measured: gateways, each started in front of the fake provider.

The rivals come from `make bench-peers`, each into an environment of its own
under `.bench/`; one that is not there is left out, and the table says so.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from tests.support.mesh import Mesh

PEERS = Path(".bench")
NPM_PEERS = Path("benchmarks/peers/node_modules")
START_SECONDS = 120.0
STOP_SECONDS = 20.0
# Models of a provider of OpenAI Chat only.
TRANSLATED = "translated-"
# Rivals refuse weak ones. It opens nothing.
KEY = "sk-bench-3f9a7c51e0b24d68a1c5f7e90b3d2846"
_NGINX = """worker_processes 1; pid nginx.pid; error_log error.log; daemon off;
events {{ worker_connections 8192; }}
http {{ access_log off; client_body_buffer_size 1m; client_max_body_size 64m; keepalive_requests 1000000;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 2048; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://up; proxy_http_version 1.1;
    proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 600s; }} }} }}
"""
_ENVOY_TYPES = "type.googleapis.com/envoy.extensions.filters"


@dataclass(slots=True)
class Target:
    """A gateway that runs.

    Attributes:
        processes: whose processor time is the gateway's.
        others: what else it cannot do without: stores, billing, logs.
        arguments: what the load has to be told beside the port.
        dialects: that it serves here.
        translating: what stands before a model's name if its provider is to speak OpenAI Chat only; None
            if it cannot be had so.
    """

    name: str
    port: int
    processes: Sequence[psutil.Process] = ()
    others: Sequence[psutil.Process] = ()
    key: str = KEY
    arguments: Mapping[str, Sequence[str]] = field(default_factory=dict)
    dialects: frozenset[str] = frozenset({"openai_chat", "anthropic", "openai_responses"})
    translating: str | None = None


class NotHere(Exception):
    """A rival is not installed."""


@contextmanager
def started(
    name: str,
    port: int,
    upstream: int,
    models: Sequence[str],
    folder: Path,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Target]:
    """Gives a target that answers.

    Args:
        name: `direct`, `ours`, `wire`, `nginx`, `envoy`, `litellm`, `portkey` or `ccr`.
        port: for its HTTP.
        upstream: port of the fake provider.
        models: that it will be asked for.
        folder: for its files.
        settings: of ours, if it is to have other ones than those it is shipped with.

    Raises:
        NotHere: it is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name == "direct":
        yield Target(name, upstream)
    elif name in ("ours", "wire"):
        with _ours(name, upstream, models, folder, settings or {}) as target:
            yield target
    else:
        command, environment, target = _RIVALS[name](port, upstream, models, folder)
        with _running(command, environment, folder, target):
            yield target


@contextmanager
def _ours(
    name: str, upstream: int, models: Sequence[str], folder: Path, settings: Mapping[str, str]
) -> Iterator[Target]:
    """The whole mesh: keys, leases, outbox, usage events, metrics and request log, as it is shipped.

    But it refuses nobody: what a call costs is asked here, of loads that fill a core; `benchmarks.overload`
    shows what becomes of more.
    """
    (folder / "mesh").mkdir()
    with Mesh(folder / "mesh", **{"max_loop_late_seconds": "0", **settings}) as mesh:
        provided(mesh, upstream, models)
        if name == "ours":
            yield target_of(mesh, name, mesh.ports["EDGE"], [mesh.pid("gateway")])
            return
        with mesh.on_the_wire() as there:
            port = int(there.base_url.rpartition(":")[2])
            edge = next(found.pid for found in psutil.Process().children() if "edge" in found.cmdline())
            _until_answered(there.base_url, mesh.key, models[0])
            yield target_of(mesh, name, port, [edge, mesh.pid("gateway")])


def provided(mesh: Mesh, upstream: int, models: Sequence[str]) -> None:
    """Makes the fake provider known to a mesh, in all dialects and in one, and waits until it is asked."""
    fields = {"base_url": f"http://127.0.0.1:{upstream}", "credentials": [{"secret": "any"}]}
    dialects = ["DIALECT_ANTHROPIC", "DIALECT_OPENAI_CHAT", "DIALECT_OPENAI_RESPONSES"]
    whole = {"provider_id": "bench", "dialects": dialects, "supported_models": ["fake*"]}
    mapping = {"model": f"{TRANSLATED}*", "upstream_model": "*"}
    chat = {"provider_id": "chat", "dialects": ["DIALECT_OPENAI_CHAT"], "model_mappings": [mapping]}
    for provider in (whole, chat):
        mesh.rest("POST", "providers", json={**provider, **fields})
    for model in models:
        rates = {"input_nano_usd": "1000", "output_nano_usd": "2000"}
        mesh.rest("POST", "prices", json={"model": model, **rates})
    for model in (models[0], TRANSLATED + models[0]):
        _until_answered(mesh.base_url, mesh.key, model)


def target_of(mesh: Mesh, name: str, port: int, pids: Sequence[int]) -> Target:
    """Returns a mesh as a target; all its processes but those of `pids` are the others."""
    others = [process for process in mesh.family() if process.pid not in pids]
    return Target(name, port, [psutil.Process(pid) for pid in pids], others, mesh.key, translating=TRANSLATED)


Rival = tuple[Sequence[str], Mapping[str, str], Target]


def _nginx(port: int, upstream: int, models: Sequence[str], folder: Path) -> Rival:
    program = shutil.which("nginx") or shutil.which("nginx", path=str(PEERS / "nginx/usr/sbin"))
    if program is None:
        raise NotHere("nginx")
    (folder / "nginx.conf").write_text(_NGINX.format(port=port, upstream=upstream))
    command = [str(Path(program).resolve()), "-p", str(folder), "-c", "nginx.conf"]
    return command, {}, Target("nginx", port)


def _envoy(port: int, upstream: int, models: Sequence[str], folder: Path) -> Rival:
    program = _peer(PEERS / "envoy/bin/envoy")
    (folder / "envoy.yaml").write_text(json.dumps(_envoy_settings(port, upstream)))  # JSON is YAML
    command = [program, "-c", str(folder / "envoy.yaml"), "--concurrency", "1", "-l", "error"]
    return [*command, "--base-id", str(port)], {}, Target("envoy", port)


def _envoy_settings(port: int, upstream: int) -> object:
    router = {"@type": f"{_ENVOY_TYPES}.http.router.v3.Router"}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}}
    manager = {
        "@type": f"{_ENVOY_TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    listener = {"address": _envoy_address(port), "filter_chains": [{"filters": filters}]}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": _envoy_address(upstream)}}]}]
    assignment = {"cluster_name": "up", "endpoints": endpoints}
    cluster = {"name": "up", "type": "STATIC", "load_assignment": assignment}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _envoy_address(port: int) -> object:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _litellm(port: int, upstream: int, models: Sequence[str], folder: Path) -> Rival:
    program = _peer(PEERS / "litellm/bin/litellm")
    rows = []
    for model in models:
        chat = {"model": f"openai/{model}", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "any"}
        claude = {
            "model": f"anthropic/claude-{model}",
            "api_base": f"http://127.0.0.1:{upstream}",
            "api_key": "any",
        }
        rows.append({"model_name": model, "litellm_params": chat})
        rows.append({"model_name": f"claude-{model}", "litellm_params": claude})
    settings = {"model_list": rows, "general_settings": {"master_key": KEY}}
    (folder / "config.yaml").write_text(json.dumps(settings))
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
    }
    command = [program, "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    target = Target(
        "litellm",
        port,
        arguments={"anthropic": ["--model-prefix", "claude-"]},
        dialects=frozenset({"openai_chat", "anthropic"}),
    )
    return [*command, "--num_workers", "1", "--telemetry", "False"], environment, target


def _portkey(port: int, upstream: int, models: Sequence[str], folder: Path) -> Rival:
    script = _peer(NPM_PEERS / "@portkey-ai/gateway/build/start-server.js")
    arguments = {}
    for dialect, provider in (("openai_chat", "openai"), ("anthropic", "anthropic")):
        host = f"x-portkey-custom-host: http://127.0.0.1:{upstream}/v1"
        arguments[dialect] = ["--header", f"x-portkey-provider: {provider}", "--header", host]
    target = Target("portkey", port, arguments=arguments, dialects=frozenset({"openai_chat", "anthropic"}))
    environment = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
    return ["node", script, f"--port={port}", "--headless"], environment, target


def _ccr(port: int, upstream: int, models: Sequence[str], folder: Path) -> Rival:
    script = _peer(NPM_PEERS / "@musistudio/claude-code-router/dist/cli.js")
    provider = {
        "name": "up",
        "api_base_url": f"http://127.0.0.1:{upstream}/v1/chat/completions",
        "api_key": "any",
        "models": list(models),
    }
    settings = {
        "PORT": port,
        "HOST": "127.0.0.1",
        "LOG": False,
        "APIKEY": KEY,
        "NON_INTERACTIVE_MODE": True,
        "Providers": [provider],
        "Router": {"default": f"up,{models[0]}"},
    }
    home = folder / ".claude-code-router"
    home.mkdir(exist_ok=True)
    (home / "config.json").write_text(json.dumps(settings))
    target = Target(
        "ccr",
        port,
        arguments={"anthropic": ["--model-prefix", "up,"]},
        dialects=frozenset({"anthropic"}),
        translating="",
    )
    return ["node", script, "start"], {"HOME": str(folder), "NODE_ENV": "production"}, target


_RIVALS = {"nginx": _nginx, "envoy": _envoy, "litellm": _litellm, "portkey": _portkey, "ccr": _ccr}
NAMES = ("direct", "ours", "wire", *_RIVALS)


def _peer(path: Path) -> str:
    if not path.exists():
        raise NotHere(path)
    return str(path.absolute())


@contextmanager
def _running(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, target: Target
) -> Iterator[None]:
    with (folder / "output.log").open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _until_alive(target, process)
        leader = psutil.Process(process.pid)
        target.processes = [leader, *leader.children(recursive=True)]
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _until_alive(target: Target, process: "subprocess.Popen[bytes]") -> None:
    """Waits until it answers anything at all: what it answers, the load checks."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{target.port}/", timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"{target.name} does not start")


def _until_answered(base_url: str, key: str, model: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    while time.monotonic() < deadline:
        answer = httpx.post(
            f"{base_url}/v1/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {key}"},
            timeout=30,
        )
        if answer.status_code == 200:
            return
        time.sleep(0.2)
    raise RuntimeError(f"the gateway does not answer: {answer.status_code} {answer.text[:200]}")
