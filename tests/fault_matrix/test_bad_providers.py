"""The bad-input matrix from the other side (B43 to B47): what providers send, what clients are told of it.

Every behaviour is asked for in every dialect; where it matters, through a translation too. Of what a provider
says wrongly about itself nothing is charged below zero, and no failure is shown as a success.
"""

import psutil
import pytest
from tests.fault_matrix.rig import CACHED, CLIENTS, INPUT, FaultRig

from lurus.usage.v1 import usage_pb2

EACH_CLIENT = pytest.mark.parametrize("client", CLIENTS)
MIB = 2**20
RSS_BYTES = 96 * MIB
MAX_COUNT = 100_000_000
FRAMINGS = [
    "bytes",
    "crlf",
    "cr",
    "mixed",
    "bom",
    "comments",
    "no-space",
    "no-blank",
    "drip-1",
    "huge-1000000",
]
# The client's dialect, and the one of the provider.
CROSSINGS = [("A", "c"), ("C", "r"), ("R", "a")]


@pytest.mark.parametrize("framing", FRAMINGS)
@EACH_CLIENT
def test_b43_odd_framing_is_the_same_stream(fault_rig: FaultRig, client: str, framing: str) -> None:
    answer = fault_rig.ask(client, f"fault-{framing}")
    served = fault_rig.served()
    assert answer.status == 200 and served.is_complete
    assert all(f"w{number} " in answer.text for number in range(5))
    if not framing.startswith("huge"):  # An event that no client knows yet.
        found = answer.told()
        assert (found.text, found.is_complete) == (served.sent_text, True)
    tokens = answer.record().tokens
    assert (tokens.input, tokens.cache_read, tokens.output) == (INPUT, CACHED, 5)
    assert answer.record().token_source == usage_pb2.TOKEN_SOURCE_PROVIDER


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("crossing", CROSSINGS, ids="-via-".join)
def test_b43_odd_framing_is_translated_the_same(
    fault_rig: FaultRig, crossing: tuple[str, str], framing: str
) -> None:
    client, via = crossing
    answer = fault_rig.ask(client, f"via-{via}-fault-{framing}")
    found = answer.told()
    assert (found.text, found.is_complete) == (fault_rig.served().sent_text, True)
    assert answer.record().tokens.output == 5


@EACH_CLIENT
def test_b43_a_line_over_the_limit_breaks_the_stream_off(fault_rig: FaultRig, client: str) -> None:
    answer = fault_rig.ask(client, "fault-huge")
    answer.check_broken_off()
    assert 0 < answer.record().tokens.output <= 5


ODD_EVENTS = ["invalid-json", "unknown-events", "two-starts", "out-of-order"]


@pytest.mark.parametrize("odd", ODD_EVENTS)
@EACH_CLIENT
def test_b44_odd_events_are_relayed_and_metered_all_the_same(
    fault_rig: FaultRig, client: str, odd: str
) -> None:
    answer = fault_rig.ask(client, f"fault-{odd}")
    assert answer.status == 200
    assert all(f"w{number} " in answer.text for number in range(5))
    assert answer.record().tokens.output == 5


@pytest.mark.parametrize("odd", ODD_EVENTS)
@pytest.mark.parametrize("crossing", CROSSINGS, ids="-via-".join)
def test_b44_odd_events_never_make_an_odd_translation(
    fault_rig: FaultRig, crossing: tuple[str, str], odd: str
) -> None:
    client, via = crossing
    answer = fault_rig.ask(client, f"via-{via}-fault-{odd}")
    if answer.status != 200:
        answer.check_error()
        return
    found = answer.told()
    assert found.is_complete != bool(found.error)
    assert found.text in fault_rig.served().sent_text and (found.text or found.error)


@EACH_CLIENT
def test_b44_a_missing_terminator_is_told(fault_rig: FaultRig, client: str) -> None:
    answer = fault_rig.ask(client, "fault-no-terminator")
    if client == "C":  # The finish was told before; nobody waits for `[DONE]`.
        assert answer.status == 200 and "finish_reason" in answer.text and "error" not in answer.text
    else:
        answer.check_broken_off()
    assert answer.record().tokens.output > 0


@pytest.mark.parametrize("how", ["negative", "float", "huge", "decreasing", "null"])
@pytest.mark.parametrize("is_streaming", [True, False], ids=["stream", "plain"])
@EACH_CLIENT
def test_b44_impossible_usage_is_never_a_refund(
    fault_rig: FaultRig, client: str, is_streaming: bool, how: str
) -> None:
    record = fault_rig.ask(client, f"fault-usage-{how}", is_streaming).record()
    tokens = record.tokens
    assert record.terminal == usage_pb2.TERMINAL_COMPLETE and record.cost_nano_usd >= 0
    assert 0 <= tokens.output <= MAX_COUNT
    if how == "huge":
        assert 0 < tokens.output <= 10 and tokens.input == INPUT
        assert record.token_source == usage_pb2.TOKEN_SOURCE_PARTIAL
    elif how == "null":
        assert tokens.output > 0 and record.token_source == usage_pb2.TOKEN_SOURCE_ESTIMATED
    else:
        assert (tokens.input, tokens.cache_read) == (INPUT, CACHED)


@pytest.mark.parametrize("what", ["html", "empty", "error-object", "json-body"])
@pytest.mark.parametrize("is_streaming", [True, False], ids=["stream", "plain"])
@EACH_CLIENT
def test_b45_a_200_that_is_no_answer_is_no_success(
    fault_rig: FaultRig, client: str, is_streaming: bool, what: str
) -> None:
    answer = fault_rig.ask(client, f"fault-{what}", is_streaming)
    if what == "json-body" and not is_streaming:
        assert answer.told().text  # That is what was asked for.
        return
    assert answer.status >= 500
    answer.check_error()


@pytest.mark.parametrize("is_streaming", [True, False], ids=["stream", "plain"])
@EACH_CLIENT
def test_b46_usage_that_never_comes_is_estimated(
    fault_rig: FaultRig, client: str, is_streaming: bool
) -> None:
    answer = fault_rig.ask(client, "fault-usage-absent", is_streaming)
    record = answer.record()
    assert record.token_source == usage_pb2.TOKEN_SOURCE_ESTIMATED
    assert record.tokens.input > 0 and 0 < record.tokens.output <= 10
    if client == "R":  # Absent or whole: Codex stumbles over half of it.
        assert '"output_tokens"' not in answer.text or '"total_tokens"' in answer.text


@pytest.mark.parametrize(
    "odd",
    [
        "redirect-302",
        "redirect-307",
        "length-long",
        "length-short",
        "gzip-bomb-200",
        "large-header",
        "no-http",
    ],
)
@pytest.mark.parametrize("is_streaming", [True, False], ids=["stream", "plain"])
@EACH_CLIENT
def test_b47_odd_http_is_a_failure_of_the_provider(
    fault_rig: FaultRig, client: str, is_streaming: bool, odd: str
) -> None:
    gateway = psutil.Process(fault_rig.mesh.pid("gateway"))
    before = gateway.memory_info().rss
    fault_rig.ask(client, f"fault-{odd}", is_streaming).check_error(502)
    assert fault_rig.provider.redirected_count == 0
    assert gateway.memory_info().rss - before < RSS_BYTES


@EACH_CLIENT
def test_b47_broken_chunks_break_the_stream_off(fault_rig: FaultRig, client: str) -> None:
    answer = fault_rig.ask(client, "fault-bad-chunks")
    if answer.status == 200:
        answer.check_broken_off()
    else:
        answer.check_error()


@EACH_CLIENT
def test_b47_broken_chunks_are_noticed_at_once_also_if_the_provider_stays(
    fault_rig: FaultRig, client: str
) -> None:
    answer = fault_rig.ask(client, "fault-stuck-chunks")
    if answer.status == 200:
        answer.check_broken_off()
    else:  # All of it has come at once.
        answer.check_error(502)
    assert answer.record().terminal != usage_pb2.TERMINAL_TIMEOUT


@EACH_CLIENT
def test_a_plain_answer_may_begin_with_a_byte_order_mark(fault_rig: FaultRig, client: str) -> None:
    answer = fault_rig.ask(client, "fault-bom", False)
    assert answer.status == 200 and answer.told().text == fault_rig.served().sent_text
    assert not answer.text.startswith("\ufeff")
    assert answer.record().tokens.output == 5


@EACH_CLIENT
def test_b47_cookies_and_hops_end_here_and_early_hints_are_skipped(fault_rig: FaultRig, client: str) -> None:
    for model in ("fault-cookie", "fault-informational"):
        for is_streaming in (True, False):
            answer = fault_rig.ask(client, model, is_streaming)
            assert answer.status == 200 and answer.told().text == fault_rig.served().sent_text
            shown = {"set-cookie", "proxy-authenticate", "keep-alive", "strict-transport-security", "link"}
            assert not shown & {name.lower() for name in answer.headers}
            assert "fault-kit" not in answer.headers.get("server", "")


def test_nothing_of_it_has_broken_a_process(fault_rig: FaultRig) -> None:
    fault_rig.check_logs()
