"""To do something while a coroutine waits, wherever that is: each place at which it does has a number."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any


@coroutine
def at_step(
    steps: Coroutine[Any, Any, Any], number: int, act: Callable[[Any], object]
) -> Generator[Any, Any, Any]:
    """What the coroutine returns; as it waits for this time, `act` is called with the future that it waits for."""
    error: BaseException | None = None
    while True:
        try:
            waited = steps.send(None) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value
        if number == 0:
            act(waited)
        number -= 1
        try:
            yield waited
            error = None
        except BaseException as raised:
            error = raised
