"""What tests of flow share: a loop with a virtual clock, beside the two real loops of tests/conftest.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from .virtual_clock import VirtualLoop


@pytest.fixture
def virtual_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop whose time jumps to the next timer when nothing else is to be done; no task may be left on it."""
    loop = VirtualLoop()
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    yield loop
    left = asyncio.all_tasks(loop)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert not left, "tasks were left unfinished"
    assert not errors, "the loop's exception handler was called"


@pytest.fixture
def virtual(virtual_loop: asyncio.AbstractEventLoop) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine on `virtual_loop`; `Stuck` if everything in it waits for ever."""
    return virtual_loop.run_until_complete


@pytest.fixture
def new_virtual_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes virtual loops, for a test that needs several; it closes them itself."""
    return VirtualLoop
