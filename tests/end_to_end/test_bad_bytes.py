"""The bad-input matrix below HTTP: sizes, heads, framing, slowness, pipelines, odd paths (B14 to B52).

The slow ones go to a second edge with short timers.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests.support.bad_input import (
    BAD,
    BAD_BYTES,
    CHAT,
    LONG_HEAD,
    LONG_URL,
    NO_KEY,
    NO_METHOD,
    NO_PATH,
    PATHS,
    SLOW,
    TOO_LARGE,
    Rig,
    check_refusal,
    image,
    running_rig,
    turns,
)
from tests.support.impatient_edge import BODY_SECONDS, HEAD_SECONDS
from tests.support.mesh import Mesh
from tests.support.raw_http import RawConnection, exchange

MIB = 2**20
LIMIT_BYTES = 32 * MIB
SLOW_CONNECTIONS = 500
HEALTHY_SECONDS = 1.0
EACH_PATH = pytest.mark.parametrize("path", PATHS)


@pytest.fixture(scope="module")
def rig(mesh: Mesh) -> Iterator[Rig]:
    """The mesh, a second edge, and an account that only sends what is refused."""
    with running_rig(mesh, "acct_bad_bytes") as found:
        yield found


@EACH_PATH
def test_b14_an_image_of_40_mb_is_too_large(rig: Rig, path: str) -> None:
    content = turns(path, [{"role": "user", "content": [image(path, "image/png", "A" * 40_000_000)]}])
    rig.refuse_raw(path, rig.request(path, content=content), TOO_LARGE)


@EACH_PATH
def test_b16_a_length_over_the_limit_is_refused_before_the_body(rig: Rig, path: str) -> None:
    data = rig.request(path, f"content-length: {LIMIT_BYTES + 1}", content=b"", states_length=False)
    rig.refuse_raw(path, data, TOO_LARGE)


@EACH_PATH
def test_b17_an_endless_body_is_refused_at_the_limit(rig: Rig, path: str) -> None:
    chunks = (b"100000\r\n" + b" " * MIB + b"\r\n") * 33
    data = rig.request(path, "transfer-encoding: chunked", content=chunks, states_length=False)
    rig.refuse_raw(path, data, TOO_LARGE)


@EACH_PATH
@pytest.mark.parametrize("value", [b"", b"Bearer   ", b"Bearer \t"])
def test_b20_a_blank_key_is_refused(rig: Rig, value: bytes, path: str) -> None:
    given = f"authorization: Bearer {rig.key}".encode()
    (answer,) = exchange(
        rig.port, rig.request(path, "connection: close").replace(given, b"authorization: " + value)
    )
    check_refusal(path, answer.status, answer, NO_KEY)


BAD_LINES = {
    "B29-control-character": "idempotency-key: a\x01b",
    "B30-line-feed": "x-a: b\nx-c: d",
    "B30-carriage-return": "x-a: b\rc",
    "B30-nul": "x-a: b\0c",
    "B30-folded": "x-a: b\r\n c",
    "B30-space-before-colon": "x-a : b",
    "B30-no-colon": "x-a",
    "B30-no-name": ": b",
    "B31-length-and-chunked": "transfer-encoding: chunked",
    "B31-another-length": "content-length: 5",
    "B32-two-hosts": "host: other",
}


@EACH_PATH
@pytest.mark.parametrize("row", BAD_LINES)
def test_a_head_that_is_no_head_is_refused(rig: Rig, row: str, path: str) -> None:
    rig.refuse_raw(path, rig.request(path, BAD_LINES[row]) + rig.follower(), BAD_BYTES)


@EACH_PATH
def test_b30_bare_line_feeds_are_refused(rig: Rig, path: str) -> None:
    rig.refuse_raw(path, rig.request(path).replace(b"\r\n", b"\n") + rig.follower(), BAD_BYTES)


BAD_FRAMES = {
    "B31-length-plus-5": ("content-length: +5", b"{   }"),
    "B31-length-minus-1": ("content-length: -1", b""),
    "B31-length-list": ("content-length: 5, 5", b"{   }"),
    "B31-unknown-coding": ("transfer-encoding: xchunked", b"2\r\n{}\r\n0\r\n\r\n"),
    "B31-gzip-chunked": ("transfer-encoding: gzip, chunked", b"2\r\n{}\r\n0\r\n\r\n"),
    "B31-bad-chunk-size": ("transfer-encoding: chunked", b"zz\r\n{}\r\n0\r\n\r\n"),
    "B31-negative-chunk-size": ("transfer-encoding: chunked", b"-2\r\n{}\r\n0\r\n\r\n"),
    "B31-huge-chunk-size": ("transfer-encoding: chunked", b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
    "B31-bad-chunk-end": ("transfer-encoding: chunked", b"2\r\n{}xx0\r\n\r\n"),
}


@EACH_PATH
@pytest.mark.parametrize("row", BAD_FRAMES)
def test_b31_a_body_whose_length_is_not_clear_is_refused(rig: Rig, row: str, path: str) -> None:
    line, content = BAD_FRAMES[row]
    data = rig.request(path, line, content=content, states_length=False)
    rig.refuse_raw(path, data + rig.follower(), BAD_BYTES)


@EACH_PATH
def test_b32_a_head_without_a_host_is_refused(rig: Rig, path: str) -> None:
    rig.refuse_raw(path, rig.request(path).replace(b"host: test\r\n", b""), BAD_BYTES)


@EACH_PATH
@pytest.mark.parametrize("lines", [("x-a: " + "a" * 2**16,), ("x-a: " + "a" * MIB,), ("x-a: b",) * 10_000])
def test_b32_a_head_that_is_too_large_is_refused(rig: Rig, lines: tuple[str, ...], path: str) -> None:
    rig.refuse_raw(path, rig.request(path, *lines) + rig.follower(), LONG_HEAD)


@EACH_PATH
def test_b32_a_url_that_is_too_long_is_refused(rig: Rig, path: str) -> None:
    data = rig.request(path).replace(b" HTTP/1.1", b"?a=" + b"a" * 20_000 + b" HTTP/1.1", 1)
    rig.refuse_raw(path, data, LONG_URL)


def test_b33_a_silent_connection_is_closed_and_tls_is_answered(rig: Rig) -> None:
    with RawConnection(rig.wire_port) as connection:
        assert connection.until_closed() == b""
        assert HEAD_SECONDS <= connection.seconds() + 0.1 < HEAD_SECONDS + 15
    hello = bytes.fromhex("16030100c8010000c40303") + bytes(190)
    rig.refuse_raw(CHAT, hello, BAD_BYTES)


def test_b34_five_hundred_slow_heads_are_refused_and_others_are_served(rig: Rig) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(RawConnection(rig.wire_port)) for _ in range(SLOW_CONNECTIONS)]
        for number, connection in enumerate(slow):
            connection.send(f"POST {PATHS[number % 3]} HTTP/1.1\r\nhost: t\r\n".encode())
        waits = []
        deadline = time.monotonic() + HEAD_SECONDS + 1
        while time.monotonic() < deadline:
            started = time.monotonic()
            rig.refuse(CHAT, b"{}", BAD, "model")
            waits.append(time.monotonic() - started)
            for connection in slow:
                connection.send(b"x-slow: yes\r\n")
            time.sleep(0.3)
        for number, connection in enumerate(slow):
            (answer,) = connection.answers()
            check_refusal(PATHS[number % 3], answer.status, answer, SLOW)
    assert max(waits) < HEALTHY_SECONDS


@EACH_PATH
def test_b35_a_body_that_does_not_come_is_refused(rig: Rig, path: str) -> None:
    head = rig.request(path, "content-length: 1000", content=b'{"model"', states_length=False)
    with RawConnection(rig.wire_port) as dripping, RawConnection(rig.wire_port) as idle:
        with RawConnection(rig.wire_port) as leaving:
            leaving.send(head)
        for connection in (dripping, idle):
            connection.send(head)
        while dripping.seconds() < BODY_SECONDS:
            dripping.send(b" ")
            time.sleep(0.2)
        for connection in (dripping, idle):
            (answer,) = connection.answers()
            check_refusal(path, answer.status, answer, SLOW)
            assert connection.seconds() < BODY_SECONDS + 15


@EACH_PATH
def test_b36_a_thousand_pipelined_requests_are_answered_in_order_and_no_more(rig: Rig, path: str) -> None:
    answers = exchange(rig.port, b"".join(rig.request(path, content=b"{}") for _ in range(1000)))
    for answer in answers[:-1]:
        check_refusal(path, answer.status, answer, BAD, "model")
    assert 100 <= len(answers) <= 1000
    if len(answers) < 1000:
        check_refusal(path, answers[-1].status, answers[-1], BAD_BYTES)


@EACH_PATH
def test_b36_what_is_smuggled_behind_a_refusal_is_never_executed(rig: Rig, path: str) -> None:
    rig.refuse_raw(path, rig.request(path, "bad line") + rig.follower() * 3, BAD_BYTES)


@EACH_PATH
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_b52_other_methods_are_refused_and_no_origin_is_allowed(rig: Rig, method: str, path: str) -> None:
    data = rig.request(path, "connection: close", "origin: https://evil.example", content=b"", method=method)
    (answer,) = exchange(rig.port, data)
    assert answer.headers["allow"] == "POST"
    assert not any(name.startswith("access-control") for name in answer.headers)
    if method == "HEAD":
        assert (answer.status, answer.body) == (405, b"")
    else:
        check_refusal(path, answer.status, answer, NO_METHOD)


@EACH_PATH
@pytest.mark.parametrize(
    "spelling",
    ["{0}/", "/{0}", "/x/..{0}", "/x/%2e%2e{0}", "/%76%31{1}", "{0}%00", "{0};x=1", "{0}%2f", "{2}"],
)
def test_b52_another_spelling_of_a_path_is_another_path(rig: Rig, spelling: str, path: str) -> None:
    other = spelling.format(path, path.removeprefix("/v1"), path.upper())
    data = rig.request(path, "connection: close").replace(path.encode(), other.encode(), 1)
    (answer,) = exchange(rig.port, data)
    begins_so = spelling.startswith(("{0}", "/%76"))
    check_refusal(path if begins_so else CHAT, answer.status, answer, NO_PATH)


def test_nothing_is_left_of_what_was_refused(rig: Rig) -> None:
    rig.check_what_is_left()
