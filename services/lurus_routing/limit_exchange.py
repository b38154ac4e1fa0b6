"""Workers tell each other through Redis what they have let pass; no request waits for that as a rule.

One script call tells and asks for up to `MAX_TOLD` subjects. Redis keeps what
all workers together have used, with the time, and forgets it when it is idle.
What it says is checked: a Redis that is away, wiped or full of garbage leaves
each worker with its part of the limits.
"""

import asyncio
import hashlib
import hmac
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge

from lurus_common.serving import beside
from lurus_common.settings import Settings
from lurus_routing.limits import MAX_DEBT_MINUTES, Sent, Shared, Subject
from lurus_routing.rate_limiter import RateLimiter

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

MAX_TOLD = 500
TIMEOUT_SECONDS = 0.25
# After a failure Redis is left alone for this long.
SKIP_SECONDS = 1.0
# Between two exchanges, also if requests wait for one.
MIN_PAUSE_SECONDS = 0.005
# What a worker serves is told again so often, and believed for so long: a killed one's requests end there.
REPEAT_SECONDS = 1.0
BELIEVE_MILLISECONDS = 5000
KEEP_MILLISECONDS = (MAX_DEBT_MINUTES + 1) * 60_000
CLOSE_SECONDS = 1.0
_VALUES_PER_SUBJECT = 3

FAILURES = Counter("lurus_limit_exchange_failures", "Exchanges that Redis did not answer, or with garbage.")
WORKERS = Gauge("lurus_limit_workers", "Workers that share limits, as last seen.")

# Values of a subject in ARGV: limit and use of requests, limit and use of tokens, requests being served.
_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local me, believe, keep, debt = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local function only(key, kind)
  if redis.call('TYPE', key).ok ~= kind then redis.call('DEL', key) end
end
local function number(text)
  local value = tonumber(text or '')
  if value == nil or value ~= value or value < 0 then return 0 end
  return value
end
only(KEYS[1], 'zset')
redis.call('ZADD', KEYS[1], now, me)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 2 * believe)
redis.call('PEXPIRE', KEYS[1], keep)
local answer = {tostring(redis.call('ZCOUNT', KEYS[1], '-inf', now + 1000))}
for index = 2, #KEYS do
  local key, from = KEYS[index], 4 + (index - 2) * 5
  only(key, 'hash')
  local kept, others = {}, 0
  local fields = redis.call('HGETALL', key)
  for place = 1, #fields, 2 do
    local name, value = fields[place], fields[place + 1]
    kept[name] = value
    if string.sub(name, 1, 2) == 'w:' and name ~= 'w:' .. me then
      local own, told = string.match(value, '^(%d+) (%d+)$')
      if own and now - tonumber(told) <= believe and tonumber(told) <= now + 1000 then
        others = others + tonumber(own)
      else
        redis.call('HDEL', key, name)
      end
    end
  end
  local passed = math.max(0, now - number(kept['at']))
  local function used(name, limit, use)
    local level = math.max(0, number(kept[name]) - passed * limit / 60000)
    return math.min(math.max(0, level + use), debt * limit)
  end
  local requests = used('requests', tonumber(ARGV[from + 1]), tonumber(ARGV[from + 2]))
  local tokens = used('tokens', tonumber(ARGV[from + 3]), tonumber(ARGV[from + 4]))
  redis.call('HSET', key, 'at', string.format('%.0f', now), 'requests', string.format('%.3f', requests),
    'tokens', string.format('%.3f', tokens))
  if ARGV[from + 5] == '0' then redis.call('HDEL', key, 'w:' .. me)
  else redis.call('HSET', key, 'w:' .. me, ARGV[from + 5] .. ' ' .. string.format('%.0f', now)) end
  redis.call('PEXPIRE', key, keep)
  answer[#answer + 1] = string.format('%.3f', requests)
  answer[#answer + 1] = string.format('%.3f', tokens)
  answer[#answer + 1] = string.format('%.0f', others)
end
return answer
"""


class LimitExchange:
    """Tells the other workers what this one has let pass, and takes what they say.

    Args:
        redis: a client with short timeouts.
        limiter: whose limits are shared.
        prefix: of the names in Redis, an installation's own.
        pause_seconds: between two exchanges that nobody waits for.
    """

    def __init__(self, redis: "Redis", limiter: RateLimiter, prefix: str, pause_seconds: float) -> None:
        self._redis = redis
        self._limiter = limiter
        self._prefix = prefix
        self._pause_seconds = pause_seconds
        # A worker that was restarted is another one: what the old one served has ended.
        self._name = secrets.token_hex(8)
        self._wanted = asyncio.Event()
        self._hurry = asyncio.Event()
        self._next = _Round()
        self._repeat_at = 0.0
        limiter.on_touch = self._wanted.set
        limiter.ask = self.ask

    async def ask(self) -> None:
        """Returns after the next exchange, or when there is none to be had."""
        self._hurry.set()
        self._wanted.set()
        await self._next.done.wait()

    async def run(self) -> None:
        """Exchanges whenever there is something to tell, until cancelled."""
        while True:
            await _wait(self._wanted, REPEAT_SECONDS if self._limiter.is_busy else None)
            self._wanted.clear()
            self._hurry.clear()
            now = time.monotonic()
            if now >= self._repeat_at:
                self._limiter.touch_busy()
                self._repeat_at = now + REPEAT_SECONDS
            current, self._next = self._next, _Round()
            is_well = await self._exchange()
            current.done.set()
            await self._pause(self._pause_seconds if is_well else SKIP_SECONDS)
            if self._limiter.touched:
                self._wanted.set()

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(MIN_PAUSE_SECONDS)
        await _wait(self._hurry, seconds)

    async def _exchange(self) -> bool:
        told = self._limiter.untold(MAX_TOLD)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                answer = await self._redis.eval(
                    _SCRIPT, len(told) + 1, *self._keys(told), *self._values(told)
                )
            shared, workers = _read(answer, len(told))
        except Exception as error:
            # Whatever it is: a peer that is not Redis makes the client fail in any way.
            FAILURES.inc()
            log.info("limits are this worker's own: Redis: %s", type(error).__name__)
            self._limiter.lose(told)
            return False
        WORKERS.set(workers)
        self._limiter.take(told, shared, workers)
        return True

    def _keys(self, told: Sequence[tuple[Subject, Sent]]) -> list[str]:
        return [f"{self._prefix}:workers", *(f"{self._prefix}:{subject.name}" for subject, _ in told)]

    def _values(self, told: Sequence[tuple[Subject, Sent]]) -> list[Any]:
        values: list[Any] = [self._name, BELIEVE_MILLISECONDS, KEEP_MILLISECONDS, MAX_DEBT_MINUTES]
        for subject, sent in told:
            requests, tokens, _ = subject.limits
            values += [requests, f"{sent.requests:.3f}", tokens, f"{sent.tokens:.3f}", sent.own]
        return values


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


class _Round:
    """One exchange that requests may wait for."""

    def __init__(self) -> None:
        self.done = asyncio.Event()


def _read(answer: Any, count: int) -> tuple[list[Shared], int]:
    """Returns what the workers say.

    Raises:
        ValueError, TypeError: they say nothing that can be true.
    """
    values = [float(value) for value in answer]
    if len(values) != 1 + count * _VALUES_PER_SUBJECT or not all(0 <= value < math.inf for value in values):
        raise ValueError("not an answer of ours")
    rows = [values[at : at + _VALUES_PER_SUBJECT] for at in range(1, len(values), _VALUES_PER_SUBJECT)]
    return [Shared(requests, tokens, int(others)) for requests, tokens, others in rows], max(
        1, int(values[0])
    )


@asynccontextmanager
async def shared_limits(settings: Settings, limiter: RateLimiter) -> AsyncIterator[None]:
    """Shares limits through the Redis of the settings, if there is one; connects when it is used."""
    if not settings.redis_url:
        yield
        return
    # Imported here, since a worker without it is smaller.
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        timeout=TIMEOUT_SECONDS,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        max_connections=2,
    )
    redis = Redis.from_pool(pool)
    # Two installations on one Redis may have accounts of one name. The braces keep a cluster's keys together.
    own = hmac.digest(settings.key_pepper.encode(), b"limits", hashlib.sha256).hex()[:16]
    exchange = LimitExchange(redis, limiter, f"{{lurus:limits:{own}}}", settings.limit_exchange_seconds)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_close, redis)
        await stack.enter_async_context(beside(exchange.run(), "the exchange of limits"))
        yield


async def _close(redis: "Redis") -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await redis.aclose()
    except Exception as error:
        log.info("closing Redis: %s", type(error).__name__)
