"""What rate limits cost a request in a worker: `python -m benchmarks.limiter`.

Rounds with and without limits take turns, so that a noisy machine disturbs
both; the median round of each counts.
"""

import asyncio
import statistics
import time

from lurus.billing.v1.billing_pb2 import KeyGrant, RateLimits
from lurus_routing.rate_limiter import RateLimiter

ROUNDS = 31
CALLS = 5000
_LARGE = RateLimits(requests_per_minute=10**9, tokens_per_minute=10**12, concurrent_requests=10**6)


async def _round(limiter: RateLimiter, grant: KeyGrant) -> float:
    """Microseconds of CPU that one request spends with the limiter."""
    began = time.process_time()
    for _ in range(CALLS):
        admission = await limiter.admit(grant, 2000)
        if admission is not None:
            limiter.end(admission, 500)
    return (time.process_time() - began) / CALLS * 1e6


async def _measure() -> None:
    grants = {
        "no limits": KeyGrant(key_id="key_0", account_id="acct_0"),
        "three of the key": KeyGrant(key_id="key_1", account_id="acct_1", rate_limits=_LARGE),
        "three of the key, three of the account": KeyGrant(
            key_id="key_2", account_id="acct_2", rate_limits=_LARGE, account_rate_limits=_LARGE
        ),
    }
    limiter = RateLimiter(workers=1, is_shared=False)
    rounds: dict[str, list[float]] = {name: [] for name in grants}
    for _ in range(ROUNDS):
        for name, grant in grants.items():
            rounds[name].append(await _round(limiter, grant))
    for name, seen in rounds.items():
        print(f"{statistics.median(seen):6.2f} us a request  {name}")


if __name__ == "__main__":
    asyncio.run(_measure())
