"""The bad-input matrix on the gRPC ports (B37 to B42): what no gRPC library sends, and what one may.

Routing's port is that of teams, billing's that of operators. Whatever comes, the processes live on, their
memory stays, other callers are answered, and nothing of ours is in the logs.
"""

import os
import struct
from collections.abc import Iterator

import grpc
import hpack
import psutil
import pytest
from tests.support.bad_input import Rig, running_rig
from tests.support.mesh import Mesh
from tests.support.raw_h2 import RawH2, frame
from tests.support.raw_http import RawConnection

from lurus_common.rpc import MAX_MESSAGE_BYTES

MIB = 2**20
PORTS = ("ROUTING", "BILLING")
EACH_PORT = pytest.mark.parametrize("area", PORTS)
PROCESSES = {"ROUTING": "gateway", "BILLING": "billing"}
HEALTH = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
GET_BALANCE = "/lurus.billing.v1.BillingService/GetBalance"
LIST_MODELS = "/lurus.routing.v1.RoutingService/ListModels"
METHODS = {"ROUTING": LIST_MODELS, "BILLING": GET_BALANCE}
RSS_BYTES = 96 * MIB
FLOOD = 10_000
PART_BYTES = 2**14
MAX_STREAMS = 1_000
CALL_SECONDS = 60.0  # A flood of calls keeps a busy machine busy.
# Frames of HTTP/2.
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4
CANCEL = bytes([0, 0, 0, 8])
FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", WATCH),
    (":authority", "test"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


@pytest.fixture(scope="module")
def rig(mesh: Mesh) -> Iterator[Rig]:
    """The mesh; its audit stands at the end of this module."""
    with running_rig(mesh, "acct_bad_grpc") as found:
        yield found


@pytest.fixture(autouse=True)
def survivors(mesh: Mesh) -> Iterator[None]:
    """Fails unless both servers answer afterwards, with the memory that they had."""
    pids = [mesh.pid(name) for name in PROCESSES.values()]
    before = [psutil.Process(pid).memory_info().rss for pid in pids]
    yield
    for area in PORTS:
        assert health(mesh, area) == b"\x08\x01"
    for pid, rss in zip(pids, before, strict=True):
        assert psutil.Process(pid).memory_info().rss - rss < RSS_BYTES


def call(
    mesh: Mesh,
    area: str,
    method: str,
    message: bytes,
    *metadata: tuple[str, str],
    seconds: float = CALL_SECONDS,
) -> bytes:
    """Makes a unary call with a message of any bytes and returns the answer's."""
    token = ("authorization", f"Bearer {mesh.admin_token}")
    options = [("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", MIB)]
    with grpc.insecure_channel(f"127.0.0.1:{mesh.ports[area]}", options) as channel:
        found = channel.unary_unary(method)
        answer: bytes = found(message, timeout=seconds, metadata=[token, *metadata])
        return answer


def health(mesh: Mesh, area: str) -> bytes:
    """Returns what the health service says; 1 is SERVING."""
    return call(mesh, area, HEALTH, b"")


def refused(mesh: Mesh, area: str, method: str, message: bytes, *metadata: tuple[str, str]) -> grpc.RpcError:
    """Makes a call that must fail, and returns the failure."""
    with pytest.raises(grpc.RpcError) as failure:
        call(mesh, area, method, message, *metadata)
    return failure.value


GARBAGE = {
    "zeros": bytes(1000),
    "noise": b"\xff\x13\x37" * 20_000,
    "http-1": b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(190),
    "half-a-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX" + bytes(100),
}


@EACH_PORT
@pytest.mark.parametrize("kind", GARBAGE)
def test_b37_what_is_no_http_2_is_not_answered(mesh: Mesh, area: str, kind: str) -> None:
    with RawConnection(mesh.ports[area]) as connection:
        connection.send(GARBAGE[kind])
        connection.until_closed()


@EACH_PORT
def test_b37_unknown_methods_and_content_types(mesh: Mesh, area: str) -> None:
    for method in ("/no.such.Service/Method", "/lurus.routing.v1.RoutingService/Wizard", "/", "//", "/%00"):
        assert refused(mesh, area, method, b"").code() is grpc.StatusCode.UNIMPLEMENTED
    with RawH2(mesh.ports[area]) as client:
        for kind in ("text/html", "application/json", "application/grpc-web"):
            (stream,) = client.until_over(client_request(client, METHODS[area], content_type=kind))
            assert stream.is_over and stream.headers.get("grpc-status", "?") != "0"


def client_request(client: RawH2, path: str, *headers: tuple[str, str], **more: str) -> int:
    """Begins a call and sends it."""
    number = client.request(path, *headers, **more)  # type: ignore[arg-type]
    client.flush()
    return number


@EACH_PORT
def test_b38_large_metadata_is_refused(mesh: Mesh, area: str) -> None:
    failure = refused(mesh, area, METHODS[area], b"", ("x-large", "a" * 20_000))
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_b38_a_large_message_is_refused(mesh: Mesh) -> None:
    failure = refused(mesh, "BILLING", GET_BALANCE, b"\x0a" + bytes(MAX_MESSAGE_BYTES + 1))
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


ODD_HEADERS: dict[str, tuple[tuple[tuple[str, str], ...], dict[str, str]]] = {
    "te": ((), {"te": "x"}),
    "scheme-and-8-kb": ((("x-a", "a" * 9000),), {"scheme": "wizard"}),
    "upper-case": ((("X-Upper", "a"),), {}),
    "connection": ((("connection", "close"),), {}),
    "pseudo-last": (((":path", "/other"),), {}),
    "nul": ((("x-a", "a\0b"),), {}),
    "negative-length": ((("content-length", "-5"),), {}),
}


@EACH_PORT
@pytest.mark.parametrize("kind", ODD_HEADERS)
def test_b38_odd_headers_end_the_stream_or_the_connection(mesh: Mesh, area: str, kind: str) -> None:
    headers, more = ODD_HEADERS[kind]
    with RawH2(mesh.ports[area]) as client:
        (stream,) = client.until_over(client_request(client, METHODS[area], *headers, **more))
        assert stream.is_over or client.is_closed
        assert stream.headers.get("grpc-status", "?") != "0"


def test_b39_a_rapid_reset_is_borne(mesh: Mesh) -> None:
    encoder = hpack.Encoder()
    first, later = encoder.encode(FIELDS), encoder.encode(FIELDS)
    parts = [frame(HEADERS, END_HEADERS, 1, first)]
    for number in range(3, 2 * FLOOD, 2):
        parts.append(frame(RST_STREAM, 0, number - 2, CANCEL))
        parts.append(frame(HEADERS, END_HEADERS, number, later))
    flood(mesh, b"".join(parts))


def test_b39_streams_over_the_limit_are_refused(mesh: Mesh) -> None:
    with RawH2(mesh.ports["BILLING"]) as client:  # The routing service admits more.
        client.connection.remote_settings[3] = 2 * MAX_STREAMS  # The client ignores what it was told.
        client.connection.remote_settings.acknowledge()
        numbers = [client.request(WATCH) for _ in range(MAX_STREAMS + 100)]
        client.flush()
        client.until(lambda: sum(client.streams[n].is_over for n in numbers) >= 100, 10)
        served = [n for n in numbers if not client.streams[n].is_over and client.streams[n].headers]
        assert len(served) <= MAX_STREAMS


def flood(mesh: Mesh, data: bytes, then: bytes = b"") -> bool:
    """Sends this on a connection with settings exchanged; whether the server closes it."""
    with RawH2(mesh.ports["ROUTING"]) as client:
        for start in range(0, len(data), PART_BYTES):
            client.send(data[start : start + PART_BYTES])
            client.read(0.001)
            if client.is_closed:
                return True
        client.send(then)
        return client.until_closed(1)


def test_b40_a_continuation_flood_is_cut(mesh: Mesh) -> None:
    part = b"\x00\x03x-a\x7f\x81\x07" + b"a" * 256  # A literal that is not indexed.
    more = frame(CONTINUATION, 0, 1, part * 4) * FLOOD
    assert flood(mesh, frame(HEADERS, 0, 1, hpack.Encoder().encode(FIELDS)) + more)


def test_b40_a_bomb_of_indexed_headers_is_refused(mesh: Mesh) -> None:
    block = hpack.Encoder().encode(FIELDS) + b"\x40\x03x-a\x7f\xe1\x1e" + b"a" * 4000 + b"\xbe" * 12_000
    with RawH2(mesh.ports["ROUTING"]) as client:
        number = client.request(HEALTH)
        client.connection.clear_outbound_data_buffer()
        client.send(frame(HEADERS, END_STREAM | END_HEADERS, number, block[:16_000]))
        (stream,) = client.until_over(number)
        # Too large (8); or, as gRPC lets a field that is too large out of its table, not to be parsed (13).
        is_refused = stream.headers.get("grpc-status") in ("8", "13")
        assert stream.reset_code is not None or client.is_closed or is_refused


FLOODS = {
    "settings": frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535)),
    "pings": frame(PING, 0, 0, bytes(8)),
    "empty-settings": frame(SETTINGS, 0, 0, b""),
    "unknown-frames": frame(0x77, 0, 0, b"wizard"),
    "window-updates": frame(8, 0, 0, struct.pack(">I", 1)),
    "priorities": frame(2, 0, 99, struct.pack(">IB", 1, 1)),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_b40_floods_of_small_frames_are_borne(mesh: Mesh, kind: str) -> None:
    flood(mesh, FLOODS[kind] * FLOOD)


def test_b40_empty_frames_of_data_are_borne(mesh: Mesh) -> None:
    begin = frame(HEADERS, END_HEADERS, 1, hpack.Encoder().encode(FIELDS))
    flood(mesh, begin + frame(DATA, 0, 1, b"") * FLOOD, frame(RST_STREAM, 0, 1, bytes(4)))


INVALID = {
    "wire-type": b"\x0f",
    "truncated": b"\x0a\x05ab",
    "length-2-to-31": b"\x0a\xff\xff\xff\xff\x07",
    "no-varint": b"\xff" * 11,
    "no-utf-8": b"\x0a\x02\xff\xfe",
    "noise": os.urandom(200) + b"\xff\xff",
}


@pytest.mark.parametrize("kind", INVALID)
@EACH_PORT
def test_b41_bytes_that_are_no_message_are_the_callers_fault(mesh: Mesh, area: str, kind: str) -> None:
    failure = refused(mesh, area, METHODS[area], INVALID[kind])
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT, failure
    assert "Traceback" not in (failure.details() or "") and ".py" not in (failure.details() or "")


DEADLINES = {"0n": True, "1n": True, "-5S": None, "junk": None, "99999999H": False, "9" * 40 + "S": None}


@pytest.mark.parametrize("value", DEADLINES)
@EACH_PORT
def test_b42_deadlines_that_make_no_sense(mesh: Mesh, area: str, value: str) -> None:
    with RawH2(mesh.ports[area]) as client:
        number = client_request(client, HEALTH, ("grpc-timeout", value))
        (stream,) = client.until_over(number)
        status = stream.headers.get("grpc-status")
        is_short = DEADLINES[value]
        assert stream.is_over or client.is_closed
        if is_short:
            assert status in (
                "4",
                "0",
                None,
            )  # It was quicker, or DEADLINE_EXCEEDED, or the stream was reset.
        elif is_short is False:
            assert status == "0"


def test_nothing_is_left_of_what_was_refused(rig: Rig) -> None:
    rig.check_what_is_left()
