"""The bad-input matrix: requests that no honest client sends, through a whole mesh, in all three dialects.

The rows B1 to B52 are those of the reliability design; a test's id names
its row. Every refusal has the shape of its dialect, an id, and nothing of
our insides; the last test looks into the books and the logs of all processes. What goes wrong below HTTP
stands in `test_bad_bytes.py`, what operators get wrong in `test_bad_queries.py`.

Decided where the matrix leaves a choice, or the wire contract decides otherwise:

- B3, B6: numbers that nobody here interprets keep their spelling (`1e999`, 5,000 digits); it is the
  provider's to refuse them. NaN and Infinity are no JSON.
- B4: a byte order mark is refused, in all dialects alike.
- B7: Anthropic's `max_tokens` 0 is valid (it warms a cache), and OpenAI's null is as good as no limit.
- B8: a repeated `model` is refused. Of other repeated fields the last counts, and the body goes on as it is.
- B10: OpenAI's dialects say 404 for a model that a key may not use.
- B12, B13, B14: what stands inside messages is the provider's to judge; no role or block of tomorrow breaks.
- B18: no content type at all is taken for JSON.
- B19: gzip, deflate and zstd are read; a bomb is refused while it is unpacked.
- B21: of two keys the first live one counts.
- B27: unknown fields go on to the configured provider, which alone is called.
- B29: every call is one, and paid; a repeat is told of what it repeats, a key of another request is refused.
"""

import asyncio
import gzip
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest
from tests.support.bad_input import (
    BAD,
    BAD_BODIES,
    BAD_CODING,
    BAD_LIMITS,
    BAD_TURNS,
    BOMB,
    CHAT,
    CONFLICT,
    DEEP,
    DIGITS,
    LIMIT_FIELD,
    MESSAGES,
    NO_CHARSET,
    NO_CODING,
    NO_KEY,
    NO_MEDIA,
    NO_MODEL,
    NOT_ALLOWED,
    PATHS,
    RESPONSES,
    TURNS_FIELD,
    UNKNOWN_MODELS,
    Rig,
    body,
    check_refusal,
    image,
    limited,
    remote_image,
    running_rig,
    turns,
    with_raw,
)
from tests.support.mesh import Mesh, eventually
from tests.support.scripted_upstream import ScriptedUpstream, plain

from lurus_common.secrets import new_api_key

MIB = 2**20
# The matrix says 50 ms; the tests share two cores with others.
DEEP_SECONDS = 5.0
RSS_BYTES = 96 * MIB
ANNOUNCE_SECONDS = 10.0

EACH_PATH = pytest.mark.parametrize("path", PATHS)


@pytest.fixture(scope="module")
def rig(mesh: Mesh) -> Iterator[Rig]:
    """The mesh, a second edge, and an account that only sends what is refused."""
    with running_rig(mesh, "acct_bad_input") as found:
        yield found


@EACH_PATH
@pytest.mark.parametrize("row", BAD_BODIES)
def test_a_bad_body_is_refused(rig: Rig, row: str, path: str) -> None:
    make, param = BAD_BODIES[row]
    message = rig.refuse(path, make(path), BAD, param)
    if row.startswith("B2-"):
        assert "(byte " in message


@EACH_PATH
@pytest.mark.parametrize("row", DEEP)
def test_b5_a_deep_body_is_refused_at_once(rig: Rig, row: str, path: str) -> None:
    content = with_raw(path, "metadata", DEEP[row])
    rig.refuse(path, content, BAD)
    started = time.perf_counter()
    rig.mesh.http.post(path, content=content, headers=rig.headers())
    assert time.perf_counter() - started < DEEP_SECONDS


@EACH_PATH
@pytest.mark.parametrize("row", BAD_LIMITS)
def test_a_bad_limit_is_refused(rig: Rig, row: str, path: str) -> None:
    rig.refuse(path, limited(path, BAD_LIMITS[row]), BAD, LIMIT_FIELD[path])


def test_b6_b7_the_old_name_of_a_limit_is_checked_too(rig: Rig) -> None:
    rig.refuse(CHAT, body(CHAT, max_tokens=0), BAD, "max_tokens")


def test_b7_limits_that_dialects_judge_differently(rig: Rig) -> None:
    rig.refuse(MESSAGES, body(MESSAGES, max_tokens=...), BAD, "max_tokens")
    rig.refuse(MESSAGES, limited(MESSAGES, b"null"), BAD, "max_tokens")
    rig.accept(MESSAGES, limited(MESSAGES, b"0"))
    for path, name in ((CHAT, "max_completion_tokens"), (RESPONSES, "max_output_tokens")):
        rig.refuse(path, limited(path, b"0"), BAD, name)
        rig.accept(path, limited(path, b"null"))
        rig.accept(path, body(path))


@EACH_PATH
def test_b3_numbers_that_nobody_interprets_keep_their_spelling(rig: Rig, path: str) -> None:
    rig.accept(path, with_raw(path, "temperature", b"1e999"))


@EACH_PATH
def test_b6_a_number_of_5000_digits_is_the_providers_to_judge(rig: Rig, path: str) -> None:
    content = with_raw(path, "seed", DIGITS)
    reply = rig.mesh.http.post(path, content=content, headers=rig.mesh.headers())
    assert reply.status_code == 400  # The sandbox's own refusal, in its own words.
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert reply.headers["request-id"] == reply.headers["x-request-id"]


@EACH_PATH
@pytest.mark.parametrize("row", UNKNOWN_MODELS)
def test_an_unknown_model_is_not_found(rig: Rig, row: str, path: str) -> None:
    message = rig.refuse(path, body(path, model=UNKNOWN_MODELS[row]), NO_MODEL)
    assert UNKNOWN_MODELS[row] not in message


@EACH_PATH
def test_b10_a_model_that_the_key_may_not_use_is_forbidden(rig: Rig, path: str) -> None:
    key = rig.new_key(allowed_models=["something-else-*"])["secret"]
    rig.refuse(path, body(path), NOT_ALLOWED, authorization=f"Bearer {key}")


@EACH_PATH
@pytest.mark.parametrize("row", BAD_TURNS)
def test_messages_that_are_none_are_refused(rig: Rig, row: str, path: str) -> None:
    rig.refuse(path, turns(path, BAD_TURNS[row]), BAD, TURNS_FIELD[path])


def test_b11_input_may_be_a_text_and_messages_may_not(rig: Rig) -> None:
    rig.accept(RESPONSES, turns(RESPONSES, "Hi"))
    for path in (MESSAGES, CHAT):
        rig.refuse(path, turns(path, "Hi"), BAD, "messages")


@EACH_PATH
@pytest.mark.parametrize("role", ["wizard", "system", "developer"])
def test_b12_roles_are_the_providers_to_judge(rig: Rig, role: str, path: str) -> None:
    rig.accept(path, turns(path, [{"role": "user", "content": "Hi"}, {"role": role, "content": "there"}]))


TOOL_CALL = {"id": "same", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ODD_TURNS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "result-of-no-call": (
        MESSAGES,
        [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "none", "content": "x"}]}],
    ),
    "calls-with-one-id": (
        CHAT,
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "tool_calls": [TOOL_CALL, TOOL_CALL]},
            {"role": "tool", "tool_call_id": "same", "content": "x"},
        ],
    ),
    "output-of-no-call": (RESPONSES, [{"type": "function_call_output", "call_id": "none", "output": "x"}]),
}


@pytest.mark.parametrize("row", ODD_TURNS)
def test_b13_tool_calls_that_do_not_fit_are_the_providers_to_judge(rig: Rig, row: str) -> None:
    path, found = ODD_TURNS[row]
    rig.accept(path, turns(path, found))


@EACH_PATH
@pytest.mark.parametrize("block", [("image/png", "!!no base64!!"), ("text/x-wizard", "aGk=")], ids=str)
def test_b14_odd_images_are_the_providers_to_judge(rig: Rig, block: tuple[str, str], path: str) -> None:
    rig.accept(path, turns(path, [{"role": "user", "content": [image(path, *block)]}]))


@EACH_PATH
def test_b15_a_megabyte_of_nul_is_text_and_its_usage_is_stored(rig: Rig, path: str) -> None:
    reply = rig.accept(path, turns(path, [{"role": "user", "content": "\0" * MIB}]), user_agent="b15")
    row = rig.mesh.log_row(reply.headers["request-id"])
    assert int(row["cost_nano_usd"]) > 0
    rig.mesh.transaction(reply.headers["request-id"])


@EACH_PATH
@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]
)
def test_b18_another_content_type_is_refused(rig: Rig, kind: str, path: str) -> None:
    rig.refuse(path, body(path), NO_MEDIA, content_type=kind)


@EACH_PATH
def test_b18_another_charset_is_refused_and_no_content_type_is_json(rig: Rig, path: str) -> None:
    rig.refuse(path, body(path), NO_CHARSET, content_type="application/json; charset=utf-16")
    rig.accept(path, body(path), content_type="")


@EACH_PATH
@pytest.mark.parametrize("coding", ["compress", "wizard", "gzip, gzip"])
def test_b19_an_unknown_content_encoding_is_refused(rig: Rig, coding: str, path: str) -> None:
    rig.refuse(path, body(path), NO_CODING, content_encoding=coding)


@EACH_PATH
def test_b19_a_body_that_is_not_what_its_encoding_says_is_refused(rig: Rig, path: str) -> None:
    rig.refuse(path, body(path), BAD_CODING, content_encoding="gzip")
    rig.refuse(path, gzip.compress(body(path))[:-9], BAD_CODING, content_encoding="gzip")


def bomb() -> bytes:
    """1 MB that unpacks to 1 GB: one block of a megabyte of zeros, 1,024 times."""
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    block = deflater.compress(bytes(MIB)) + deflater.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + block * 1024 + b"\x03\0" + bytes(8)


@EACH_PATH
def test_b19_a_bomb_is_refused_while_it_is_unpacked(rig: Rig, path: str) -> None:
    gateway = psutil.Process(rig.mesh.pid("gateway"))
    before = gateway.memory_info().rss
    rig.refuse(path, bomb(), BOMB, content_encoding="gzip")
    assert gateway.memory_info().rss - before < RSS_BYTES


DEAD_KEYS = {
    "B20-no-key": b"",
    "B20-bearer-only": b"Bearer",
    "B20-10-kb": b"Bearer lsk_" + b"a" * 10_000,
    "B20-not-ascii": b"Bearer lsk_schl\xfcssel",
    "B20-basic": b"Basic bHNrX3g6eQ==",
    "B22-unknown": b"Bearer " + new_api_key().encode(),
    "B24-sql": b"Bearer ' OR 1=1--",
    "B24-query": b'Bearer {"$gt":""}',
}


def refuse_key(rig: Rig, path: str, authorization: bytes) -> str:
    """Presents it over both edges; returns the message."""
    headers = [(b"authorization", authorization), (b"content-type", b"application/json")]
    for client in (rig.mesh.http, rig.wire):
        reply = client.post(path, content=body(path), headers=headers)
        message = check_refusal(path, reply.status_code, reply, NO_KEY)
    return message


@EACH_PATH
@pytest.mark.parametrize("row", DEAD_KEYS)
def test_a_key_that_is_none_is_refused(rig: Rig, row: str, path: str) -> None:
    refuse_key(rig, path, DEAD_KEYS[row])


def is_known(rig: Rig, key: str) -> bool:
    """Whether both edges know a key; asks what costs nothing."""
    headers = {"authorization": f"Bearer {key}"}
    edges = (rig.mesh.http, rig.wire)
    return any(edge.get("/v1/models", headers=headers).status_code != 401 for edge in edges)


def test_b22_every_dead_key_is_told_the_same(rig: Rig) -> None:
    past = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    expired, revoked = rig.new_key(expire_time=past), rig.new_key()
    rig.mesh.rest("POST", f"keys/{revoked['key']['key_id']}:revoke")
    # The gateway is told of it, and may serve the key until then.
    eventually(lambda: not is_known(rig, revoked["secret"]), ANNOUNCE_SECONDS)
    last = "A" if rig.key[-1] != "A" else "B"
    dead = [expired["secret"], revoked["secret"], "sk_" + rig.key[4:], rig.key[:-1] + last, new_api_key()]
    words = {refuse_key(rig, path, f"Bearer {key}".encode()) for path in PATHS for key in dead}
    assert len(words) == 1


@EACH_PATH
def test_b21_of_two_keys_the_live_one_counts(rig: Rig, path: str) -> None:
    rig.accept(path, body(path), x_api_key="junk")
    rig.accept(path, body(path), x_api_key=rig.mesh.key, authorization="Bearer junk")
    rig.refuse(path, body(path), NO_KEY, x_api_key="junk", authorization="Bearer other-junk")


@EACH_PATH
def test_b24_a_user_that_looks_like_sql_is_a_user(rig: Rig, path: str) -> None:
    user = "'; DROP TABLE usage_events; --" + "%" * 10_000
    fields = {"metadata": {"user_id": user}} if path == MESSAGES else {"user": user, "prompt_cache_key": user}
    rig.mesh.log_row(rig.accept(path, body(path, **fields)).headers["request-id"])


@asynccontextmanager
async def witness(mesh: Mesh, name: str) -> AsyncIterator[ScriptedUpstream]:
    """A provider of the model `name` that keeps what it gets and refuses it."""
    async with ScriptedUpstream(
        plain({"error": {"message": "no", "type": "invalid_request_error"}}, 400)
    ) as up:
        provider = {
            "provider_id": name,
            "dialects": ["DIALECT_ANTHROPIC", "DIALECT_OPENAI_CHAT", "DIALECT_OPENAI_RESPONSES"],
            "base_url": up.url,
            "credentials": [{"secret": "the-secret-of-the-provider"}],
            "model_mappings": [{"model": name, "upstream_model": "up"}],
        }
        await asyncio.to_thread(mesh.rest, "POST", "providers", json=provider)
        try:
            path = f"routes:explain?model={name}&dialect=DIALECT_OPENAI_CHAT"
            await asyncio.to_thread(
                eventually, lambda: len(mesh.rest("GET", path)["candidates"]), ANNOUNCE_SECONDS
            )
            yield up
        finally:
            await asyncio.to_thread(mesh.rest, "DELETE", f"providers/{name}")


@EACH_PATH
@pytest.mark.anyio
async def test_b8_the_last_of_two_fields_counts_and_the_body_goes_on_as_it_is(rig: Rig, path: str) -> None:
    name = LIMIT_FIELD[path]
    rig.refuse(path, with_raw(path, name, b"-5", **{name: 5}), BAD, name)
    content = with_raw(path, name, b"5", model="b8", **{name: -5})
    async with witness(rig.mesh, "b8") as up:
        headers = rig.mesh.headers()
        await asyncio.to_thread(rig.mesh.http.post, path, content=content, headers=headers)
        assert [request.body for request in up.requests] == [content.replace(b'"b8"', b'"up"')]


@EACH_PATH
@pytest.mark.anyio
async def test_b14_b27_no_url_of_a_client_is_ever_called(rig: Rig, path: str) -> None:
    async with ScriptedUpstream() as attacker:
        url = attacker.url
        fields = dict.fromkeys(("api_base", "base_url", "custom_host", "api_key", "webhook_url"), url)
        content = [{"role": "user", "content": [remote_image(path, f"{url}/a.png")]}]
        more = {**fields, "extra_headers": {"host": url}, TURNS_FIELD[path]: content}
        headers = {"x_portkey_custom_host": url, "x_lurus_base_url": url, "x_forwarded_host": url}
        await asyncio.to_thread(rig.accept, path, body(path, **more), **headers)
        assert attacker.connection_count == 0


SPOOFED = {
    "X-User-ID": "root",
    "X_User_Id": "root",
    "X-Tenant": "root",
    "x-account-id": "acct_default",
    "x-lurus-account": "acct_default",
    "Forwarded": "for=10.0.0.1",
    "x-forwarded-for": "10.0.0.1",
    "x-real-ip": "10.0.0.1",
    "grpc-timeout": "1n",
    "traceparent": "00-junk-junk-01",
    "cookie": "session=root",
    "proxy-authorization": "Basic cm9vdDpyb290",
    "x-hop": "1",
}


@EACH_PATH
@pytest.mark.anyio
async def test_b28_who_a_client_claims_to_be_goes_no_further(rig: Rig, path: str) -> None:
    headers = {**rig.mesh.headers(), **SPOOFED, "connection": "x-hop", "x-kept": "yes"}
    async with witness(rig.mesh, "b28") as up:
        content = body(path, model="b28")
        reply = await asyncio.to_thread(rig.mesh.http.post, path, content=content, headers=headers)
        seen = dict(up.requests[0].headers)
    assert seen["x-kept"] == b"yes"
    assert not set(seen) & {name.lower() for name in SPOOFED}
    assert (
        rig.mesh.key.encode() not in up.requests[0].head
        and b"the-secret-of-the-provider" in up.requests[0].head
    )
    row = await asyncio.to_thread(rig.mesh.log_row, reply.headers["request-id"])
    assert row["account_id"] == "acct_default"


@EACH_PATH
def test_b29_an_idempotency_key_makes_no_call_free(rig: Rig, path: str) -> None:
    key = f"constant-{path}"
    replies = [rig.accept(path, body(path), idempotency_key=key) for _ in range(4)]
    ids = [reply.headers["request-id"] for reply in replies]
    assert len(set(ids)) == 4
    assert [reply.headers.get("x-lurus-repeat-of") for reply in replies] == [None, *ids[:1] * 3]
    for request_id in ids:
        assert int(rig.mesh.transaction(request_id)["amount_nano_usd"]) < 0


@EACH_PATH
def test_b29_an_idempotency_key_of_another_request_is_refused(rig: Rig, path: str) -> None:
    key = f"used-{path}"
    rig.accept(path, body(path), idempotency_key=key)
    content = body(path, user="other")
    reply = rig.mesh.http.post(path, content=content, headers={**rig.mesh.headers(), "idempotency-key": key})
    check_refusal(path, reply.status_code, reply, CONFLICT, "idempotency-key")


@EACH_PATH
def test_b29_an_odd_idempotency_key_is_refused(rig: Rig, path: str) -> None:
    for key in ("k" * 256, "k" * 10_000, "two words"):
        rig.refuse(path, body(path), BAD, "idempotency-key", idempotency_key=key)


@EACH_PATH
def test_b29_a_header_that_no_provider_would_take_is_refused(rig: Rig, path: str) -> None:
    # An account of its own: money is lent to the gateway before the provider's headers are made.
    paid = f"Bearer {rig.mesh.key}"
    rig.refuse(path, body(path), BAD, authorization=paid, x_anything="k" * 10_000)


def test_nothing_is_left_of_what_was_refused(rig: Rig) -> None:
    rig.check_what_is_left()
