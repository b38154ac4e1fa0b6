"""Ids that we make."""

import pytest

from lurus_common.ids import is_request_id, new_id


def test_they_are_unique_and_ascend() -> None:
    ids = [new_id("req") for _ in range(20_000)]
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)


def test_they_begin_with_their_prefix() -> None:
    for prefix in ("req", "key", "acct", "lease"):
        name = new_id(prefix)
        assert name.startswith(prefix + "_")
        assert len(name) == len(prefix) + 27


def test_request_ids_are_recognised() -> None:
    assert is_request_id(new_id("req"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "req_",
        new_id("key"),
        new_id("req") + "\n",
        new_id("req").lower(),
        "req_" + "I" * 26,
        "x" + new_id("req"),
    ],
)
def test_others_are_not(text: str) -> None:
    assert not is_request_id(text)
