"""An event loop whose time is virtual: when nothing is left to do, it jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class Stuck(Exception):
    """Everything waits for something that can never happen."""


class _Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            if self.loop.threads:
                return super().select(None)
            raise Stuck("nothing is ready, no timer is set, and no thread will say more")
        self.loop.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's loop with a clock that starts at 1000 s; `threads` says that other threads may call in."""

    def __init__(self, *, threads: bool = False) -> None:
        self.now = 1000.0
        self.threads = threads
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now
