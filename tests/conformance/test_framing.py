"""Event streams on the wire (wire-contract E.1)."""

import itertools

import pytest
from tests.conformance.rig import Gateway
from tests.support import provider_streams as provider

pytestmark = pytest.mark.anyio

WORDS = "世界😀"


def text_stream(text: str) -> bytes:
    """A whole stream of Anthropic with this text in one delta, without escapes."""
    delta = provider.a_text(0, "TEXT").replace(b"TEXT", text.encode())
    return provider.a_start() + delta + provider.a_end()


async def test_S01_characters_that_are_cut_anywhere_are_relayed_whole(gateway: Gateway) -> None:
    sent = text_stream(WORDS)
    place = sent.index(WORDS.encode())
    # Inside the first, between the second and the third byte of the second, inside the emoji.
    cuts = [0, place + 1, place + 5, place + 7, place + 8, place + 9, len(sent)]
    pieces = [sent[start:end] for start, end in itertools.pairwise(cuts)]
    told = await gateway.given("A", "A", events=[part for piece in pieces for part in (piece, 0.02)])
    assert told.status == 200
    assert told.body == sent
    assert told.texts() == WORDS
    assert (await told.record()).tokens.output == 9
