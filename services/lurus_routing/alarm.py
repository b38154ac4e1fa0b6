"""A deadline for waits that nearly always end in time."""

import asyncio

# A timer is set no farther ahead, so that few waits end before it: those have to set it anew.
AHEAD_SECONDS = 5.0


class Alarm:
    """Ends waits that last too long, for little: the timer is not touched by a wait that ends in time.

    `asyncio.timeout` makes and cancels a timer for each wait, which costs as much
    as all the rest of relaying a chunk. Here one timer runs on; when it rings
    too early for the wait that it meets, it is set anew.

        with alarm.by(deadline):
            await ...

    Raises:
        TimeoutError: at the end of the block, if it was ended.
    """

    __slots__ = ("_cancelling", "_deadline", "_has_rung", "_loop", "_rings_at", "_task", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline = 0.0
        self._task: asyncio.Task[object] | None = None
        # For a time that has come, uvloop returns a handle that does not know its time.
        self._timer: asyncio.Handle | None = None
        self._rings_at = 0.0
        self._has_rung = False
        self._cancelling = 0

    def by(self, deadline: float) -> "Alarm":
        """Sets the time, in the loop's clock, until which the next block may wait."""
        self._deadline = deadline
        return self

    def __enter__(self) -> None:
        task = self._task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an alarm needs a task")
        self._cancelling = task.cancelling()
        self._has_rung = False
        if self._timer is None or self._rings_at > self._deadline:
            self._set()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        task, self._task = self._task, None
        if not self._has_rung or task is None:
            return
        # Somebody else may have cancelled the task at the same moment.
        if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError

    def close(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = min(self._deadline, self._loop.time() + AHEAD_SECONDS)
        self._timer = self._loop.call_at(self._rings_at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._task is None:
            return  # nobody waits now
        if self._loop.time() < self._deadline:
            self._set()
            return
        self._has_rung = True
        self._task.cancel()
