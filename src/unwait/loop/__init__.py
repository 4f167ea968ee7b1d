"""The event loop: asyncio's interface over epoll, compiled.

Where the extension modules are missing (another system, no compiler) everything here works on asyncio's own loop.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

try:
    import unwait.loop.kernel  # noqa: F401  # first, for it alone cannot be imported uncompiled, whatever else fails
    from unwait.loop.eventloop import Loop, live_objects
    from unwait.loop.streams import open_connection, open_unix_connection, start_server, start_unix_server
except (ImportError, AttributeError):  # the latter from Cython's shadow modules, where only a part was built
    # These give asyncio's classes, from which ours derive as far as types are concerned.
    from asyncio import (  # type: ignore[assignment]
        open_connection,
        open_unix_connection,
        start_server,
        start_unix_server,
    )

    COMPILED = False
    Loop = asyncio.SelectorEventLoop  # type: ignore[misc, assignment]

    def live_objects() -> dict[str, int]:
        """Nothing is counted on asyncio's own loop."""
        return {}
else:
    COMPILED = True

__all__ = [
    "COMPILED",
    "Loop",
    "Runner",
    "install",
    "live_objects",
    "new_event_loop",
    "open_connection",
    "open_unix_connection",
    "run",
    "start_server",
    "start_unix_server",
]

T = TypeVar("T")

_warned = False


def new_event_loop() -> Loop:
    """A new, unset event loop: unwait's, or asyncio's own (with one RuntimeWarning) where ours is not built."""
    global _warned
    if not COMPILED and not _warned:
        _warned = True
        warnings.warn(
            "unwait's compiled event loop is not available here; asyncio's own is used instead",
            RuntimeWarning,
            stacklevel=2,
        )
    return Loop()


class Runner(asyncio.Runner):  # type: ignore[misc]  # final for typeshed only
    """`asyncio.Runner` whose loop is unwait's unless `loop_factory` says otherwise."""

    def __init__(
        self,
        *,
        debug: bool | None = None,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        super().__init__(debug=debug, loop_factory=loop_factory or new_event_loop)


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run a coroutine to its end on a new unwait loop, as `asyncio.run` does on asyncio's."""
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("unwait.run() cannot be called from a running event loop")
    with Runner(debug=debug) as runner:
        return runner.run(main)


if sys.version_info < (3, 14):

    class _Policy(asyncio.DefaultEventLoopPolicy):
        """asyncio's default policy, on unwait's loop."""

        def new_event_loop(self) -> asyncio.AbstractEventLoop:
            return new_event_loop()


def install() -> None:
    """Make unwait's loop what asyncio creates by default, for code that cannot pass a loop factory.

    Holds for `asyncio.run`, `asyncio.Runner` and `asyncio.new_event_loop` in every thread of this process (and
    its forks), and before Python 3.14 for a loop that `asyncio.get_event_loop` creates. Loops that exist already,
    and any `loop_factory` or policy that the program sets afterwards, are left alone. A second call does nothing.
    """
    if sys.version_info < (3, 14):
        # Up to 3.13 all of asyncio asks the policy, also through names that were imported earlier.
        if not isinstance(asyncio.get_event_loop_policy(), _Policy):
            asyncio.set_event_loop_policy(_Policy())
        return
    # From 3.14 on, touching a policy warns and soon fails; `asyncio.Runner` looks for this name in asyncio.events.
    asyncio.events.new_event_loop = new_event_loop
    asyncio.new_event_loop = new_event_loop
