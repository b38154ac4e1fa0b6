"""A request that is read and written for a provider of its own dialect loses nothing."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lurus_dialects.anthropic.request_writer import write_request
from lurus_dialects.translation import Losses
from tests.dialects.anthropic_spoke.hub import read, target, write
from tests.dialects.anthropic_spoke.request_maker import RequestMaker


def normal(body: dict[str, Any]) -> dict[str, Any]:
    """Returns the request with its short forms written out, and neighbours of one role joined."""
    messages: list[Any] = []
    for message in body["messages"]:
        message = {**message, "content": listed(message["content"])}
        for block in message["content"]:
            if block["type"] == "tool_result" and "content" in block:
                block["content"] = listed(block["content"])
        messages.append(message)
    written = {**body, "messages": messages}
    if "system" in body:
        written["system"] = listed(body["system"])
    return written


def listed(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def there_and_back(body: dict[str, Any]) -> None:
    losses = Losses(is_strict=True)
    written = write(read(body, losses), target(has_mid_system=True), losses)
    assert losses.silent == []
    assert {**normal(written), "model": body["model"]} == normal(body)


class TestRoundTrip:
    @settings(deadline=None, max_examples=300)
    @given(seed=st.integers(0, 2**32))
    def test_generated_requests_come_back_the_same(self, seed: int) -> None:
        there_and_back(RequestMaker(seed).request())

    def test_numbers_keep_their_digits_and_keys_their_order(self) -> None:
        text = '{"z":12345678901234567890123,"a":1.10,"e":1E400,"s":"\\u00e9"}'
        body = (
            '{"model":"m","max_tokens":9,"x_new":' + text + ',"messages":[{"role":"user","content":"a"},'
            '{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"n","input":' + text + "}]}]}"
        )
        written = write_request(read(body.encode()), target(), Losses(), is_streaming=False).body.decode()
        assert written.count(text) == 2

    def test_a_prefill_of_its_own_dialect_is_no_loss(self) -> None:
        there_and_back(
            {
                "model": "m",
                "max_tokens": 5,
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            }
        )
