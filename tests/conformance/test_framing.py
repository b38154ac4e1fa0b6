"""Event streams on the wire (wire-contract E.1)."""

import asyncio
import itertools
import json
import time
from typing import Any

import openai
import psutil
import pytest
from tests.conformance.rig import HEARTBEAT_SECONDS, UPSTREAM_MODEL, Gateway
from tests.conformance.streams import OUTPUT, begin, deltas, end, has_end, normal, whole
from tests.support import provider_streams as provider
from tests.support.scripted_upstream import Exchange, stream

pytestmark = pytest.mark.anyio

WORDS = "世界😀"
CODEX_PING = "keepalive"
MEMORY_BYTES = 64 * 2**20


def raw_text(dialect: str, text: str) -> bytes:
    """A whole stream with this text in one delta, without escapes."""
    return b"".join(whole(dialect, "TEXT")).replace(b"TEXT", text.encode())


def cut(data: bytes, *places: int) -> list[bytes]:
    """Cuts `data` at these places."""
    return [data[start:end] for start, end in itertools.pairwise([0, *places, len(data)])]


@pytest.mark.row("B43")
async def test_S01_characters_that_are_cut_anywhere_are_relayed_whole(gateway: Gateway) -> None:
    sent = raw_text("A", WORDS)
    place = sent.index(WORDS.encode())
    # Inside each character.
    pieces = cut(sent, place + 1, place + 5, place + 7, place + 8, place + 9)
    told = await gateway.given("A", "A", events=[part for piece in pieces for part in (piece, 0.02)])
    assert told.status == 200
    assert told.body == sent
    assert told.texts() == WORDS
    assert (await told.record()).tokens.output == OUTPUT


@pytest.mark.row("B43")
async def test_S02_lines_that_end_in_crlf_are_relayed_and_metered(gateway: Gateway) -> None:
    sent = b"".join(whole("A", "one", "two")).replace(b"\n", b"\r\n")
    told = await gateway.given("A", "A", events=cut(sent, 100, 101, 350))
    assert told.body == sent
    assert told.texts() == "onetwo"
    assert (await told.record()).tokens.output == OUTPUT


@pytest.mark.row("B43")
async def test_S03_lines_that_end_in_cr_are_read_as_others_are(gateway: Gateway) -> None:
    sent = whole("A", "one", "two")
    told = await gateway.given("C", "A", events=[piece.replace(b"\n", b"\r") for piece in sent])
    usual = await gateway.given("C", "A", events=sent)
    assert told.status == usual.status == 200
    assert usual.texts() == "onetwo" and has_end("C", usual.events)
    assert normal(told.events) == normal(usual.events)
    assert b"\r" not in told.body


@pytest.mark.row("B43")
async def test_S04_comments_between_events_are_relayed(gateway: Gateway) -> None:
    sent = [part for piece in whole("R", "one", "two") for part in (b": ok\n\n", piece)]
    told = await gateway.given("R", "R", events=sent)
    assert told.body == b"".join(sent)
    assert [event.name for event in told.events if event.name][-1] == "response.completed"
    assert told.names.count(":") == len(sent) // 2


async def test_S05_many_events_in_one_write_all_pass_in_order(gateway: Gateway) -> None:
    words = [f"{number} " for number in range(200)]
    goes_on = asyncio.Event()
    provider_c = await gateway.default("C")
    burst = b"".join([*begin("C"), *deltas("C", *words)])
    provider_c.upstream.script = stream([burst, goes_on, *end("C")])
    client = await gateway.open("C", provider_c)
    assert (await client.read_head()).status == 200
    answer = await client.read_until(lambda answer: b"199 " in answer.body, 5)
    # None of them is held back for the end of the stream.
    assert answer.body == burst
    goes_on.set()
    answer = await client.read_all()
    assert answer.is_complete and has_end("C", answer.events)


@pytest.mark.row("B43")
async def test_S06_writes_of_one_byte_make_the_same_stream(gateway: Gateway) -> None:
    sent = b"".join(
        [
            provider.a_start(),
            provider.a_thinking(0, "Hm 世", "sig"),
            provider.a_text(1, "世界😀", "two"),
            provider.a_tool(2, "toolu_1", "f", "", '{"a":', "1}"),
            provider.a_end("tool_use"),
        ]
    )
    usual = await gateway.given("R", "A", events=[sent])
    told = await gateway.given("R", "A", events=[sent[at : at + 1] for at in range(len(sent))])
    assert usual.status == told.status == 200
    assert has_end("R", usual.events)
    assert _shape(told.events) == _shape(usual.events)


def _shape(events: list[Any]) -> list[Any]:
    """Events without ids, and with neighbouring deltas joined: how they are cut is free."""
    found: list[Any] = []
    for name, data, _ in normal(events):
        data = {key: value for key, value in (data or {}).items() if key != "sequence_number"}
        if name.endswith(".delta") and found and found[-1][0] == name:
            found[-1][1]["delta"] += data["delta"]
        elif name != "keepalive":
            found.append((name, data))
    # Sealed reasoning is another text each time.
    return json.loads(json.dumps(found), object_hook=_without_seals)  # type: ignore[no-any-return]


def _without_seals(value: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name not in ("encrypted_content", "call_id")}


@pytest.mark.parametrize("size", [2**20, 6 * 2**20], ids=["1 MiB", "6 MiB"])
@pytest.mark.row("B43")
async def test_S07_one_event_may_be_large(gateway: Gateway, size: int) -> None:
    block = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    big = provider.a_delta(0, "input_json_delta", partial_json='{"a":"' + "x" * size + '"}')
    sent = [
        provider.a_start(),
        provider.a_open(0, block),
        big,
        provider.a_close(0),
        provider.a_end("tool_use"),
    ]
    process = psutil.Process(gateway.mesh.pid(next(n for n in gateway.mesh.names() if "gateway" in n)))
    before = process.memory_info().rss
    told = await gateway.given("A", "A", events=sent)
    assert told.status == 200
    assert told.body == b"".join(sent)
    assert process.memory_info().rss - before < MEMORY_BYTES


@pytest.mark.row("B43")
async def test_S08_data_in_several_lines_is_one_event(gateway: Gateway) -> None:
    text = provider.c_text("split")
    # Between two members, where JSON may have a line break.
    split = text.replace(b', "', b',\ndata: "', 2)
    assert split.count(b"data:") == 3
    told = await gateway.given("A", "C", events=[*begin("C"), split, *end("C")])
    assert told.texts() == "split"
    assert told.names[-1] == "message_stop"


@pytest.mark.row("B43")
async def test_S09_data_without_a_space_is_read_as_with_one(gateway: Gateway) -> None:
    sent = whole("C", "one", "two")
    told = await gateway.given("A", "C", events=[piece.replace(b"data: ", b"data:") for piece in sent])
    usual = await gateway.given("A", "C", events=sent)
    assert told.texts() == "onetwo"
    assert normal(told.events) == normal(usual.events)
    assert told.names[-1] == "message_stop"


async def test_S10_ids_and_retry_lines_are_not_taken_over(gateway: Gateway) -> None:
    sent = [b"id: 7\nretry: 100\n" + piece for piece in whole("C", "one", "two")]
    told = await gateway.given("R", "C", events=[b"retry: 100\n\n", *sent])
    assert told.texts() == "onetwo"
    assert has_end("R", told.events)
    assert [event.others for event in told.events if event.others] == []


async def test_S11_line_separators_of_unicode_do_not_end_a_line(gateway: Gateway) -> None:
    words = "a\u2028b\u2029c\u0085d"
    told = await gateway.given("A", "C", events=[raw_text("C", words)])
    assert told.texts() == words
    assert told.names.count("content_block_delta") == 1


@pytest.mark.row("B43")
async def test_S12_a_byte_order_mark_is_skipped(gateway: Gateway) -> None:
    sent = whole("C", "one")
    told = await gateway.given("R", "C", events=[b"\xef\xbb\xbf" + sent[0], *sent[1:]])
    assert told.texts() == "one"
    assert told.names[0] == "response.created" and has_end("R", told.events)
    assert b"\xef\xbb\xbf" not in told.body


@pytest.mark.row("B44")
async def test_S13_unknown_events_and_fields_are_relayed(gateway: Gateway) -> None:
    unknown = b'event: future_event\nfoo: bar\ndata: {"type":"future_event","x":1}\n\n'
    sent = [*begin("A"), unknown, *deltas("A", "one"), *end("A")]
    told = await gateway.given("A", "A", events=sent)
    assert told.body == b"".join(sent)


@pytest.mark.row("B43")
async def test_S14_a_last_event_without_its_blank_line_counts(gateway: Gateway) -> None:
    sent = b"".join(whole("R", "one")).rstrip(b"\n")
    told = await gateway.given("C", "R", events=[sent])
    assert told.texts() == "one"
    assert [event.data for event in told.events][-1] == "[DONE]"
    finishes = [choice["finish_reason"] for choice in _choices(told.events) if choice["finish_reason"]]
    assert finishes == ["stop"]


def _choices(events: list[Any]) -> list[dict[str, Any]]:
    chunks = [event.json for event in events if event.data and event.data != "[DONE]"]
    return [choice for chunk in chunks for choice in chunk["choices"]]


async def test_S15_empty_deltas_open_nothing(gateway: Gateway) -> None:
    empty = [provider.c_chunk({}), provider.c_chunk({"content": ""}), provider.c_chunk()]
    told = await gateway.given("A", "C", events=[*empty, *begin("C"), *empty, *end("C")])
    assert told.status == 200
    assert told.names == ["message_start", "message_delta", "message_stop"]
    told = await gateway.given("A", "C", events=[*begin("C"), *empty, *deltas("C", "x"), *empty, *end("C")])
    assert told.names.count("content_block_start") == told.names.count("content_block_delta") == 1
    assert told.texts() == "x"


async def test_S16_the_first_event_does_not_wait_for_the_second(gateway: Gateway) -> None:
    sent_at = 0.0
    goes_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        nonlocal sent_at
        await exchange.send_stream_head()
        sent_at = time.monotonic()
        await exchange.send_chunk(provider.a_start())
        await goes_on.wait()
        for piece in [provider.a_text(0, "one"), provider.a_end()]:
            await exchange.send_chunk(piece)
        await exchange.end_chunks()

    provider_a = await gateway.default("A")
    provider_a.upstream.script = script
    client = await gateway.open("A", provider_a)
    await client.read_head()
    answer = await client.read_until(lambda answer: b"\n\n" in answer.body)
    assert answer.events[0].name == "message_start"
    assert answer.arrival(b"\n\n") - sent_at < 0.1
    goes_on.set()
    assert (await client.read_all()).events[-1].name == "message_stop"


def silent(dialect: str) -> list[bytes | float]:
    """A stream with a silence of more than two heartbeats in the middle."""
    return [
        *begin(dialect),
        *deltas(dialect, "a"),
        2.6 * HEARTBEAT_SECONDS,
        *deltas(dialect, "b", first=1),
        *end(dialect, "a", "b"),
    ]


@pytest.mark.parametrize("upstream", ["A", "C", "R"])
async def test_S17_an_anthropic_client_is_sent_pings(gateway: Gateway, upstream: str) -> None:
    told = await gateway.given("A", upstream, events=silent(upstream))
    pings = [event for event in told.events if event.name == "ping"]
    assert len(pings) >= 2
    assert {event.raw for event in pings} == {b'event: ping\ndata: {"type": "ping"}\n\n'}
    assert told.texts() == "ab" and told.names[-1] == "message_stop"
    if upstream == "A":
        relayed = b"".join(part for part in silent("A") if isinstance(part, bytes))
        assert told.body.replace(pings[0].raw, b"") == relayed


@pytest.mark.parametrize("upstream", ["A", "C", "R"])
async def test_S18_a_chat_client_is_sent_comments(gateway: Gateway, upstream: str) -> None:
    told = await gateway.given("C", upstream, events=silent(upstream))
    beats = [event for event in told.events if event.data is None]
    assert len(beats) >= 2
    assert {event.raw for event in beats} == {b": keepalive\n\n"}
    assert told.texts() == "ab" and has_end("C", told.events)
    served = await gateway.default(upstream)
    served.upstream.script = stream(silent(upstream))
    async with openai.AsyncOpenAI(
        base_url=gateway.mesh.base_url + "/v1", api_key=gateway.key, max_retries=0
    ) as client:
        chunks = await client.chat.completions.create(
            model=served.model, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        text = [choice.delta.content or "" async for chunk in chunks for choice in chunk.choices]
    assert "".join(text) == "ab"


@pytest.mark.parametrize("upstream", ["A", "C", "R"])
async def test_S19_a_responses_client_is_sent_numbered_events(gateway: Gateway, upstream: str) -> None:
    told = await gateway.given("R", upstream, events=silent(upstream))
    assert told.names[0] == "response.created"
    beats = [at for at, event in enumerate(told.events) if event.name == CODEX_PING]
    assert len(beats) >= 2
    assert told.texts() == "ab" and has_end("R", told.events)
    numbers = [event.json["sequence_number"] for event in told.events]
    if upstream == "R":
        # Relayed: the last one that was seen, so that the provider's own go on as they are.
        assert {numbers[at] for at in beats} == {numbers[beats[0] - 1]}
        assert sorted(set(numbers)) == numbers[: beats[0]] + numbers[beats[-1] + 1 :]
    else:
        assert numbers == list(range(len(numbers)))


async def test_S19_before_the_first_event_it_is_a_comment(gateway: Gateway) -> None:
    told = await gateway.given("R", "R", events=[b": hello\n\n", 1.5 * HEARTBEAT_SECONDS, *whole("R", "a")])
    assert told.status == 200
    assert told.events[1].raw == b": keepalive\n\n"
    assert next(event.name for event in told.events if event.name) == "response.created"


@pytest.mark.parametrize("upstream", ["A", "C", "R"])
async def test_S20_a_stream_is_never_compressed(gateway: Gateway, upstream: str) -> None:
    told = await gateway.given(
        "A", upstream, events=whole(upstream, "x" * 5000), headers=["accept-encoding: gzip, br"]
    )
    assert told.status == 200
    assert not told.answer.has_header("content-encoding")
    assert not told.answer.has_header("content-length")
    assert told.header("content-type") == "text/event-stream; charset=utf-8"
    assert told.header("cache-control") == "no-cache"
    assert told.header("x-accel-buffering") == "no"
    assert told.texts() == "x" * 5000
    assert told.upstream.header("accept-encoding") == "identity"
    assert told.upstream.json()["model"] == UPSTREAM_MODEL
