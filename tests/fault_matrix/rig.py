"""A mesh with short timers, the fault kit's provider behind it, and clients of all three dialects."""

import itertools
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tests.fault_matrix.certificates import Authority
from tests.faults.calls import ServedCall
from tests.faults.provider import FaultyProvider
from tests.faults.threads import FaultLoop
from tests.support.bad_input import BROKEN, INTERNALS
from tests.support.client_streams import told, told_by_body
from tests.support.mesh import Mesh, eventually
from tests.support.told import Told

from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_dialects.dialect import Dialect

PATHS = {"A": "/v1/messages", "C": "/v1/chat/completions", "R": "/v1/responses"}
CLIENTS = tuple(PATHS)
DIALECTS = {"A": Dialect.ANTHROPIC, "C": Dialect.OPENAI_CHAT, "R": Dialect.OPENAI_RESPONSES}
NAMES = {"A": "DIALECT_ANTHROPIC", "C": "DIALECT_OPENAI_CHAT", "R": "DIALECT_OPENAI_RESPONSES"}
# Of a call to a provider; those of production are 5, 60, 120 and 15.
TIMERS = {
    "upstream_connect_seconds": "1",
    "upstream_first_event_seconds": "2",
    "upstream_idle_seconds": "2",
    "heartbeat_seconds": "0.5",
}
WAIT_SECONDS = 20.0
FINAL = 1
INPUT, CACHED = 12, 3
_numbers = itertools.count(1)


@dataclass(slots=True)
class Answer:
    """What a client was told, and what the gateway has booked for it."""

    client: str
    is_streaming: bool
    status: int
    headers: httpx.Headers
    body: bytes
    rig: "FaultRig" = field(repr=False)

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    def told(self) -> Told:
        """What a client makes of it; fails if it is against the grammar of its dialect."""
        read = told if self.is_streaming else told_by_body
        return read(DIALECTS[self.client], self.body)

    def record(self) -> UsageEvent:
        """The usage event, as soon as it is final."""
        return self.rig.record(self.headers["x-request-id"])

    def check_error(self, status: int | None = None) -> None:
        """Fails unless it is an error in the client's dialect that shows nothing of ours and is free."""
        assert self.status >= 400 and status in (None, self.status), (self.status, self.text)
        found = json.loads(self.body)
        if self.client == "A":
            assert found["type"] == "error" and {"type", "message"} <= set(found["error"]), found
        else:
            assert {"message", "type", "param", "code"} <= set(found["error"]), found
        assert self.headers["x-request-id"] == self.headers["request-id"]
        assert not INTERNALS.search(self.text), self.text
        record = self.record()
        assert record.cost_nano_usd == 0 and not record.tokens.output, record

    def check_broken_off(self) -> None:
        """Fails unless it is a stream with one begin that ends in an error, not in the last event."""
        assert self.status == 200, self.text
        ends = {"A": "message_stop", "C": "[DONE]", "R": "response.completed"}
        begins = {"A": "event: message_start", "C": '"role": "assistant"', "R": "event: response.created"}
        errors = {"A": "event: error", "C": 'data: {"error":', "R": "event: response.failed"}
        assert ends[self.client] not in self.text
        assert self.text.count(begins[self.client]) == 1
        assert errors[self.client] in self.text and not INTERNALS.search(self.text), self.text


class FaultRig:
    """The mesh and the provider."""

    def __init__(self, mesh: Mesh, loop: FaultLoop, provider: FaultyProvider, authority: Authority) -> None:
        self.mesh = mesh
        self.authority = authority
        self.loop = loop
        self.provider = provider
        self.http = httpx.Client(base_url=mesh.base_url, headers=mesh.headers(), timeout=30)
        self._log_sizes = {path: path.stat().st_size for path in self._logs()}

    def ask(self, client: str, model: str, is_streaming: bool = True, **fields: Any) -> Answer:
        """Calls the gateway and reads all of the answer.

        A model of the kit is asked for at a provider that only serves this client in this way, so that the
        breakers of others do not matter.
        """
        if model.startswith("fault-"):
            model = f"{own_name(client, is_streaming)}-{model}"
        answer = self.http.post(PATHS[client], json=request(client, model, is_streaming, **fields))
        return Answer(client, is_streaming, answer.status_code, answer.headers, answer.content, self)

    @contextmanager
    def streaming(self, client: str, model: str) -> Iterator[httpx.Response]:
        """Begins a stream; leaving the context leaves the stream."""
        with self.http.stream("POST", PATHS[client], json=request(client, model, True)) as answer:
            yield answer

    @contextmanager
    def chain(self, *upstreams: tuple[str, str]) -> Iterator[str]:
        """Registers providers, one level after the other; yields the name of their common model.

        Args:
            upstreams: base URL and upstream model of each.
        """
        model = f"chain-{next(_numbers)}"
        names = [f"{model}-{level}" for level in range(1, len(upstreams) + 1)]
        for level, (name, (url, upstream_model)) in enumerate(zip(names, upstreams, strict=True), 1):
            self.register(name, url, model, upstream_model, level=level)
        self.until_known(model, names)
        try:
            yield model
        finally:
            for name in names:
                self.mesh.rest("DELETE", f"providers/{name}")

    def register(
        self,
        name: str,
        url: str,
        model: str,
        upstream_model: str,
        dialects: Sequence[str] = CLIENTS,
        **more: Any,
    ) -> None:
        """Creates a provider."""
        mapping = {"model": model, "upstream_model": upstream_model}
        fields = {
            "provider_id": name,
            "dialects": [NAMES[letter] for letter in dialects],
            "base_url": url,
            "credentials": [{"secret": "secret-of-the-provider"}],
            "model_mappings": [mapping],
        }
        self.mesh.rest("POST", "providers", json={**fields, **more})

    def until_known(self, model: str, names: Sequence[str]) -> None:
        """Waits until the gateway would ask these providers."""
        path = f"routes:explain?model={model}&dialect=DIALECT_OPENAI_CHAT"

        def known() -> bool:
            rows = self.mesh.rest("GET", path).get("candidates", ())
            return set(names) <= {row["provider_id"] for row in rows}

        eventually(known, WAIT_SECONDS)

    def served(self) -> ServedCall:
        """Returns the provider's last call, once that is over for the provider too."""
        entry = self.provider.calls[-1]
        eventually(lambda: entry.ended is not None, WAIT_SECONDS)
        return entry

    def record(self, request_id: str) -> UsageEvent:
        """Returns the final usage event of a request."""
        return eventually(lambda: self._final(request_id), WAIT_SECONDS)

    def _final(self, request_id: str) -> UsageEvent | None:
        for path in (self.mesh.data_dir / "outbox").glob("outbox-*.db"):
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                query = "SELECT payload FROM usage WHERE state >= ? AND request_id = ?"
                for (payload,) in database.execute(query, (FINAL, request_id)):
                    return UsageEvent.FromString(payload)
        return None

    def check_logs(self) -> None:
        """Fails if a process has shown a failure of its own."""
        for path in self._logs():
            for line in path.read_bytes()[self._log_sizes.get(path, 0) :].decode().splitlines():
                assert not BROKEN.search(line), f"{path.name}: {line}"
        assert all(row["restarts"] == 0 for row in self.mesh.run()["processes"])

    def _logs(self) -> list[Path]:
        return sorted((self.mesh.data_dir / "logs").glob("*.log"))


def own_name(client: str, is_streaming: bool) -> str:
    """The provider that serves a client in this way, and the prefix of its models."""
    return f"own-{client.lower()}-{'stream' if is_streaming else 'plain'}"


def request(client: str, model: str, is_streaming: bool, **fields: Any) -> dict[str, Any]:
    """Returns a small request."""
    turns: Any = "hi" if client == "R" else [{"role": "user", "content": "hi"}]
    body = {"model": model, "stream": is_streaming, "input" if client == "R" else "messages": turns}
    return {**body, **({"max_tokens": 100} if client == "A" else {}), **fields}


@contextmanager
def running_rig(data_dir: Path) -> Iterator[FaultRig]:
    """Starts the mesh and the provider."""
    loop, provider = FaultLoop(), FaultyProvider()
    loop.run(provider.start())
    try:
        mesh = Mesh(data_dir, **TIMERS)
        authority = Authority(data_dir)
        mesh.environment["SSL_CERT_FILE"] = str(authority.path)  # The only one that it trusts.
        with mesh:
            rig = FaultRig(mesh, loop, provider, authority)
            for letter, is_streaming in itertools.product(CLIENTS, (True, False)):
                name = own_name(letter, is_streaming)
                rig.register(name, provider.url, f"{name}-*", "*")
            # Behind one dialect each, so that clients of the others are translated for.
            for letter in CLIENTS:
                pattern = f"via-{letter.lower()}-*"
                rig.register(f"via-{letter.lower()}", provider.url, pattern, "*", letter)
            rig.until_known("via-r-fault-ok", ["via-r"])
            with rig.http:
                yield rig
    finally:
        loop.run(provider.stop())
        loop.close()
