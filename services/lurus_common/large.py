"""Work on large request bodies, beside the event loop.

Reading 30 MB of JSON, copying or translating it takes the processor from a
tenth of a second to seconds, and the loop serves everybody else. So it is done
in few threads. Python runs one thread at a time: what the loop gains is that it
has its turn after every single step of such work, and that bodies which come
together are worked on one after the other. What waits for a thread is bounded
by who admitted it: the edge by bytes of bodies, routing by live requests.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

Result = TypeVar("Result")

# A body of this size costs the loop 2 ms in all, which is less than others would notice.
LARGE_BYTES: Final = 512 * 1024
# A second one, so that what takes seconds does not stop what takes a moment.
THREADS: Final = 2

# Its threads begin with the first work.
_threads = ThreadPoolExecutor(THREADS, "large-bodies")


async def beside_loop(size: int, work: Callable[..., Result], *arguments: object) -> Result:
    """Returns what `work` does with `arguments`: at once if `size` is small, else in one of the threads.

    Who is cancelled while it waits for a thread leaves no work behind; work
    that has begun goes on to its end, and its result is dropped.
    """
    if size <= LARGE_BYTES:
        return work(*arguments)
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *arguments)
