"""Tests that run twice, on asyncio's own loop and on unwait's, and leave nothing behind on either.

A test that asks for `loop` (or `loop_factory`, `loop_kind`, `run`) is parametrised over both; if it is a
coroutine function, it runs on `loop`. What asyncio of the running Python cannot do is marked
`@pytest.mark.asyncio_since(...)`, and what it gets wrong `@pytest.mark.asyncio_flawed(...)`: they skip the
asyncio run and keep ours.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import unwait
import unwait.loop

ASYNC_TEST_SECONDS = 30.0

failed_key = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "asyncio_since(version, feature): asyncio has the feature since that Python (None: in no Python); "
        "unwait has it on every one",
    )
    config.addinivalue_line(
        "markers", "asyncio_flawed(condition, flaw): where the condition holds, asyncio itself fails the test"
    )


def pytest_collection_finish() -> None:
    # What was imported stays: without it in the way, the collection after each test takes milliseconds.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    # What a module has loaded and kept in caches is no business of the next one's leak checks.
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        item.stash[failed_key] = True
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj) or "loop" not in pyfuncitem.funcargs:
        return None
    loop = pyfuncitem.funcargs["loop"]
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}

    async def bounded() -> None:
        async with asyncio.timeout(ASYNC_TEST_SECONDS):
            await pyfuncitem.obj(**arguments)

    loop.run_until_complete(bounded())
    return True


def open_fds() -> dict[int, str]:
    """Each open descriptor of this process and what it leads to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the directory's own descriptor, closed since
    return found


def live_objects() -> dict[str, int]:
    counters = getattr(unwait.loop, "live_objects", None)
    return dict(counters()) if counters is not None else {}


def forget_last_failure() -> None:
    """Let go of what only the traceback of a failed test kept alive, lest it count against the next test."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(params=["asyncio", "unwait"])
def loop_kind(request: pytest.FixtureRequest) -> str:
    """Whose loop this run of the test is on."""
    if request.param == "asyncio":
        for version, feature in (marker.args for marker in request.node.iter_markers("asyncio_since")):
            if version is None:
                pytest.skip(f"asyncio has no {feature}")
            if sys.version_info < version:
                pytest.skip(f"asyncio has {feature} since Python {'.'.join(map(str, version))}")
        for condition, flaw in (marker.args for marker in request.node.iter_markers("asyncio_flawed")):
            if condition:
                pytest.skip(f"asyncio: {flaw}")
    return str(request.param)


@pytest.fixture
def loop_factory(
    loop_kind: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[[], asyncio.AbstractEventLoop]]:
    """Makes loops of the kind under test; after the test they are closed, and nothing may be left of them."""
    make = asyncio.SelectorEventLoop if loop_kind == "asyncio" else unwait.Loop
    made: list[asyncio.AbstractEventLoop] = []
    forget_last_failure()
    fds, live, hooks = open_fds(), live_objects(), sys.get_asyncgen_hooks()

    def factory() -> asyncio.AbstractEventLoop:
        made.append(make())
        return made[-1]

    yield factory

    failed = request.node.stash.get(failed_key, False)
    unfinished = []
    while made:
        loop = made.pop()
        if not loop.is_closed():
            unfinished += [repr(task) for task in asyncio.all_tasks(loop)]
            if not failed:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
    if failed:
        return  # its traceback keeps its objects alive
    loop = None  # type: ignore[assignment]
    # pytest would hold the loop until after this, and what log records refer to.
    request.node.funcargs.clear()
    caplog.get_records("call").clear()
    gc.collect()
    # Once more for a loop that only garbage held, through a handle: the collector does not see into handles.
    gc.collect()
    assert not unfinished, "tasks were left unfinished"
    leaked = {fd: target for fd, target in open_fds().items() if fd not in fds}
    assert not leaked, "descriptors were left open"
    assert sys.get_asyncgen_hooks() == hooks
    wakeup = signal.set_wakeup_fd(-1)
    assert wakeup == -1, "the signal wakeup descriptor was left set"
    left = {
        name: (live.get(name, 0), count)
        for name, count in live_objects().items()
        if count > live.get(name, 0)
    }
    assert not left, "live objects (before, after) were left"


@pytest.fixture
def loop_errors() -> list[dict[str, Any]]:
    """What reached the exception handler of `loop`. A test that expects something there clears the list."""
    return []


@pytest.fixture
def loop(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    loop_errors: list[dict[str, Any]],
    request: pytest.FixtureRequest,
) -> Iterator[asyncio.AbstractEventLoop]:
    """A new loop. Whatever reaches its exception handler unexpectedly fails the test."""
    loop = loop_factory()
    loop.set_exception_handler(lambda _, context: loop_errors.append(context))
    yield loop
    if not loop.is_closed():
        loop.set_exception_handler(None)
    unexpected, loop_errors[:] = [repr(context) for context in loop_errors], []
    if not request.node.stash.get(failed_key, False):
        assert not unexpected, "the loop's exception handler was called"


@pytest.fixture
def run(loop: asyncio.AbstractEventLoop) -> Callable[[Any], Any]:
    """`loop.run_until_complete`, for tests that step in and out of the loop."""
    return loop.run_until_complete
