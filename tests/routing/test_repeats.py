"""An idempotency key stands for the first request that was charged under it; no call is free for it."""

from typing import Any

import pytest

from lurus_routing import repeats
from lurus_routing.repeats import Claim, Repeats
from tests.support.scripted_upstream import plain

from .rig import ANTHROPIC, plain_answer, plain_request
from .test_affinity import eventually
from .test_failover import error_body
from .workers import Told, Worker, Workers

pytestmark = pytest.mark.anyio


async def post(worker: Worker, key: str, **more: Any) -> Told:
    return await worker.post("/v1/messages", plain_request(ANTHROPIC, **more), idempotency_key=key)


def scripted(workers: Workers) -> None:
    workers.rig.upstream.script = plain(plain_answer(ANTHROPIC))
    workers.rig.use(one={})


async def test_each_worker_tells_of_the_first_request_and_each_call_is_charged(workers: Workers) -> None:
    scripted(workers)
    first, second = await workers.start("w1"), await workers.start("w2")
    original = await post(first, "same")
    request_id = original.headers["request-id"]

    async def is_known() -> bool:
        return any(b":idempotency:" in name for name in await workers.keys())

    await eventually(is_known)
    told = [await post(first, "same"), await post(second, "same"), await post(first, "other")]
    assert [answer.status for answer in told] == [200, 200, 200]
    assert [answer.headers.get("x-lurus-repeat-of") for answer in told] == [request_id, request_id, None]
    events = [*first.finals(), *second.finals()]
    assert len({event.request_id for event in events}) == 4
    assert all(event.cost_nano_usd > 0 for event in events)
    for worker in (first, second):
        refused = await post(worker, "same", max_tokens=99)
        assert refused.status == 409
        assert request_id in refused.json["error"]["message"]
    assert len(workers.rig.upstream.requests) == 4


async def test_only_what_was_charged_claims_a_key(workers: Workers) -> None:
    scripted(workers)
    workers.rig.upstream.script = plain(error_body("invalid_request_error"), 400)
    worker = await workers.start("w1")
    assert (await post(worker, "again")).status == 400
    workers.rig.upstream.script = plain(plain_answer(ANTHROPIC))
    corrected = await post(worker, "again", max_tokens=99)
    assert corrected.status == 200
    assert "x-lurus-repeat-of" not in corrected.headers
    assert (await post(worker, "again")).status == 409


async def test_a_key_is_of_one_api_key_only(workers: Workers) -> None:
    scripted(workers)
    worker = await workers.start("w1")
    await post(worker, "mine")
    workers.rig.key = workers.rig.billing.add_key()
    await worker.until_known()
    foreign = await post(worker, "mine", max_tokens=99)
    assert foreign.status == 200
    assert "x-lurus-repeat-of" not in foreign.headers


async def test_what_is_remembered_is_bounded_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MAX_CLAIMS", 2)
    now = 0.0
    known = Repeats(None, lambda: now)
    for word in ("a", "b", "c"):
        known._put(("key", word), Claim(f"req_{word}", b""))
    assert [known._known(("key", word)) is not None for word in "abc"] == [False, True, True]
    now = float(repeats.KEEP_SECONDS)
    assert known._known(("key", "c")) is None
