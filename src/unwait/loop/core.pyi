import asyncio
from asyncio import _CoroutineLike
from asyncio.events import _TaskFactory
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple, final

from unwait.loop.handles import Handle, TimerHandle
from unwait.loop.kernel import Poller

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

@final
class ReadyQueue:
    @property
    def length(self) -> int: ...
    def clear(self) -> None: ...

# Has no base in C. It relies on BaseEventLoop's methods, which `eventloop.Loop` brings in behind it.
class Core(asyncio.BaseEventLoop):
    _closed: bool
    _stopping: bool
    _debug: bool
    _thread_id: int | None
    _task_factory: _TaskFactory | None
    _current_handle: Handle | None
    slow_callback_duration: float
    @property
    def poller(self) -> Poller: ...
    def time(self) -> float: ...
    def is_running(self) -> bool: ...
    def is_closed(self) -> bool: ...
    def get_debug(self) -> bool: ...
    def stop(self) -> None: ...
    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> Handle: ...
    def call_soon_threadsafe(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> Handle: ...
    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> TimerHandle: ...
    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> TimerHandle: ...
    def create_future(self) -> asyncio.Future[Any]: ...
    def create_task(
        self,
        coro: _CoroutineLike[_T],
        *,
        name: object = None,
        context: Context | None = None,
        **options: Any,
    ) -> asyncio.Task[_T]: ...
    def _spin(self) -> None: ...
    def _live_handles(self) -> int: ...
    def _close_core(self) -> None: ...
