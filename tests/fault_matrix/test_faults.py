"""The fault matrix on a whole mesh: providers that fail at the start, amid the answer, or always (F1 to F10),
clients that leave (F13, F14), names and certificates (F44, F45).

The provider's ledger says what was served; what is booked is compared with it.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.fault_matrix.rig import CLIENTS, FaultRig
from tests.faults.provider import FaultyProvider
from tests.faults.proxy import FaultProxy
from tests.support.mesh import eventually

from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent

EACH_CLIENT = pytest.mark.parametrize("client", CLIENTS)
WAIT_SECONDS = 20.0
WHOLE = "w0 w1 w2 w3 w4 "
GONE = (usage_pb2.TERMINAL_CLIENT_GONE, usage_pb2.TERMINAL_COMPLETE)


def ok(rig: FaultRig) -> tuple[str, str]:
    """A provider that answers."""
    return rig.provider.url, "fault-ok"


def faulty(rig: FaultRig, fault: str) -> tuple[str, str]:
    """A provider that does this."""
    return rig.provider.url, f"fault-{fault}"


def check_second_answers(rig: FaultRig, client: str, model: str) -> UsageEvent:
    """Fails unless the second of a chain answers, alone, and is alone paid for; returns the event."""
    answer = rig.ask(client, model)
    assert answer.status == 200, answer.text
    assert answer.told().text == WHOLE and answer.told().is_complete
    record = answer.record()
    assert record.provider_id == f"{model}-2" and record.tokens.output == 5
    assert [attempt.provider_id for attempt in record.attempts] == [f"{model}-1", f"{model}-2"]
    assert record.attempts[0].tokens.output == 0
    return record


@EACH_CLIENT
def test_f01_a_refused_connection_goes_to_the_next(fault_rig: FaultRig, client: str) -> None:
    with fault_rig.chain((fault_rig.provider.refused_url, "x"), ok(fault_rig)) as model:
        check_second_answers(fault_rig, client, model)


@contextmanager
def swallowing_port() -> Iterator[int]:
    """A port whose connections are never completed: its queue is full, so that the kernel drops them."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def test_f02_a_swallowed_connection_goes_to_the_next(fault_rig: FaultRig) -> None:
    with (
        swallowing_port() as port,
        fault_rig.chain((f"http://127.0.0.1:{port}", "x"), ok(fault_rig)) as model,
    ):
        check_second_answers(fault_rig, "A", model)


@EACH_CLIENT
def test_f02_a_connection_that_is_taken_and_then_ignored_goes_to_the_next(
    fault_rig: FaultRig, client: str
) -> None:
    async def start() -> FaultProxy:
        proxy = FaultProxy(f"127.0.0.1:{fault_rig.provider.port}")
        await proxy.start()
        await proxy.change(mode="black_hole")
        return proxy

    proxy = fault_rig.loop.run(start())
    try:
        with fault_rig.chain((proxy.url, "x"), ok(fault_rig)) as model:
            check_second_answers(fault_rig, client, model)
    finally:
        fault_rig.loop.run(proxy.stop())


@pytest.mark.parametrize("status", [500, 502, 503, 529])
@EACH_CLIENT
def test_f03_a_failure_before_the_answer_goes_to_the_next(
    fault_rig: FaultRig, client: str, status: int
) -> None:
    with fault_rig.chain(faulty(fault_rig, f"status-{status}"), ok(fault_rig)) as model:
        check_second_answers(fault_rig, client, model)


@EACH_CLIENT
def test_f03_when_all_fail_three_are_asked_and_nobody_pays(fault_rig: FaultRig, client: str) -> None:
    failing = [faulty(fault_rig, f"status-{status}") for status in (500, 502, 503, 500)]
    before = len(fault_rig.provider.calls)
    with fault_rig.chain(*failing) as model:
        answer = fault_rig.ask(client, model)
    answer.check_error()
    assert answer.status >= 500 and len(fault_rig.provider.calls) - before == 3


@EACH_CLIENT
def test_f04_a_throttled_provider_is_left_alone(fault_rig: FaultRig, client: str) -> None:
    with fault_rig.chain(faulty(fault_rig, "status-429-30"), ok(fault_rig)) as model:
        check_second_answers(fault_rig, client, model)
        before = len(fault_rig.provider.of_model("fault-status-429-30"))
        for _ in range(3):
            assert fault_rig.ask(client, model).record().provider_id == f"{model}-2"
        assert len(fault_rig.provider.of_model("fault-status-429-30")) == before


@EACH_CLIENT
def test_f05_throttled_everywhere_is_told_with_the_shortest_wait(fault_rig: FaultRig, client: str) -> None:
    throttled = [faulty(fault_rig, f"status-429-{seconds}") for seconds in (50, 20)]
    with fault_rig.chain(*throttled) as model:
        answer = fault_rig.ask(client, model)
        answer.check_error(429)
        assert 1 <= int(answer.headers["retry-after"]) <= 60


@pytest.mark.parametrize("status", [401, 402, 403])
@EACH_CLIENT
def test_f06_a_refused_key_of_ours_is_not_the_clients_matter(
    fault_rig: FaultRig, client: str, status: int
) -> None:
    with fault_rig.chain(faulty(fault_rig, f"status-{status}"), ok(fault_rig)) as model:
        check_second_answers(fault_rig, client, model)
        before = len(fault_rig.provider.of_model(f"fault-status-{status}"))
        assert fault_rig.ask(client, model).status == 200
        assert len(fault_rig.provider.of_model(f"fault-status-{status}")) == before
    with fault_rig.chain(faulty(fault_rig, f"status-{status}")) as model:
        fault_rig.ask(client, model).check_error(502)


def test_f07_a_flapping_provider_is_not_seen(fault_rig: FaultRig) -> None:
    with fault_rig.chain(faulty(fault_rig, "flaky-2"), ok(fault_rig)) as model:
        statuses = [fault_rig.ask(client, model, False).status for client in CLIENTS * 10]
    assert statuses == [200] * 30


@pytest.mark.parametrize("how", ["cut-3", "reset-3"])
@EACH_CLIENT
def test_f08_a_provider_that_dies_amid_the_content(fault_rig: FaultRig, client: str, how: str) -> None:
    with fault_rig.chain(faulty(fault_rig, how), ok(fault_rig)) as model:
        answer = fault_rig.ask(client, model)
    answer.check_broken_off()
    served, record = fault_rig.served(), answer.record()
    assert served.behaviour == how.partition("-")[0], "another provider was asked amid the answer"
    assert served.sent_text == "w0 w1 w2 " and "w0 " in answer.text
    assert record.terminal == usage_pb2.TERMINAL_TRUNCATED
    assert 0 < record.tokens.output <= 3 and record.tokens.input > 0


@EACH_CLIENT
def test_f09_a_provider_that_dies_between_head_and_first_event(fault_rig: FaultRig, client: str) -> None:
    with fault_rig.chain(faulty(fault_rig, "cut-head"), ok(fault_rig)) as model:
        check_second_answers(fault_rig, client, model)


@EACH_CLIENT
def test_f09_or_is_silent_there(fault_rig: FaultRig, client: str) -> None:
    with fault_rig.chain(faulty(fault_rig, "silent-head"), ok(fault_rig)) as model:
        check_second_answers(fault_rig, client, model)


@EACH_CLIENT
def test_f10_a_provider_that_falls_silent_amid_the_content(fault_rig: FaultRig, client: str) -> None:
    answer = fault_rig.ask(client, "fault-silent-2")
    answer.check_broken_off()
    beats = {"A": "event: ping", "C": ": keepalive", "R": "response.in_progress"}
    assert answer.text.count(beats[client]) > (client == "R")
    served, record = fault_rig.provider.calls[-1], answer.record()
    assert eventually(lambda: served.is_peer_gone, WAIT_SECONDS)
    assert record.terminal == usage_pb2.TERMINAL_TIMEOUT and 0 < record.tokens.output <= 2


@EACH_CLIENT
def test_f13_a_client_that_leaves_stops_the_provider(fault_rig: FaultRig, client: str) -> None:
    with fault_rig.chain(faulty(fault_rig, "ok-2000-10")) as model:
        with fault_rig.streaming(client, model) as answer:
            request_id = answer.headers["x-request-id"]
            read_until(answer.iter_bytes(), b"w5 ")
        served = fault_rig.provider.calls[-1]
        assert eventually(lambda: served.ended is not None, WAIT_SECONDS) and served.is_peer_gone
        record = fault_rig.record(request_id)
    assert record.terminal == usage_pb2.TERMINAL_CLIENT_GONE
    assert 0 < record.tokens.output <= len(served.sent_text.split())


def read_until(parts: Iterator[bytes], mark: bytes) -> bytes:
    """Reads until `mark` has come."""
    found = b""
    for part in parts:
        found += part
        if mark in found:
            return found
    raise AssertionError(f"{mark!r} never came")


@EACH_CLIENT
def test_f14_a_client_that_leaves_before_the_last_event_pays_for_all_of_it(
    fault_rig: FaultRig, client: str
) -> None:
    with fault_rig.chain(faulty(fault_rig, "ok-5-150")) as model:
        with fault_rig.streaming(client, model) as answer:
            request_id = answer.headers["x-request-id"]
            read_until(answer.iter_bytes(), b"w4 ")
        record = fault_rig.record(request_id)
    assert record.terminal in GONE
    # Counted by the provider, or estimated from all that the client has: 15 characters.
    assert 4 <= record.tokens.output <= 5 and record.tokens.input > 0


def test_f44_a_name_without_an_address_goes_to_the_next(fault_rig: FaultRig) -> None:
    with fault_rig.chain(("https://no-such-name.invalid", "x"), ok(fault_rig)) as model:
        check_second_answers(fault_rig, "A", model)


CERTIFICATES = {
    "good": ("127.0.0.1", False),
    "expired": ("127.0.0.1", True),
    "of-another": ("other.example", False),
}


@pytest.mark.parametrize("kind", CERTIFICATES)
def test_f45_a_certificate_that_is_not_right_is_never_called(fault_rig: FaultRig, kind: str) -> None:
    host, is_expired = CERTIFICATES[kind]
    secured = FaultyProvider()
    secured.tls = fault_rig.authority.context(host, is_expired=is_expired)
    fault_rig.loop.run(secured.start())
    try:
        with fault_rig.chain((secured.url, "fault-ok"), ok(fault_rig)) as model:
            if kind == "good":
                assert fault_rig.ask("A", model).record().provider_id == f"{model}-1"
                return
            check_second_answers(fault_rig, "A", model)
        with fault_rig.chain((secured.url, "fault-ok")) as model:
            for client in CLIENTS:
                fault_rig.ask(client, model).check_error(502)
        assert secured.requests == []
    finally:
        fault_rig.loop.run(secured.stop())
