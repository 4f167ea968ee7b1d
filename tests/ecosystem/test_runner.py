"""`asyncio.Runner` and `asyncio.run` with unwait's loop by its factory."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable

import pytest

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")


def test_runs_share_the_loop_and_the_context(loop_factory: LoopFactory, loop_name: str) -> None:
    async def first() -> asyncio.AbstractEventLoop:
        variable.set("first")
        return asyncio.get_running_loop()

    async def second(loop: asyncio.AbstractEventLoop) -> str:
        assert asyncio.get_running_loop() is loop
        return variable.get()

    with asyncio.Runner(loop_factory=loop_factory, debug=True) as runner:
        loop = runner.run(first())
        assert type(loop).__module__.startswith(loop_name)
        assert loop.get_debug()
        assert runner.get_loop() is loop
        assert runner.run(second(loop)) == "first"
    assert variable.get() == "outside"
    assert loop.is_closed()


def test_close_ends_tasks_generators_and_executor(loop_factory: LoopFactory) -> None:
    events: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.sleep(3_600)
        finally:
            events.append("task cancelled")

    async def numbers() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(0)
            events.append("generator closed")

    kept = []

    async def main() -> None:
        kept.append(asyncio.ensure_future(endless()))
        kept.append(numbers())
        assert await anext(kept[1]) == 1
        asyncio.get_running_loop().run_in_executor(None, events.append, "executor used")
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert sorted(events) == ["executor used", "generator closed", "task cancelled"]


def test_failure_comes_out_and_the_runner_goes_on(loop_factory: LoopFactory) -> None:
    async def fail() -> None:
        raise LookupError("nothing there")

    async def succeed() -> int:
        return 1

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        with pytest.raises(LookupError, match="nothing there"):
            runner.run(fail())
        assert runner.run(succeed()) == 1


def test_ctrl_c_cancels_the_main_task(loop_factory: LoopFactory) -> None:
    events: list[str] = []

    async def main() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    with asyncio.Runner(loop_factory=loop_factory) as runner, pytest.raises(KeyboardInterrupt):
        runner.run(main())
    assert events == ["cancelled"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.run takes a loop factory from Python 3.12 on")
def test_asyncio_run(loop_factory: LoopFactory, loop_name: str) -> None:
    async def main() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert asyncio.run(main(), loop_factory=loop_factory).startswith(loop_name)  # type: ignore[call-arg]
