"""What the stress tests share: the loop under test, and the count of what it leaves behind.

A coroutine test is run to its end on a new loop of each kind. Afterwards no fd, thread or child process may
be left, and `loop_errors`, what the loop's exception handler was told, must be empty.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import unwait

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
FACTORIES: dict[str, LoopFactory] = {"unwait": unwait.new_event_loop, "asyncio": asyncio.SelectorEventLoop}
COROUTINE_LIMIT = 100.0  # seconds; under pytest's own limit, so that a stuck coroutine shows where it waits
THREAD_GRACE = 5.0  # seconds for a thread that has done its work to be gone


@pytest.fixture(params=FACTORIES)
def loop_name(request: pytest.FixtureRequest) -> str:
    """`unwait`, then `asyncio`: the second run proves that the test itself is right."""
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def loop_factory(loop_name: str) -> LoopFactory:
    return FACTORIES[loop_name]


@pytest.fixture(autouse=True)
def loop_errors() -> list[dict[str, Any]]:
    """What the exception handler of a coroutine test's loop was told."""
    return []


@pytest.fixture
def loop(loop_factory: LoopFactory) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for a test that drives it by itself; closed afterwards, and nothing of it may be left."""
    with nothing_left():
        loop = loop_factory()
        try:
            yield loop
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()


@pytest.fixture(name="open_fds")
def open_fds_fixture() -> Callable[[], dict[int, str]]:
    return open_fds


@pytest.fixture(name="children")
def children_fixture() -> Callable[[], set[int]]:
    return children


@pytest.fixture(name="resident")
def resident_fixture() -> Callable[[], int]:
    return resident


def open_fds() -> dict[int, str]:
    """Every open file descriptor of this process and what it is, as the kernel names it."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


def resident() -> int:
    """Bytes of resident memory of this process."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def children() -> set[int]:
    """Pids of this process's children, zombies included."""
    found = set()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it has ended since
            continue
        if parent == os.getpid():
            found.add(int(name))
    return found


@contextmanager
def nothing_left() -> Iterator[None]:
    """Assert that the block leaves the fds, threads and child processes that it found, and no others."""
    gc.collect()
    fds, threads, processes = open_fds(), set(threading.enumerate()), children()
    yield
    gc.collect()
    assert open_fds() == fds
    for thread in set(threading.enumerate()) - threads:
        thread.join(THREAD_GRACE)
        assert not thread.is_alive(), f"left behind: {thread}"
    assert children() == processes


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test on the loop of `loop_factory`."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    given = pyfuncitem.funcargs
    wanted = {name: given[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    errors: list[dict[str, Any]] = given["loop_errors"]

    async def limited() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
        async with asyncio.timeout(COROUTINE_LIMIT):
            await pyfuncitem.obj(**wanted)

    with nothing_left():
        with asyncio.Runner(loop_factory=given["loop_factory"]) as runner:
            runner.run(limited())
        del runner
    assert errors == []
    return True
