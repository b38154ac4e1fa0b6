"""What good requests look like in the three dialects, and what every refusal of a bad one must look like."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import httpx

from tests.support.impatient_edge import OUTPUT, impatient_edge
from tests.support.mesh import Mesh
from tests.support.raw_http import Answer, exchange, request_bytes

MESSAGES, CHAT, RESPONSES = "/v1/messages", "/v1/chat/completions", "/v1/responses"
PATHS = (MESSAGES, CHAT, RESPONSES)
LIMIT_FIELD = {MESSAGES: "max_tokens", CHAT: "max_completion_tokens", RESPONSES: "max_output_tokens"}
TURNS_FIELD = {MESSAGES: "messages", CHAT: "messages", RESPONSES: "input"}

CREDIT_NANO_USD = 10**9
# Stands in every good request. No refusal quotes it.
MARK = "a-text-that-no-refusal-quotes"
# A process that fails, in its log.
BROKEN = re.compile(r"Traceback|\bERROR\b|<Error>|\bFATAL\b|\bPANIC\b")
# A process of ours that shows itself: frames, sources, modules, addresses, keys.
INTERNALS = re.compile(
    r'Traceback|File "|\.py\b|site-packages|/tmp/|127\.0\.0\.1|lsk_|Exception|object at 0x|'
    + re.escape(str(Path(__file__).parents[2]))
)


Body = Callable[[str], bytes]


class Reply(Protocol):
    """An answer, of httpx or of `raw_http`."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Names are found in lower case."""

    def json(self) -> Any:
        """Returns the body."""


class Refusal(NamedTuple):
    """How a refusal looks: in Anthropic's dialect, and in OpenAI's where that differs."""

    status: int
    anthropic_type: str = "invalid_request_error"
    code: str | None = None
    openai_status: int | None = None
    responses_status: int | None = None
    # In Anthropic's `details`.
    error_code: str | None = None
    should_retry: str | None = "false"

    def status_at(self, path: str) -> int:
        """Returns the HTTP status at one of the three paths."""
        if path == MESSAGES:
            return self.status
        found = self.openai_status or self.status
        return self.responses_status or found if path == RESPONSES else found


BAD = Refusal(400)
NO_KEY = Refusal(401, "authentication_error", "invalid_api_key")
NO_MODEL = Refusal(404, "not_found_error", "model_not_found")
# Codex repeats a 403 six times.
NOT_ALLOWED = Refusal(403, "permission_error", "model_not_found", openai_status=404)
CONFLICT = Refusal(409, "conflict_error", "idempotency_conflict")
NO_METHOD = Refusal(405, code="method_not_allowed")
NO_PATH = Refusal(404, "not_found_error", "unknown_url")
# Codex repeats a 413 six times too.
TOO_LARGE = Refusal(413, "request_too_large", "request_too_large", responses_status=400)
BOMB = TOO_LARGE._replace(error_code="request_body_too_large_after_decoding")
NO_MEDIA = Refusal(415, code="unsupported_media_type")
NO_CODING = Refusal(400, code="invalid_content_encoding", error_code="request_body_encoding_unsupported")
BAD_CODING = NO_CODING._replace(error_code="request_body_encoding_invalid")
NO_CHARSET = NO_CODING._replace(error_code="unsupported_charset")
# Made below HTTP's grammar; the connection is closed.
BAD_BYTES = Refusal(400, code="bad_request")
LONG_HEAD = Refusal(431, code="headers_too_large")
LONG_URL = Refusal(414, code="url_too_long")
SLOW = Refusal(408, "timeout_error", "request_timeout", should_retry=None)


def good(path: str, **more: Any) -> dict[str, Any]:
    """Returns a request that the sandbox answers.

    `more` replaces fields; one that is given as ... is left out.
    """
    turns: Any = MARK if path == RESPONSES else [{"role": "user", "content": MARK}]
    fields = {"model": "sandbox-text", TURNS_FIELD[path]: turns}
    if path == MESSAGES:
        fields["max_tokens"] = 50
    return {name: value for name, value in {**fields, **more}.items() if value is not ...}


def body(path: str, **more: Any) -> bytes:
    """Returns `good` as JSON."""
    return json.dumps(good(path, **more)).encode()


def with_raw(path: str, name: str, value: bytes, **more: Any) -> bytes:
    """Returns a good body with a last member that is spelled as given."""
    return body(path, **more)[:-1] + b',"' + name.encode() + b'":' + value + b"}"


def limited(path: str, value: bytes) -> bytes:
    """Returns a body whose limit on the output is spelled as given."""
    name = LIMIT_FIELD[path]
    return with_raw(path, name, value, **{name: ...})


def turns(path: str, value: Any) -> bytes:
    """Returns a body with these messages or this input."""
    return body(path, **{TURNS_FIELD[path]: value})


def image(path: str, media_type: str, data: str) -> dict[str, Any]:
    """An image block with base64 in it."""
    if path == MESSAGES:
        return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}
    url = f"data:{media_type};base64,{data}"
    if path == CHAT:
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "input_image", "image_url": url}


def remote_image(path: str, url: str) -> dict[str, Any]:
    """An image block that names a URL."""
    if path == MESSAGES:
        return {"type": "image", "source": {"type": "url", "url": url}}
    return (
        {"type": "image_url", "image_url": {"url": url}}
        if path == CHAT
        else {"type": "input_image", "image_url": url}
    )


# Tables of what is refused, by the id of the test.

DEEP = {
    f"{name}-{depth}": opening * depth + b"1" + closing * depth
    for depth in (2_000, 100_000)
    for name, opening, closing in (("arrays", b"[", b"]"), ("objects", b'{"a":', b"}"))
}
DIGITS = b"9" * 5000
# By the id of the test: the body, and the field that the refusal names.
BAD_BODIES: dict[str, tuple[Body, str | None]] = {
    "B1-empty": (lambda path: b"", None),
    "B1-spaces": (lambda path: b" \n ", None),
    "B1-null": (lambda path: b"null", None),
    "B1-list": (lambda path: b"[]", None),
    "B1-number": (lambda path: b"3", None),
    "B1-text": (lambda path: b'"x"', None),
    "B2-truncated": (lambda path: body(path)[:-5], None),
    "B2-trailing-comma": (lambda path: body(path)[:-1] + b",}", None),
    "B2-trailing-junk": (lambda path: body(path) + MARK.encode(), None),
    "B2-control-character": (lambda path: body(path).replace(b"a-text", b"a\x01-text"), None),
    "B3-nan": (lambda path: with_raw(path, "temperature", b"NaN"), None),
    "B3-infinity": (lambda path: with_raw(path, "temperature", b"-Infinity"), None),
    "B4-lone-surrogate": (lambda path: body(path).replace(b"a-text", b"\\ud800-text"), None),
    "B4-invalid-utf-8": (lambda path: body(path).replace(b"a-text", b"\xff\xfe-text"), None),
    "B4-overlong": (lambda path: body(path).replace(b"a-text", b"\xc0\xaf-text"), None),
    "B4-encoded-surrogate": (lambda path: body(path).replace(b"a-text", b"\xed\xa0\x80-text"), None),
    "B4-utf-16": (lambda path: body(path).decode().encode("utf-16"), None),
    "B4-utf-16-without-mark": (lambda path: body(path).decode().encode("utf-16-le"), None),
    "B4-byte-order-mark": (lambda path: b"\xef\xbb\xbf" + body(path), None),
    "B8-model-twice": (lambda path: with_raw(path, "model", b'"sandbox-echo"'), "model"),
    "B8-model-twice-escaped": (lambda path: with_raw(path, "mod\\u0065l", b'"sandbox-echo"'), "model"),
    "B9-model-missing": (lambda path: body(path, model=...), "model"),
    "B9-model-null": (lambda path: body(path, model=None), "model"),
    "B9-model-empty": (lambda path: body(path, model=""), "model"),
    "B9-model-of-10-kb": (lambda path: body(path, model="m" * 10_000), "model"),
    "B9-model-with-nul": (lambda path: body(path, model="sandbox\0text"), "model"),
    "B9-model-with-line-break": (lambda path: body(path, model="sandbox\r\ntext"), "model"),
    "B9-model-with-line-separator": (lambda path: body(path, model="sandbox\u2028text"), "model"),
    "B24-model-is-a-query": (lambda path: body(path, model={"$gt": ""}), "model"),
    "B24-model-of-10000-wildcards": (lambda path: body(path, model="%" * 10_000), "model"),
}
UNKNOWN_MODELS = {
    "B9-path": "../../etc/passwd",
    "B9-look-alike": "s\u0430ndbox-text",
    "B24-sql": "' OR 1=1--",
    "B24-wildcards": "%" * 500,
    "unknown": "no-such-model",
}
# Spellings of the limit on the output; null and 0 are for OpenAI's and Anthropic's alone.
BAD_LIMITS = {
    "B3-overflow": b"1e999",
    "B6-5000-digits": DIGITS,
    "B6-2-to-63": b"9223372036854775808",
    "B6-2-to-64": b"18446744073709551616",
    "B7-negative": b"-1",
    "B7-fraction": b"1.5",
    "B7-text": b'"10"',
    "B7-list": b"[]",
    "B7-true": b"true",
}
BAD_TURNS: dict[str, Any] = {
    "B11-missing": ...,
    "B11-null": None,
    "B11-empty": [],
    "B11-object": {},
    "B11-empty-text": "",
    "B11-number": 5,
    "B11-true": True,
}


def check_refusal(path: str, status: int, reply: Reply, refusal: Refusal, param: str | None = None) -> str:
    """Fails unless this is `refusal` in the dialect of `path`; returns its message."""
    assert status == refusal.status_at(path), (status, reply.json())
    request_id = reply.headers["request-id"]
    assert request_id == reply.headers["x-request-id"] and re.fullmatch(r"req_[0-9A-Z]{26}", request_id)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers.get("x-should-retry") == refusal.should_retry
    message = str(_check_body(path, reply.json(), request_id, refusal, param))
    assert message and MARK not in message and not INTERNALS.search(message), message
    return message


def _check_body(path: str, found: Any, request_id: str, refusal: Refusal, param: str | None) -> Any:
    message = found["error"]["message"]
    error: dict[str, Any] = {"message": message}
    if path == MESSAGES:
        error["type"] = refusal.anthropic_type
        if refusal.error_code:
            error["details"] = {"error_code": refusal.error_code}
        assert found == {"type": "error", "error": error, "request_id": request_id}, found
        assert param is None or message.startswith(f"{param}:"), message
    else:
        error |= {"type": "invalid_request_error", "param": param, "code": refusal.code}
        assert found == {"error": error}, found
    return message


@dataclass
class Rig:
    """The mesh, the callers of these tests, and what they have done to it."""

    mesh: Mesh
    # An edge of its own process with short timers, which calls routing over gRPC.
    wire_port: int
    # Only sends what is refused.
    account_id: str
    # Of the logs, before the tests.
    log_sizes: dict[Path, int]
    accepted_count: int = 0
    served_before: int = field(init=False)
    key: str = field(init=False)
    wire: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.wire = httpx.Client(base_url=f"http://127.0.0.1:{self.wire_port}", timeout=30)
        self.key = str(self.new_key()["secret"])
        self.served_before = self.served_count()

    @property
    def port(self) -> int:
        """The edge of the mesh, in one process with routing."""
        return self.mesh.ports["EDGE"]

    def headers(self, **more: str) -> dict[str, str]:
        """What the caller of refused requests presents."""
        named = {name.replace("_", "-"): value for name, value in more.items()}
        return {"authorization": f"Bearer {self.key}", "content-type": "application/json", **named}

    def refuse(
        self, path: str, content: bytes, refusal: Refusal, param: str | None = None, **headers: str
    ) -> str:
        """Sends a body over both edges, in process and on the wire; returns the message of the refusal."""
        for client in (self.mesh.http, self.wire):
            reply = client.post(path, content=content, headers=self.headers(**headers))
            message = check_refusal(path, reply.status_code, reply, refusal, param)
        return message

    def refuse_raw(self, path: str, data: bytes, refusal: Refusal) -> Answer:
        """Sends bytes; the answer is a refusal, the only one, and the connection is closed."""
        answers = exchange(self.port, data)
        assert len(answers) == 1, answers
        assert answers[0].headers["connection"] == "close"
        check_refusal(path, answers[0].status, answers[0], refusal)
        return answers[0]

    def accept(self, path: str, content: bytes, **headers: str) -> httpx.Response:
        """Sends what the sandbox must answer, at another account's cost."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"content-type": "application/json", **self.mesh.headers(), **named}
        reply = self.mesh.http.post(path, content=content, headers=sent)
        assert reply.status_code == 200, reply.text
        self.accepted_count += 1
        return reply

    def served_count(self) -> int:
        """How many requests the sandbox has seen."""
        return int(
            httpx.get(f"http://127.0.0.1:{self.mesh.ports['SANDBOX']}/health").json()["served_answer_count"]
        )

    def request(self, path: str, *lines: str, content: bytes | None = None, **more: Any) -> bytes:
        """Returns a request of the refused account as it stands on the wire."""
        own = f"authorization: Bearer {self.key}"
        return request_bytes(path, body(path) if content is None else content, own, *lines, **more)

    def follower(self) -> bytes:
        """Returns a good request, which must not be executed behind a bad one."""
        return self.request(CHAT, "connection: close")

    def new_key(self, **more: Any) -> dict[str, Any]:
        """Makes a key of the refused account; returns it and its secret."""
        found: dict[str, Any] = self.mesh.rest("POST", "keys", json={"account_id": self.account_id, **more})
        return found

    def check_what_is_left(self) -> None:
        """Fails unless the refused requests have cost nothing, reached nobody and broken nothing."""
        served_count = self.served_count() - self.served_before
        assert served_count == self.accepted_count, (served_count, self.accepted_count)
        self._check_books()
        for path in log_files(self.mesh):
            _check_log(path, self.log_sizes.get(path, 0))
        for path in PATHS:
            self.accept(path, body(path))
        assert all(row["restarts"] == 0 for row in self.mesh.run()["processes"])

    def _check_books(self) -> None:
        balance = self.mesh.rest("GET", f"balance?account_id={self.account_id}")
        left = int(balance["balance_nano_usd"]), int(balance["available_nano_usd"])
        assert left == (CREDIT_NANO_USD, CREDIT_NANO_USD), balance
        path = f"transactions?account_id={self.account_id}&page_size=1000"
        amounts = [int(entry["amount_nano_usd"]) for entry in self.mesh.rest("GET", path)["transactions"]]
        assert not any(amounts[:-1]) and amounts[-1] == CREDIT_NANO_USD, amounts
        rows = self.mesh.rest("GET", f"logs?filter.account_id={self.account_id}&page_size=1000")["events"]
        costs = {(row["cost_nano_usd"], row["terminal"]) for row in rows}
        assert costs <= {("0", "TERMINAL_REFUSED")}, costs


@contextmanager
def running_rig(mesh: Mesh, account_id: str) -> Iterator[Rig]:
    """Makes an account with money that only sends what is refused, and starts the second edge."""
    mesh.rest("POST", "accounts", json={"account_id": account_id})
    credit = {
        "transaction_id": f"tx_{account_id}",
        "account_id": account_id,
        "kind": "TRANSACTION_KIND_TOP_UP",
        "amount_nano_usd": str(CREDIT_NANO_USD),
    }
    mesh.rest("POST", "transactions", json=credit)
    with impatient_edge(mesh) as wire_port:
        sizes = {path: path.stat().st_size for path in log_files(mesh)}
        found = Rig(mesh, wire_port, account_id, sizes)
        with found.wire:
            yield found


def log_files(mesh: Mesh) -> list[Path]:
    """Returns the logs of all processes of the mesh, and of the second edge."""
    return [*sorted((mesh.data_dir / "logs").glob("*.log")), mesh.data_dir / OUTPUT]


def _check_log(path: Path, start: int) -> None:
    """Fails on an error in the log since `start`, and on a line that a client has broken."""
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read().decode().removesuffix("\n").split("\n")
    for line in lines:
        said = f"{path.name}: {line!r}"
        assert not BROKEN.search(line), said
        assert line.replace("\t", "").isprintable(), said
        if line.startswith("{"):
            record = json.loads(line)
            assert record.get("level") not in ("error", "critical") and "exception" not in record, said
