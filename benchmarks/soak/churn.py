"""Clients of every kind who come and go: streams, plain calls, hang-ups, slow readers, failures, large
bodies, new keys, revoked keys, what is no request at all."""

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from tests.chaos.invariants import PRICE
from tests.chaos.load import PATHS, TERMINALS, Seen
from tests.faults.provider import FaultyProvider
from tests.support.mesh import Mesh

ACCOUNT = "acct_soak"
MONEY_NANO_USD = 10**15
CALL_SECONDS = 60.0
# Clients at once; one that would be above is not made, and counted.
MAX_LIVE = 64
# A revoked key is refused within this time even while the bus is away.
REVOKED_SECONDS = 30.0
SLOW_SECONDS = 3.0
LEFT_SECONDS = 1.0
LARGE_BYTES = (200_000, 1_000_000, 4_000_000)
# The faulty provider keeps a ledger that nobody reads here.
KEPT_CALLS = 50
GOOD = ("fake-n3", "fake-n20-d20", "fake-n50-d10")
QUICK, BURST = "fake-n3", "fake-n3000-s200"
FAILING = (
    "fault-status-500",
    "fault-status-429-1",
    "fault-status-400",
    "fault-cut-3",
    "fault-reset-2",
    "fault-hang-up",
    "fault-html",
    "fault-invalid-json",
    "fault-bad-chunks",
    "fault-error-event-2",
    "fault-no-terminator",
    "fault-flaky-2",
)
# How often each kind of client comes, of the sum.
KINDS = {
    "stream": 24,
    "plain": 24,
    "translated": 12,
    "left": 16,
    "failing": 12,
    "refused": 6,
    "slow": 3,
    "large": 3,
    "key": 2,
}


def prepare(mesh: Mesh, upstream: int, faulty: FaultyProvider) -> str:
    """Makes account, prices and providers; returns a key."""
    mesh.rest("POST", "accounts", json={"account_id": ACCOUNT, "display_name": ACCOUNT})
    top_up = {"transaction_id": "tx_soak", "account_id": ACCOUNT, "kind": "TRANSACTION_KIND_TOP_UP"}
    mesh.rest("POST", "transactions", json={**top_up, "amount_nano_usd": str(MONEY_NANO_USD)})
    rates = {f"{name}_nano_usd": str(rate) for name, rate in PRICE.items()}
    models = dict.fromkeys((*GOOD, BURST, *FAILING))
    mesh.rest("POST", "prices:import", json={"prices": [{"model": model, **rates} for model in models]})
    every = ["DIALECT_ANTHROPIC", "DIALECT_OPENAI_CHAT", "DIALECT_OPENAI_RESPONSES"]
    good = {"base_url": f"http://127.0.0.1:{upstream}", "credentials": [{"secret": "any"}]}
    other = [{"model": "chat-*", "upstream_model": "*"}]
    providers: list[dict[str, Any]] = [
        {"provider_id": "good", "dialects": every, "supported_models": ["fake*"], **good},
        {"provider_id": "chat", "dialects": every[1:2], "model_mappings": other, **good},
        {
            "provider_id": "failing",
            "dialects": every,
            "supported_models": ["fault*"],
            "base_url": faulty.url,
            "credentials": [{"secret": "any"}],
        },
    ]
    for provider in providers:
        mesh.rest("POST", "providers", json=provider)
    secret: str = mesh.rest("POST", "keys", json={"account_id": ACCOUNT})["secret"]
    return secret


@dataclass
class Churn:
    """Clients that come at random times, so many a second.

    Args:
        mesh: that they call.
        key: of their account.
        seed: of who comes when.
    """

    mesh: Mesh
    key: str
    seed: int
    seen: list[Seen] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    # What must never be: in words.
    problems: list[str] = field(default_factory=list)
    live: int = 0
    _numbers: Any = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._kinds: dict[str, Callable[[aiohttp.ClientSession], Awaitable[str]]] = {
            name: getattr(self, f"_{name}") for name in KINDS
        }

    async def run(self, rate: float, is_over: Callable[[], bool]) -> None:
        """Lets clients come until it is over, and waits for the last ones."""
        new = aiohttp.TCPConnector(limit=0, force_close=True)
        kept = aiohttp.TCPConnector(limit=MAX_LIVE)
        async with (
            aiohttp.ClientSession(connector=new) as once,
            aiohttp.ClientSession(connector=kept) as again,
            asyncio.TaskGroup() as group,
        ):
            while not is_over():
                await asyncio.sleep(self.random.expovariate(rate))
                if self.live >= MAX_LIVE:
                    self.outcomes["not made: too many at once"] += 1
                    continue
                group.create_task(self._client(self.random.choice((once, again))))

    async def _client(self, session: aiohttp.ClientSession) -> None:
        (kind,) = self.random.choices(list(KINDS), list(KINDS.values()))
        self.live += 1
        try:
            async with asyncio.timeout(CALL_SECONDS):
                self.outcomes[f"{kind}: {await self._kinds[kind](session)}"] += 1
        except TimeoutError:
            self.outcomes[f"{kind}: silent"] += 1
        except (aiohttp.ClientError, OSError):
            self.outcomes[f"{kind}: cut"] += 1
        finally:
            self.live -= 1

    async def _stream(self, session: aiohttp.ClientSession) -> str:
        return await self._call(session, self.random.choice(GOOD))

    async def _plain(self, session: aiohttp.ClientSession) -> str:
        return await self._call(session, QUICK, is_streaming=False)

    async def _translated(self, session: aiohttp.ClientSession) -> str:
        return await self._call(session, f"chat-{self.random.choice(GOOD)}", dialect=self.random.choice("AR"))

    async def _failing(self, session: aiohttp.ClientSession) -> str:
        return await self._call(session, self.random.choice(FAILING), is_streaming=self.random.random() < 0.7)

    async def _left(self, session: aiohttp.ClientSession) -> str:
        """Leaves at a random moment: before the head, amid the stream, or just after its end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.random.random() * LEFT_SECONDS):
                await self._call(session, "fake-n50-d10")
                return "whole"
        return "left"

    async def _slow(self, session: aiohttp.ClientSession) -> str:
        return await self._call(session, BURST, pause_seconds=SLOW_SECONDS)

    async def _large(self, session: aiohttp.ClientSession) -> str:
        return await self._call(session, QUICK, body_bytes=self.random.choice(LARGE_BYTES))

    async def _refused(self, session: aiohttp.ClientSession) -> str:
        """Asks for nothing, with no key or for no model."""
        body, key = self.random.choice(
            (
                (b'{"model": "fake-n3", "messages": [', self.key),
                (b'{"model": "unheard-of", "messages": []}', self.key),
                (b'{"model": "fake-n3", "messages": []}', f"sk-{self.random.random()}"),
            )
        )
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        async with session.post(self._url("C"), data=body, headers=headers) as answer:
            await answer.read()
            if answer.status == 200 and b"unheard" in body:
                self.problems.append("an unknown model was answered")
            return str(answer.status)

    async def _key(self, session: aiohttp.ClientSession) -> str:
        """Makes a key, calls with it, revokes it and calls until it is refused."""
        made = await self._rest(session, "POST", "keys", {"account_id": ACCOUNT})
        if made is None:
            return "not made: billing is away"
        secret, key_id = made["secret"], made["key"]["key_id"]
        told = await self._call(session, QUICK, is_streaming=False, key=secret)
        if await self._rest(session, "POST", f"keys/{key_id}:revoke", {}) is None:
            return "not revoked: billing is away"
        end = asyncio.get_running_loop().time() + REVOKED_SECONDS
        while asyncio.get_running_loop().time() < end:
            if await self._call(session, QUICK, is_streaming=False, key=secret) == "401":
                return f"{told}, then refused"
            await asyncio.sleep(0.2)
        self.problems.append(f"{key_id} was answered {REVOKED_SECONDS:.0f} s after it was revoked")
        return "answered when revoked"

    async def _rest(
        self, session: aiohttp.ClientSession, method: str, path: str, value: object
    ) -> dict[str, Any] | None:
        headers = {"authorization": f"Bearer {self.mesh.admin_token}"}
        url = f"{self.mesh.base_url}/api/v1/{path}"
        async with session.request(method, url, json=value, headers=headers) as answer:
            found: dict[str, Any] = await answer.json(content_type=None)
            return found if answer.status == 200 else None

    def _url(self, dialect: str) -> str:
        return self.mesh.base_url + PATHS[dialect]

    async def _call(
        self,
        session: aiohttp.ClientSession,
        model: str,
        *,
        dialect: str = "",
        is_streaming: bool = True,
        key: str = "",
        pause_seconds: float = 0.0,
        body_bytes: int = 0,
    ) -> str:
        dialect = dialect or self.random.choice("ACR")
        seen = Seen(f"soak/{next(self._numbers):06}", ACCOUNT, dialect, is_streaming)
        headers = {
            "authorization": f"Bearer {key or self.key}",
            "user-agent": seen.mark,
            "content-type": "application/json",
        }
        body = _body(dialect, model, is_streaming, body_bytes)
        async with session.post(self._url(dialect), data=body, headers=headers) as answer:
            seen.status = answer.status
            seen.request_id = answer.headers.get("x-request-id", "")
            self.seen.append(seen)
            await asyncio.sleep(pause_seconds)
            last, has_ended = b"", False
            async for chunk in answer.content.iter_any():
                last = last[-100:] + chunk
                has_ended = has_ended or TERMINALS[dialect] in last
            if answer.status != 200:
                return str(answer.status)
            seen.is_whole = has_ended or not is_streaming
            return "whole" if seen.is_whole else "ended without its end"


def _body(dialect: str, model: str, is_streaming: bool, body_bytes: int) -> bytes:
    turns: Any = [{"role": "user", "content": "x" * (body_bytes or 200)}]
    fields = {"model": model, "stream": is_streaming}
    fields |= {"input" if dialect == "R" else "messages": turns}
    return json.dumps({**fields, **({"max_tokens": 200} if dialect == "A" else {})}).encode()
