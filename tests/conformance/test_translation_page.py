"""The page about translation says what the code does, and every loss is spoken of."""

import itertools

import pytest
from tests.conformance.probes import CONCEPTS
from tests.conformance.translation_page import LEFT_OUT, PAGE, PROBES, outcome, page

from lurus.provider.v1.provider_pb2 import ProviderQuirks
from lurus_dialects.dialect import Dialect

DIRECTIONS = list(itertools.permutations(Dialect, 2))


def test_the_page_is_not_stale() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.conformance.translation_page"


@pytest.mark.parametrize(("source", "target"), DIRECTIONS, ids=lambda dialect: dialect.value)
def test_nothing_is_left_out_without_a_word(source: Dialect, target: Dialect) -> None:
    silent = [
        f"{probe.concept} {probe.what}"
        for probe in PROBES[source]
        if outcome(source, target, probe, ProviderQuirks()) == LEFT_OUT
    ]
    assert silent == []


def test_every_concept_is_probed() -> None:
    probed = {probe.concept for probes in PROBES.values() for probe in probes}
    assert probed == set(CONCEPTS)
