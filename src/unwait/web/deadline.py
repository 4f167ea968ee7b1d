"""A time-out that costs a request little: `asyncio.timeout` without its coroutines."""

from __future__ import annotations

import asyncio


class Deadline:
    """Cancels the task that makes it at the time `when`, of the loop's clock, unless it is closed before.

    Where that cancellation arrives, `close` says whether it was the only one, so that it may become another error.
    """

    __slots__ = ("_cancelling", "_handle", "_task", "expired")

    def __init__(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("requests are made in a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._handle = loop.call_at(when, self._expire)
        self.expired = False

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()

    @property
    def cancelled(self) -> bool:
        """Whether the task was cancelled since, by anybody."""
        return self._task.cancelling() > self._cancelling

    def close(self) -> bool:
        """Stop the timer; whether it has cancelled the task and nobody else has. To be called once."""
        if not self.expired:
            self._handle.cancel()
            return False
        return self._task.uncancel() <= self._cancelling
